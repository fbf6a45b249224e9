"""The kernels written in C, compiled for this very machine when they are first asked for.

PyTorch's batch norm, ReLU and max-pooling in bfloat16 take several times as long as reading and writing their memory
does, and its convolutions on small maps several times as long as their arithmetic. The C files beside this one come
nearer. A C compiler with OpenMP makes a library of them within a
second, kept in the user's cache; without a compiler there is none, and PyTorch's own are used.
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

_PATIENCE = 60  # seconds
MOST_CHANNELS = 8192  # a thread keeps two sums of each on its stack
_FOLDER = Path(__file__).parent
_FLAGS = ["-O3", "-march=native", "-fopenmp", "-fPIC", "-shared"]
if platform.machine() == "x86_64":
    _FLAGS.append("-mprefer-vector-width=512")


@functools.cache
def compiled() -> ctypes.CDLL | None:
    """The compiled kernels; None where they cannot be had: no compiler, no OpenMP, no place to keep them."""
    if platform.system() != "Linux":
        return None
    try:
        command = [*shlex.split(os.environ.get("CC", "cc")), *_FLAGS]
        path = _library_file(command)
        if path.exists():
            with suppress(OSError):  # it cannot be loaded: made by a compiler or for a system that is no more
                return ctypes.CDLL(str(path))
        _compile(command, path)
        # gcc's OpenMP resolves to the library that PyTorch has loaded: both then share one pool of threads.
        return ctypes.CDLL(str(path))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def identity() -> str | None:
    """What tells the compiled kernels from those of another source, compiler or CPU; None where there are none."""
    loaded = compiled()
    return Path(loaded._name).stem if loaded else None


def _library_file(command: list[str]) -> Path:
    """Where the library is kept: whatever it depends on is in the name, so that none is loaded for another source."""
    sources = [path.read_bytes() for path in sorted(_FOLDER.glob("*.[ch]"))]
    compiler = subprocess.run([command[0], "--version"], capture_output=True, check=True, timeout=_PATIENCE).stdout
    target = f"{cpu_name()} {cpu_features()} {shlex.join(command)}".encode()
    identity = hashlib.sha256(b"\0".join([*sources, compiler, target])).hexdigest()
    folder = cache_folder() / "kernels"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o022:
        raise OSError(f"{folder} can be written to by others, whose code would be loaded")
    return folder / f"{identity[:16]}.so"


def _compile(command: list[str], path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="partial-", dir=path.parent) as temporary:
        made = Path(temporary) / path.name
        sources = sorted(_FOLDER.glob("*.c"))
        subprocess.run([*command, *sources, "-o", made], capture_output=True, check=True, timeout=_PATIENCE)
        made.replace(path)


def call(name: str, *arguments: torch.Tensor | int) -> None:
    """Run the kernel `name` with PyTorch's number of threads, which every kernel takes as its last argument.

    Tensors are passed as pointers: the caller sees to type and memory layout.
    """
    loaded = compiled()
    assert loaded is not None, "the caller asks for compiled() first"
    values = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else ctypes.c_long(a) for a in arguments]
    getattr(loaded, name)(*values, ctypes.c_int(torch.get_num_threads()))


def takes(images: torch.Tensor) -> bool:
    """Whether the kernels compute on `images` `[B,C,H,W]`: bfloat16 on the CPU, channels-last, not empty."""
    return (
        images.dtype == torch.bfloat16
        and images.device.type == "cpu"
        and images.dim() == 4
        and images.numel() > 0
        and images.shape[1] <= MOST_CHANNELS
        and images.is_contiguous(memory_format=torch.channels_last)
    )


def in_rows(maps: torch.Tensor) -> torch.Tensor:
    """`maps` `[B,C,H,W]` in the type and layout that the kernels take."""
    return maps.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
