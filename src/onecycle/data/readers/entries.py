"""What is inside a folder or an archive, one file after the other. Nothing is ever extracted."""

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

from onecycle.core.errors import InputError
from onecycle.data.preprocessing import LARGEST_FILE, suffixes

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")

# Far above what image data need, and low enough that a trap cannot fill the memory or take the day.
MOST_ENTRIES = 10_000_000
EXPANSION = 100, 2**28  # an archive may unpack to so many times its size, and so many bytes more


@dataclass(frozen=True)
class Entry:
    """A file or folder at `parts`, names from the top down. `read` works until the next entry is asked for."""

    parts: tuple[str, ...]
    is_folder: bool
    read: Callable[[], bytes]


def entries_of(source: Path) -> Iterator[Entry]:
    """The files and folders inside `source`: a folder, or a .zip, .tar or .tar.gz archive, told by its content.

    Left out: hidden names, macOS's `__MACOSX`, and, in a folder, links but those to files inside the folder.

    Raises:
        InputError: `source` cannot be read, is no archive or ends too early; or holds what a data set does not: links,
            devices, names that lead out of the archive, too many files, or too large ones.
    """
    with _told_of(source):
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
                raise InputError(f"{source}: not a .zip, .tar or .tar.gz archive; name an archive or a folder")
        for number, entry in enumerate(entries):
            if number >= MOST_ENTRIES:
                raise InputError(f"{source}: holds more than {MOST_ENTRIES:,} files, which is the most")
            if entry.parts and not any(part.startswith(".") or part == "__MACOSX" for part in entry.parts):
                yield entry


def archives_in(folder: Path) -> list[Path]:
    """The archives in `folder`, by name, where it holds neither folders nor pictures; none elsewhere."""
    if not folder.is_dir():
        return []
    with _told_of(folder), os.scandir(folder) as scan:
        found = sorted((item for item in scan if not item.name.startswith(".")), key=lambda item: item.name)
    if any(item.is_dir() or Path(item.name).suffix.lower() in suffixes() for item in found):
        return []
    return [Path(item.path) for item in found if item.name.lower().endswith(_ARCHIVES)]


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
                raise InputError(f"{path}: {info.filename!r} is a link or a device; a data set holds files only")
            left -= info.file_size
            if left < 0:
                raise _too_large(path)
            read = _reader(path, partial(archive.read, info), info.file_size, f"{path}:{info.filename}")
            yield Entry(_parts(info.filename, path), info.is_dir(), read)


def _tar_entries(path: Path, *, compressed: bool) -> Iterator[Entry]:
    # tarfile's own "r|gz" neither checks the gzip checksum nor notices a stream that ends early.
    with path.open("rb") as raw, gzip.open(raw) if compressed else raw as plain:
        stream, left = _Watched(plain, path), _most_bytes(path)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for info in archive:
                if not (info.isfile() or info.isdir()):
                    raise InputError(f"{path}: {info.name!r} is a link or a device; a data set holds files only")
                left -= info.size  # a sparse file has more bytes than the stream
                if left < 0:
                    raise _too_large(path)
                read = _reader(path, partial(_read_member, archive, info), info.size, f"{path}:{info.name}")
                yield Entry(_parts(info.name, path), info.isdir(), read)
            while stream.read(1 << 20):
                pass
            # tarfile takes a damaged or missing header for the end; the end is zeros, and at least a block of them.
            if stream.last_nonzero > archive.offset or stream.position < archive.offset + tarfile.BLOCKSIZE:
                raise tarfile.ReadError("unexpected end of data")


def _read_member(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(info)
    return file.read() if file else b""


class _Watched(RawIOBase):
    """A stream that knows how far it was read and where its last byte that is not zero was, and has an end."""

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
        raise InputError(f"{path}: the name {name!r} leads out of the archive; make it anew, from inside the folder")
    return tuple(part for part in name.split("/") if part not in ("", "."))


def _most_bytes(path: Path) -> int:
    """That the archive may unpack to."""
    times, more = EXPANSION
    return times * path.stat().st_size + more


def _too_large(path: Path) -> InputError:
    return InputError(f"{path}: unpacks to more than {_most_bytes(path):,} bytes, so it is taken for a trap; check it")


def _reader(path: Path, read: Callable[[], bytes], size: int, where: str) -> Callable[[], bytes]:
    def told() -> bytes:
        if size > LARGEST_FILE:
            raise InputError(f"{where}: has {size:,} bytes, and {LARGEST_FILE:,} is the most; replace or remove it")
        with _told_of(path):
            return read()

    return told


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Turn what the archive libraries raise into one line about `path`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # damaged archives raise many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be read to its end ({reason}); check it, or get it again") from error
