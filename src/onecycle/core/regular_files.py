"""Open files in untrusted folders, such as a run folder from someone else: only regular files, never links."""

import errno
import os
import stat
from pathlib import Path

# Windows has neither O_NOFOLLOW nor O_NONBLOCK. There, only `_refuse_link` protects against links.
_SAFELY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_regular(path: Path, flags: int) -> int:
    """Open the regular file at `path` with `flags` for `os.open`, and return its descriptor.

    Links, pipes, devices and folders are not opened. Opening never waits. A file that is opened for writing must have
    no other hard link, because writing would also change the file under its other name. The folders above `path` may be
    links.

    Raises:
        OSError: when there is no such file, something else is at `path`, or the file cannot be opened.
    """
    _refuse_link(path)
    descriptor = os.open(path, flags | _SAFELY, 0o666)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        if found.st_nlink > 1 and flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.ELOOP, "it is a hard link to another file")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: Path, most_bytes: int) -> bytes:
    """The content of the regular file at `path`, opened as `open_regular` does.

    Raises:
        OSError: when the file cannot be opened or read, or has more than `most_bytes`.
    """
    with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most_bytes:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes; the limit is {most_bytes:,}")
        return file.read(size)  # `read(most_bytes)` would allocate `most_bytes`, even for a small file


def make_folder(path: Path) -> None:
    """Create the folder `path`, unless it exists. Its parent must exist.

    Raises:
        OSError: when a link or a file is at `path`, or the folder cannot be created.
    """
    _refuse_link(path)
    path.mkdir(exist_ok=True)


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a symbolic link")
