"""Compile the C kernels for this machine, and call them.

PyTorch's batch norm, ReLU and max-pooling take several times as long as the memory accesses that they need. Its
convolutions take several times as long as their arithmetic alone would take. The C files in this folder are faster.
float32.c and bfloat16.c each have the kernels for feature maps of one data type. amx.c has the convolution kernels for
AMX, the matrix extensions of some x86 CPUs.

On first use, a C compiler with OpenMP compiles these files into the user's cache, in a few seconds. If the cache is not
writable, or other users could write to it, each process compiles the files for itself. `$CC` selects another compiler,
and `$ONECYCLE_CFLAGS` adds options. `$CFLAGS` is not read: environments of conda set it to build for old CPUs. Without
a compiler, this module loads kernels that were compiled when the package was built. If the package has no compiled
kernels, PyTorch's own kernels are used.
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
from onecycle.compute.kernels.variants import FLAGS, VARIANTS
from onecycle.compute.kernels.variants import FOLDER as PREBUILT
from onecycle.core.cache import cache_folder, create_folder, is_private
from onecycle.core.formatting import without_controls

_TIMEOUT_SECONDS = 60
MOST_CHANNELS = 8192  # a limit is needed, because each thread keeps two sums per channel on its stack
_FOLDER = Path(__file__).parent
_ADVICE = "install one with OpenMP (on Debian and Ubuntu, `apt install gcc libc6-dev`), or set CC to another one"
_FLAGS = [*FLAGS, "-shared", "-march=native"]
if platform.machine() == "x86_64":
    _FLAGS.append("-mprefer-vector-width=512")
if platform.system() == "Darwin":
    # Apple's clang has no OpenMP library. The loaded kernels find the library that comes with PyTorch.
    _FLAGS = ["-O3", "-fPIC", "-shared", "-mcpu=native", "-Xclang", "-fopenmp", "-undefined", "dynamic_lookup"]


def compiled() -> ctypes.CDLL | None:
    """The kernels that are compiled for this machine, or else the best variant that came with the package.

    Returns None if the kernels cannot be compiled here, and the package was installed without compiled kernels for this
    CPU. `why_missing` then says why. On Windows, the result is always None. On macOS, compiling is untested.
    """
    return _compiled_or_reason()[0]


def why_missing() -> str:
    """Why the kernels could not be compiled here, and what to do, for a message."""
    return _compiled_or_reason()[1]


@functools.cache
def _compiled_or_reason() -> tuple[ctypes.CDLL | None, str]:
    if os.name != "posix":
        return None, "onecycle cannot compile them on Windows"
    try:
        return _compiled_here(), ""
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        reason = _in_words(error)
    with suppress(OSError):
        return _prebuilt(), reason
    return None, reason


def _in_words(error: Exception) -> str:
    """Why compiling failed with `error`, in one line."""
    compiler = os.environ.get("CC", "cc")
    if isinstance(error, ValueError):
        return f"$CC or $ONECYCLE_CFLAGS cannot be used: {error}"
    if isinstance(error, FileNotFoundError) and error.filename == shlex.split(compiler)[0]:
        return f"there is no C compiler {compiler}; {_ADVICE}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"{compiler} took more than {_TIMEOUT_SECONDS} seconds"
    if isinstance(error, subprocess.CalledProcessError):
        said = without_controls(" ".join(error.stderr.decode(errors="replace").split()))
        return f"{compiler} fails: {said[:200] or f'exit code {error.returncode}'}; {_ADVICE}"
    return f"{compiler} cannot be used, or its library cannot be loaded: {getattr(error, 'strerror', None) or error}"


def _compiled_here() -> ctypes.CDLL:
    """Load the kernels from the user's cache, or compile them.

    The cache may be read-only, or full, or may allow no libraries. Then the kernels are compiled in a temporary folder.

    Raises:
        OSError, ValueError, SubprocessError: when the kernels cannot be compiled or loaded.
    """
    compiler, flags = os.environ.get("CC", "cc"), os.environ.get("ONECYCLE_CFLAGS", "")
    command = [*shlex.split(compiler), *_FLAGS, *shlex.split(flags)]
    if not compiler.split():
        raise ValueError("$CC is empty")
    name = _library_name(command)
    if folder := _private_folder():
        path = folder / name
        if path.exists():
            with suppress(OSError):  # a library that was compiled for another system does not load
                return ctypes.CDLL(str(path))
        with suppress(OSError, subprocess.CalledProcessError):
            return _compiled_into(path, command)
    with tempfile.TemporaryDirectory(prefix="onecycle-") as temporary:
        return _compiled_into(Path(temporary) / name, command)


def _compiled_into(path: Path, command: list[str]) -> ctypes.CDLL:
    _compile(command, path)
    # With gcc, the kernels use the OpenMP library that PyTorch has loaded, so they share PyTorch's thread pool.
    return ctypes.CDLL(str(path))


def _private_folder() -> Path | None:
    """The folder of the kernels in the user's cache. None if it is not writable, or other users can write to it."""
    folder = cache_folder() / "kernels"
    with suppress(OSError):
        create_folder(folder)
        return folder if is_private(folder) and os.access(folder, os.W_OK) else None
    return None


