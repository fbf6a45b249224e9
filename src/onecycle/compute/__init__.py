"""How a model runs on this machine: hardware, precision, kernels, and what is fastest."""
