"""How a model computes on this machine: hardware detection, autotuning, the compute plan, and the kernels."""