def _prebuilt() -> ctypes.CDLL | None:
    """From the kernels that came with the package, load the best variant that this CPU supports.

    Returns None if there is no such variant.
    """
    capabilities = torch.cpu.get_capabilities()
    for name, variant in VARIANTS.get(platform.machine(), {}).items():
        path = _FOLDER / PREBUILT / f"{name}.so"
        if path.exists() and all(capabilities.get(required) for required in variant.requires):
            return ctypes.CDLL(str(path))
    return None


def build_id() -> str | None:
    """The identity of the compiled kernels: a hash of their source code, the compiler and the CPU.

    For kernels that came with the package, the identity is the name of their variant and a hash of their code.
    Returns None if there are no compiled kernels.
    """
    loaded = compiled()
    if loaded is None:
        return None
    path = Path(loaded._name)
    if path.parent.name != PREBUILT:
        return path.stem
    return f"{path.stem} {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"


def _library_name(command: list[str]) -> str:
    """The file name of the compiled kernels: a hash of everything that the kernels depend on."""
    sources = [path.read_bytes() for path in sorted(_FOLDER.glob("*.[ch]"))]
    compiler = subprocess.run(
        [command[0], "--version"], capture_output=True, check=True, timeout=_TIMEOUT_SECONDS
    ).stdout
    target = f"{cpu_name()} {cpu_features()} {shlex.join(command)}".encode()
    digest = hashlib.sha256(b"\0".join([*sources, compiler, target])).hexdigest()
    return f"{digest[:16]}.so"


def _compile(command: list[str], path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="partial-", dir=path.parent) as temporary:
        made = Path(temporary) / path.name
        sources = sorted(_FOLDER.glob("*.c"))
        subprocess.run([*command, *sources, "-o", made], capture_output=True, check=True, timeout=_TIMEOUT_SECONDS)
        made.chmod(0o600)
        made.replace(path)


def call(name: str, *arguments: torch.Tensor | int) -> None:
    """Call the kernel `name` in its version for the data type of the first argument, which must be a tensor.

    Every kernel takes PyTorch's number of threads as its last argument. Tensors are passed as pointers, so the caller
    must ensure the dtype and the memory layout of the tensors.
    """
    loaded = compiled()
    assert loaded is not None, "call compiled() first"
    assert isinstance(arguments[0], torch.Tensor)
    kernel = getattr(loaded, f"{name}_{str(arguments[0].dtype).removeprefix('torch.')}")
    values = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else ctypes.c_long(a) for a in arguments]
    kernel(*values, ctypes.c_int(torch.get_num_threads()))


def supports(images: torch.Tensor) -> bool:
    """Whether the kernels support `images` `[B,C,H,W]`.

    `images` must be float32 or bfloat16, on the CPU, channels-last, not empty, with at most `MOST_CHANNELS` channels.
    """
    return (
        images.dtype in (torch.float32, torch.bfloat16)
        and images.device.type == "cpu"
        and images.dim() == 4
        and images.numel() > 0
        and images.shape[1] <= MOST_CHANNELS
        and images.is_contiguous(memory_format=torch.channels_last)
    )


def to_kernel_layout(maps: torch.Tensor) -> torch.Tensor:
    """`maps` `[B,C,H,W]` as the kernels need them: channels-last."""
    return maps.contiguous(memory_format=torch.channels_last)


def empty_maps(batch: int, channels: int, height: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Memory for maps `[B,C,H,W]` in the kernels' layout."""
    shape = batch, channels, height, width
    return torch.empty(shape, dtype=dtype, device="cpu", memory_format=torch.channels_last)
