"""The kernels written in C, compiled for this very machine when they are first asked for.

PyTorch's batch norm, ReLU and max-pooling in bfloat16 take several times as long as reading and writing their memory
does. The C files beside this one take one pass each. A C compiler with OpenMP makes a library of them within a
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
from pathlib import Path

import torch

from onecycle.hardware import cpu_name
from onecycle.user_cache import cache_folder

MOST_CHANNELS = 8192  # a thread keeps two sums of each on its stack
_FOLDER = Path(__file__).parent
_FLAGS = ["-O3", "-march=native", "-fopenmp", "-fPIC", "-shared"]
if platform.machine() == "x86_64":
    _FLAGS.append("-mprefer-vector-width=512")


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they cannot be had: no compiler, no OpenMP, no place to keep them."""
    command = shlex.split(os.environ.get("CC", "cc"))
    if platform.system() != "Linux" or not command:
        return None
    sources = sorted(_FOLDER.glob("*.c"))
    try:
        compiler = subprocess.run([*command, "--version"], capture_output=True, check=True).stdout
        # Whatever the result depends on is in the name, so that an old library is never loaded for a new source.
        contents = [path.read_bytes() for path in (*sources, *sorted(_FOLDER.glob("*.h")))]
        settings = " ".join([*command, *_FLAGS, cpu_name()]).encode()
        identity = hashlib.sha256(b"\0".join([*contents, compiler, settings])).hexdigest()
        path = cache_folder() / "kernels" / f"{identity[:16]}.so"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
                made = Path(temporary) / path.name
                subprocess.run([*command, *_FLAGS, *sources, "-o", made], capture_output=True, check=True)
                made.replace(path)
        # OpenMP resolves to the library that PyTorch has loaded: both then share one pool of threads.
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.CalledProcessError):
        return None


def call(name: str, *arguments: torch.Tensor | int) -> None:
    """Run the kernel `name` with PyTorch's number of threads, which every kernel takes as its last argument.

    Tensors are passed as pointers: the caller sees to type and memory layout.
    """
    loaded = library()
    assert loaded is not None, "the caller asks for library() first"
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


def in_rows(gradient: torch.Tensor) -> torch.Tensor:
    """`gradient` `[B,C,H,W]` of the kernels' results, in the type and layout that they take."""
    return gradient.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
