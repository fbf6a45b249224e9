"""Classes of CPU that a benchmark can simulate, by limiting libraries and compilers to older instructions.

The clock and the caches are still those of this CPU.
"""

from dataclasses import replace

from onecycle.compute import hardware
from onecycle.compute.hardware import Hardware

THIS_CPU = "this CPU"
AVX512 = "AVX-512 bfloat16"
AVX2 = "AVX2"

# Environment variables for PyTorch (oneDNN, ATen, MKL), for the compiler of the kernels, and for JAX.
ENVIRONMENT: dict[str, dict[str, str]] = {
    THIS_CPU: {},
    AVX512: {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16", "ONECYCLE_CFLAGS": "-mno-amx-tile -mno-amx-bf16"},
    AVX2: {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONECYCLE_CFLAGS": "-march=x86-64-v3",
        "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
    },
}


def detect(name: str) -> Hardware:
    """The hardware of this machine as a CPU of the class `name`, for a process with the class's environment."""
    machine = hardware.detect()
    if name == AVX2:
        return replace(machine, fast_bfloat16=False, cpu_features=f"{machine.cpu_features} limited to AVX2")
    return machine
