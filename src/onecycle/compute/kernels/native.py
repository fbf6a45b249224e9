"""Compile the C kernels for this machine, and call them.

In bfloat16, PyTorch's batch norm, ReLU and max-pooling take several times as long as reading and writing their memory.
PyTorch's convolutions on small maps take several times as long as their arithmetic needs. The C files in this folder
are faster. On first use, a C compiler with OpenMP compiles these files into the user's cache, in about a second.
Without a compiler, PyTorch's own kernels are used.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import torch

from onecycle.compute.hardware import cpu_features, cpu_name
from onecycle.core.cache import cache_folder

_TIMEOUT_SECONDS = 60
MOST_CHANNELS = 8192  # each thread keeps two sums per channel on its stack
_FOLDER = Path(__file__).parent
_FLAGS = ["-O3", "-march=native", "-fopenmp", "-fPIC", "-shared"]
if platform.machine() == "x86_64":
    _FLAGS.append("-mprefer-vector-width=512")


@functools.cache
def compiled() -> ctypes.CDLL | None:
    """The compiled kernels. None if Linux, a C compiler, OpenMP or a writable cache is missing."""
    if platform.system() != "Linux":
        return None
    try:
        command = [*shlex.split(os.environ.get("CC", "cc")), *_FLAGS]
        path = _library_file(command)
        if path.exists():
            with suppress(OSError):  # a library that was compiled for another system does not load
                return ctypes.CDLL(str(path))
        _compile(command, path)
        # gcc's OpenMP resolves to the library that PyTorch has loaded, so both share one thread pool.
        return ctypes.CDLL(str(path))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def build_id() -> str | None:
    """A hash of the kernels' source code, the compiler and the CPU. None without compiled kernels."""
    loaded = compiled()
    return Path(loaded._name).stem if loaded else None


def _library_file(command: list[str]) -> Path:
    """The cache file of the compiled kernels. Its name is a hash of everything that the kernels depend on."""
    sources = [path.read_bytes() for path in sorted(_FOLDER.glob("*.[ch]"))]
    compiler = subprocess.run(
        [command[0], "--version"], capture_output=True, check=True, timeout=_TIMEOUT_SECONDS
    ).stdout
    target = f"{cpu_name()} {cpu_features()} {shlex.join(command)}".encode()
    digest = hashlib.sha256(b"\0".join([*sources, compiler, target])).hexdigest()
    folder = cache_folder() / "kernels"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o022:
        raise OSError(f"other users can write to {folder}, so its code is not loaded")
    return folder / f"{digest[:16]}.so"


def _compile(command: list[str], path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="partial-", dir=path.parent) as temporary:
        made = Path(temporary) / path.name
        sources = sorted(_FOLDER.glob("*.c"))
        subprocess.run([*command, *sources, "-o", made], capture_output=True, check=True, timeout=_TIMEOUT_SECONDS)
        made.replace(path)


def call(name: str, *arguments: torch.Tensor | int) -> None:
    """Call the kernel `name`. Every kernel takes PyTorch's number of threads as its last argument.

    Tensors are passed as pointers. The caller ensures their dtype and memory layout.
    """
    loaded = compiled()
    assert loaded is not None, "call compiled() first"
    values = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else ctypes.c_long(a) for a in arguments]
    getattr(loaded, name)(*values, ctypes.c_int(torch.get_num_threads()))


def supports(images: torch.Tensor) -> bool:
    """Whether the kernels support `images` `[B,C,H,W]`.

    They must be bfloat16, on the CPU, channels-last and not empty, with at most `MOST_CHANNELS` channels.
    """
    return (
        images.dtype == torch.bfloat16
        and images.device.type == "cpu"
        and images.dim() == 4
        and images.numel() > 0
        and images.shape[1] <= MOST_CHANNELS
        and images.is_contiguous(memory_format=torch.channels_last)
    )


def to_kernel_layout(maps: torch.Tensor) -> torch.Tensor:
    """`maps` `[B,C,H,W]` as the kernels need them: bfloat16, channels-last."""
    return maps.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
