"""Files that are whole or not there, even if a process is killed or a disk fills: writing, reading and locking."""

import errno
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from onecycle.core.errors import InputError

_OF_DAMAGED_FILES = (
    OSError,
    EOFError,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)
_WAYS_OUT = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EFBIG: "make room there",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
    errno.EROFS: "make it writable",
    errno.ENOENT: "its folder is gone",
}


def shown(name: str | Path) -> str:
    """The name of a file for a line of text: one with control characters or bytes that are no text is escaped."""
    return str(name) if str(name).isprintable() else ascii(str(name))


class NotWrittenError(InputError):
    """A file cannot be written; what is there is whole."""


class InUseError(InputError):
    """Another process is at work in a folder."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says to writing `path` into one line about it.

    Raises:
        NotWrittenError: when it cannot be written.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        way_out = _WAYS_OUT.get(error.errno or 0, "look there")
        raise NotWrittenError(f"{path} cannot be written ({reason}); {way_out}") from error


@contextmanager
def replacing(path: Path, *, keep: Path | None = None, check: Callable[[Path], object] | None = None) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and is removed when it does not.

    What was written is on the disk before it has its name, so that after a power cut, too, `path` is the old file or
    the new one. `check` is called with the temporary path before that, to raise if it is not as it should be. The old
    file is kept under the name `keep`; a process killed between the two renamings leaves it there, and none at `path`.

    Raises:
        NotWrittenError: when it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            yield temporary
            flush(temporary)
            if check:
                check(temporary)
            if keep and path.exists():
                path.replace(keep)
            temporary.replace(path)
            flush(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


def flush(path: Path) -> None:
    """Wait until the file `path`, or the names in the folder `path`, are on the disk."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":  # which has no such thing
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (is_folder and error.errno in (errno.EINVAL, errno.EBADF)):  # as some network file systems answer
            raise
    finally:
        os.close(descriptor)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a run's file is read and made sense of into one line about `path`.

    Raises:
        InputError: when the run has no such file, or it is damaged or holds something else.
    """
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path.parent} has no {path.name}: the run did not get that far") from None
    except _OF_DAMAGED_FILES as error:
        raise InputError(f"{path} cannot be read, it is damaged or of another kind: {error!r}") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Have `folder` to oneself, among processes that ask like this. One that dies, however it does, has it no longer.

    Raises:
        InUseError: when another process has it.
        NotWrittenError: when it cannot be written.
    """
    path = folder / ".lock"
    with writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with writing(path):
            alone = _lock(descriptor)
        if not alone:
            other = os.read(descriptor, 20).decode(errors="replace").strip()
            raise InUseError(f"{folder} is in use by process {other}; wait for it, or stop it first")
        if not _is_at(descriptor, path):
            raise InUseError(f"{folder} was in use until just now; try again")
        with suppress(OSError):  # the number is for people
            os.truncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()
    finally:
        os.close(descriptor)


@contextmanager
def taking_turns(path: Path, waits: Callable[[], None]) -> Iterator[None]:
    """Have what the file `path` stands for to oneself, when all others that ask like this are done, or are dead.

    `waits` is called where there are others. Processes that are forked inside have it, too: it is not free before they
    have ended.

    Raises:
        OSError: when the file cannot be made.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with suppress(ImportError):  # Windows: two processes are not noticed
                import fcntl

                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    waits()
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not _is_at(descriptor, path):
                continue
            try:
                yield
            finally:
                with suppress(OSError):
                    path.unlink()
            return
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one at `path`, which another process removes as it ends."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _lock(descriptor: int) -> bool:
    """Lock the file for this process alone; whether that could be done.

    A record lock: workers, which are forked from this process, do not hold it, and may outlive it by seconds.
    """
    try:
        import fcntl
    except ImportError:  # Windows: two processes in one folder are not noticed
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
