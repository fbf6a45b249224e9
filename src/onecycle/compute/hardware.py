"""Detect the hardware of this machine: CPU, cores, memory and GPU."""

import hashlib
import json
import math
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The properties of a machine that decide which compute plan is fastest."""

    cpu: str
    cores: int
    memory_gib: float
    fast_bfloat16: bool  # the CPU has AMX or AVX-512 instructions for bfloat16
    cpu_features: str
    gpu: str | None  # name of the first GPU
    gpu_kind: str | None  # torch device type of the GPU: "cuda" or "mps"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def detect() -> Hardware:
    """The hardware that this process runs on."""
    gpu, gpu_kind = None, None
    if torch.cuda.is_available():
        gpu, gpu_kind = torch.cuda.get_device_name(0), "cuda"
    elif torch.backends.mps.is_available():
        gpu, gpu_kind = "Apple GPU", "mps"
    features = torch.cpu.get_capabilities()
    return Hardware(
        cpu=cpu_name(),
        cores=usable_cores(),
        memory_gib=round(_memory_bytes() / 2**30, 1),
        cpu_features=cpu_features(),
        fast_bfloat16=bool(features.get("amx_bf16") or features.get("avx512_bf16")),
        gpu=gpu,
        gpu_kind=gpu_kind,
    )


def usable_cores() -> int:
    """Cores this process may use: the minimum of affinity mask, container CPU quota and `$OMP_NUM_THREADS`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    requested = os.environ.get("OMP_NUM_THREADS", "")
    if requested.isdecimal() and int(requested) > 0:
        cores = min(cores, int(requested))
    return max(1, int(min(cores, _cpu_quota(Path("/sys/fs/cgroup")))))


def _cpu_quota(cgroup: Path) -> float:
    """The CPU quota of the container with this `cgroup` folder, in cores. It is infinite if there is no limit."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()  # cgroup version 2
    except (OSError, ValueError):
        try:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except (OSError, ValueError):
            return math.inf
    try:
        return int(quota) / int(period) if int(quota) > 0 else math.inf  # cgroup version 1: -1 means no limit
    except (ValueError, ZeroDivisionError):  # cgroup version 2: "max" means no limit
        return math.inf


def cpu_features() -> str:
    """A hexadecimal hash of the CPU's instruction sets and caches. CPUs with the same name may differ in these."""
    return hashlib.sha256(json.dumps(dict(torch.cpu.get_capabilities()), sort_keys=True).encode()).hexdigest()[:16]


def cpu_name() -> str:
    """The model name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def peak_memory_gib() -> float:
    """The peak memory of this process so far, in GiB, accurate to about 0.01. 0 if the system does not report it."""
    try:
        # On Linux `getrusage` starts with the peak of the parent process; VmHWM does not.
        status = Path("/proc/self/status").read_text()
        return round(int(status.partition("VmHWM:")[2].split()[0]) / 2**20, 2)  # VmHWM is in KiB
    except (OSError, IndexError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1 if platform.system() == "Darwin" else 1024  # macOS counts bytes, Linux KiB
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 2)
