"""List and read the files in a folder or an archive. Archives are never extracted."""

import gzip
import os
import re
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import RawIOBase
from pathlib import Path
from typing import IO

from onecycle.core.errors import InputError, OnecycleError
from onecycle.data.preprocessing import LARGEST_FILE, suffixes

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")

# These limits are far above what image data needs, and low enough that a zip bomb cannot fill memory or run for hours.
MOST_ENTRIES = 10_000_000
EXPANSION = 100, 2**28  # an archive may unpack to 100 times its size plus 256 MiB


@dataclass(frozen=True)
class Entry:
    """A file or a folder. `parts` is its path, split into names. Call `read` before requesting the next entry."""

    parts: tuple[str, ...]
    is_folder: bool
    read: Callable[[], bytes]


def entries_of(source: Path) -> Iterator[Entry]:
    """Yield the files and folders in `source`, a folder or an archive (.zip, .tar or .tar.gz, detected by content).

    Hidden names and macOS's `__MACOSX` are skipped. In a folder, links to files outside the folder are skipped, too.

    Raises:
        InputError: when `source` is unreadable, truncated or not an archive, when it contains too many or too large
            files, or when an archive contains links, devices or paths that point outside the archive.
    """
    with _one_line_errors(source):
        if source.is_dir():
            entries = _folder_entries(source, source.resolve(), ())
        else:
            with source.open("rb") as file:
                start = file.read(512)
            if start.startswith(b"PK"):
                entries = _zip_entries(source)
            elif start.startswith(b"\x1f\x8b") or start[257:262] == b"ustar":
                entries = _tar_entries(source, compressed=start.startswith(b"\x1f\x8b"))
            else:
                raise InputError(f"{source}: not a .zip, .tar or .tar.gz archive; give an archive or a folder")
        for number, entry in enumerate(entries):
            if number >= MOST_ENTRIES:
                raise InputError(f"{source}: holds more than {MOST_ENTRIES:,} files and folders, the limit; split it")
            if entry.parts and not any(part.startswith(".") or part == "__MACOSX" for part in entry.parts):
                yield entry


def archives_in(folder: Path) -> list[Path]:
    """The archives in `folder`, sorted by name. The list is empty if `folder` also contains folders or images."""
    if not folder.is_dir():
        return []
    with _one_line_errors(folder), os.scandir(folder) as scan:
        found = sorted((item for item in scan if not item.name.startswith(".")), key=lambda item: item.name)
    if any(item.is_dir() or Path(item.name).suffix.lower() in suffixes() for item in found):
        return []
    return [Path(item.path) for item in found if item.name.lower().endswith(ARCHIVE_SUFFIXES)]


def _folder_entries(root: Path, resolved_root: Path, inside: tuple[str, ...]) -> Iterator[Entry]:
    with os.scandir(root.joinpath(*inside)) as scan:
        found = sorted(scan, key=lambda item: item.name)
    for item in found:
        parts = (*inside, item.name)
        if item.is_dir(follow_symlinks=False):
            if not item.name.startswith("."):
                yield Entry(parts, True, bytes)
                yield from _folder_entries(root, resolved_root, parts)
        elif item.is_file() and not (item.is_symlink() and not Path(item.path).resolve().is_relative_to(resolved_root)):
            file = Path(item.path)
            yield Entry(parts, False, _reader(file, file.read_bytes, item.stat().st_size, str(file)))


def _zip_entries(path: Path) -> Iterator[Entry]:
    with zipfile.ZipFile(path) as archive:
        left = _most_bytes(path)
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise InputError(
                    f"{path}: {info.filename!r} is a link or a device; a data set holds files only, so remove it"
                )
            left -= info.file_size
            if left < 0:
                raise _too_large(path)
            read = _reader(path, partial(archive.read, info), info.file_size, f"{path}:{info.filename}")
            yield Entry(_parts(info.filename, path), info.is_dir(), read)


def _tar_entries(path: Path, *, compressed: bool) -> Iterator[Entry]:
    # tarfile's own mode "r|gz" neither checks the gzip checksum nor detects a truncated stream.
    with path.open("rb") as raw, gzip.open(raw) if compressed else raw as plain:
        stream, left = _CheckedStream(plain, path), _most_bytes(path)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for info in archive:
                if not (info.isfile() or info.isdir()):
                    raise InputError(
                        f"{path}: {info.name!r} is a link or a device; a data set holds files only, so remove it"
                    )
                # A sparse file may unpack to more bytes than the stream holds, so the stream's limit is not enough.
                left -= info.size
                if left < 0:
                    raise _too_large(path)
                read = _reader(path, partial(_read_member, archive, info), info.size, f"{path}:{info.name}")
                yield Entry(_parts(info.name, path), info.isdir(), read)
            while stream.read(1 << 20):
                pass
            # tarfile treats a damaged header as the end of the archive. After the real end, the stream holds at least
            # one block of zeros, and nothing but zeros.
            if stream.last_nonzero > archive.offset or stream.position < archive.offset + tarfile.BLOCKSIZE:
                raise tarfile.ReadError("unexpected end of data")


def _read_member(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(info)
    return file.read() if file else b""


class _CheckedStream(RawIOBase):
    """Wraps a stream to limit its length. Tracks the position, and the position after the last nonzero byte."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, path: Path) -> None:
        self.stream = stream
        self.path = path
        self.most = _most_bytes(path)
        self.position = 0
        self.last_nonzero = 0

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(size)
        if length := len(data.rstrip(b"\0")):
            self.last_nonzero = self.position + length
        self.position += len(data)
        if self.position > self.most:
            raise _too_large(self.path)
        return data


def _parts(name: str, path: Path) -> tuple[str, ...]:
    if re.match(r"[/\\]|[A-Za-z]:[/\\]", name) or ".." in re.split(r"[/\\]", name):
        raise InputError(
            f"{path}: the path {name!r} points outside the archive; create the archive again from inside the folder"
        )
    return tuple(part for part in name.split("/") if part not in ("", "."))


def _most_bytes(path: Path) -> int:
    """The largest number of bytes that the archive `path` may unpack to."""
    times, more = EXPANSION
    return times * path.stat().st_size + more


def _too_large(path: Path) -> InputError:
    return InputError(f"{path}: unpacks to more than {_most_bytes(path):,} bytes and may be a zip bomb; check it")


def _reader(path: Path, read: Callable[[], bytes], size: int, where: str) -> Callable[[], bytes]:
    def checked_read() -> bytes:
        if size > LARGEST_FILE:
            raise InputError(f"{where}: has {size:,} bytes; the limit is {LARGEST_FILE:,}; replace or remove it")
        with _one_line_errors(path):
            return read()

    return checked_read


@contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Turn any error of the archive libraries into an InputError with one line about `path`."""
    try:
        yield
    except OnecycleError:
        raise
    except Exception as error:  # damaged archives raise many kinds of errors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be read to its end ({reason}); check it, or download it again") from error
