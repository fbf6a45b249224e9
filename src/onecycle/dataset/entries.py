"""What is inside a folder or an archive, one file after the other. Nothing is ever extracted."""

import gzip
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import RawIOBase
from pathlib import Path
from typing import IO

from onecycle.errors import InputError


@dataclass(frozen=True)
class Entry:
    """A file or folder at `parts`, names from the top down. `read` works until the next entry is asked for."""

    parts: tuple[str, ...]
    is_folder: bool
    read: Callable[[], bytes]


def entries_of(source: Path) -> Iterator[Entry]:
    """The files and folders inside `source`: a folder, or a .zip, .tar or .tar.gz archive, told by its content.

    Left out: hidden names, macOS's `__MACOSX`, and links (in a folder, links to files inside the folder are kept).

    Raises:
        InputError: `source` cannot be read, is no archive, or ends too early.
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
        for entry in entries:
            if not any(part.startswith(".") or part == "__MACOSX" for part in entry.parts):
                yield entry


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
            yield Entry(parts, False, _reader(Path(item.path), Path(item.path).read_bytes))


def _zip_entries(path: Path) -> Iterator[Entry]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            is_link = (info.external_attr >> 16) & 0o170000 == 0o120000
            if not is_link:
                yield Entry(_parts(info.filename), info.is_dir(), _reader(path, partial(archive.read, info)))


def _tar_entries(path: Path, *, compressed: bool) -> Iterator[Entry]:
    # tarfile's own "r|gz" neither checks the gzip checksum nor notices a stream that ends early.
    with path.open("rb") as raw, gzip.open(raw) if compressed else raw as plain:
        stream = _Watched(plain)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for info in archive:
                if info.isfile() or info.isdir():
                    yield Entry(_parts(info.name), info.isdir(), _reader(path, partial(_read_member, archive, info)))
            while stream.read(1 << 20):
                pass
            # tarfile takes a damaged or missing header for the end; the end is zeros, and at least a block of them.
            if stream.last_nonzero > archive.offset or stream.position < archive.offset + tarfile.BLOCKSIZE:
                raise tarfile.ReadError("unexpected end of data")


def _read_member(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(info)
    return file.read() if file else b""


class _Watched(RawIOBase):
    """A stream that knows how far it was read and where its last byte that is not zero was."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile) -> None:
        self.stream = stream
        self.position = 0
        self.last_nonzero = 0

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(size)
        if length := len(data.rstrip(b"\0")):
            self.last_nonzero = self.position + length
        self.position += len(data)
        return data


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.split("/") if part not in ("", "."))


def _reader(path: Path, read: Callable[[], bytes]) -> Callable[[], bytes]:
    def told() -> bytes:
        with _told_of(path):
            return read()

    return told


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Turn what the archive libraries raise into one line about `path`."""
    try:
        yield
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be read to its end ({reason}); check it, or get it again") from error
