"""Atomic writes, readable errors and locks for files: a crash or a full disk never leaves half a file."""

import errno
import hashlib
import os
import secrets
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tokenize import TokenError

from onecycle.core.errors import InputError, OnecycleError, StorageError
from onecycle.core.regular_files import open_regular

# The errors that libraries raise for a damaged file.
DAMAGE_ERRORS = (
    OSError,
    EOFError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,  # zipfile and torch raise it; deeply nested JSON raises its subclass RecursionError
    TokenError,  # raised when the header of an array is damaged
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)
_ADVICE = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EFBIG: "make room there",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
    errno.EROFS: "make it writable",
    errno.ENOENT: "its folder is missing",
    errno.ELOOP: "remove it",
}


def printable(name: str | Path) -> str:
    """The file name `name` as printable text: control characters and undecodable bytes are escaped."""
    return str(name) if str(name).isprintable() else ascii(str(name))


def file_identity(path: Path) -> list[int | str]:
    """Values that change when the file at `path` is written or replaced, even by a file of equal size and time.

    These are its size, modification time, inode and change time. Programs can set the modification time, but not the
    change time. Windows records no change time, so there the only value is the SHA-256 of the content. If `path` is a
    link, the values are those of its target.

    Raises:
        OSError: when the file cannot be read.
    """
    if os.name == "nt":
        with path.open("rb") as file:
            return [hashlib.file_digest(file, "sha256").hexdigest()]
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns]


class InUseError(StorageError):
    """Another process has locked a folder."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside the block, which writes `path`, turn an OSError into an error with a one-line message.

    Raises:
        StorageError: when `path` cannot be written.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        advice = _ADVICE.get(error.errno or 0, "check it")
        raise StorageError(f"{path} cannot be written ({reason}); {advice}") from error


@contextmanager
def replacing(path: Path, *, keep: Path | None = None, check: Callable[[Path], object] | None = None) -> Iterator[Path]:
    """Yield the path of an empty temporary file beside `path`. If the block succeeds, that file replaces `path`.

    The temporary name is random, so that nobody can create a link there in advance. If `path` is a link, the link is
    replaced, not its target.

    If the block fails, the temporary file is removed. The content is flushed to disk before the rename. So even after a
    power failure, `path` is either the complete old file or the complete new file. `check` is called with the temporary
    path before the rename, and may raise to prevent the rename.

    If `keep` is given, the old file is first renamed to `keep`. A process killed between the two renames leaves the old
    file at `keep`, and no file at `path`.

    Raises:
        StorageError: when `path` cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with writing(path):
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
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
    """Flush `path` to disk: the content of a file, or the directory entries of a folder."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":  # Windows cannot flush a folder
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (is_folder and error.errno in (errno.EINVAL, errno.EBADF)):  # some network drives cannot flush folders
            raise
    finally:
        os.close(descriptor)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors inside the block into one-line `InputError`s. The block reads the file `path` of a run.

    Raises:
        InputError: when the file is missing, damaged, or not of the expected kind.
    """
    try:
        yield
    except OnecycleError:
        raise
    except FileNotFoundError:
        raise InputError(
            f"{path.parent} has no {path.name}: the run did not get this far; resume it, or give another folder"
        ) from None
    except DAMAGE_ERRORS as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise InputError(f"{path} is damaged or of another kind ({reason}); restore it from a copy") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on `folder`. The system releases the lock when the process ends, even if it is killed.

    Raises:
        InUseError: when another process holds the lock.
        StorageError: when the folder cannot be written.
    """
    path = folder / ".lock"
    with writing(path):
        descriptor = open_regular(path, os.O_RDWR | os.O_CREAT)
    try:
        with writing(path):
            acquired = _lock(descriptor)
        if not acquired:
            other = printable(os.read(descriptor, 20).decode(errors="replace").strip())
            raise InUseError(f"process {other} is using {folder}; wait for it, or stop it first")
        if not _is_at(descriptor, path):
            raise InUseError(f"another process was using {folder} until just now; try again")
        with suppress(OSError):  # the process id in the file only serves error messages
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
def waiting_for_lock(path: Path, before_waiting: Callable[[], None]) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`. Wait while another process holds the lock.

    `before_waiting` is called before such a wait. Processes that are forked inside the block share the lock. If this
    process is killed, the lock is held until the last forked process has ended.

    Raises:
        OSError: when the file cannot be created.
    """
    while True:
        descriptor = open_regular(path, os.O_RDWR | os.O_CREAT)
        try:
            with suppress(ImportError):  # Windows has no `fcntl`, so nothing is locked
                import fcntl

                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    before_waiting()
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
    """Whether the open file is still the file at `path`. The previous owner of the lock may have removed that file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _lock(descriptor: int) -> bool:
    """Try to lock the file for this process. Returns whether this succeeded.

    Forked worker processes may outlive this process by seconds. They do not inherit the lock, because it is a POSIX
    record lock.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no `fcntl`, so nothing is locked
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
