"""List the members of a zip or tar archive, and read them in bounded memory."""

import gzip
import itertools
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from io import RawIOBase
from pathlib import Path
from typing import IO, NamedTuple

from onecycle.core.errors import InputError

_MOST_HEADERS = 2**20  # bytes; the headers of one member of a tar are read into memory, and need about a thousand
_PIECE = 2**16  # bytes


class Member(NamedTuple):
    """A file or a folder in an archive. `size` is the number of bytes it claims to have; `read` never returns more."""

    name: str
    is_folder: bool
    size: int
    read: Callable[[], bytes]


def zip_members(path: Path) -> Iterator[Member]:
    """Yield the members of the zip `path`.

    Raises:
        InputError: when the archive needs a decompressor without a bound on memory, or a member is
            neither a file nor a folder.
    """
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise InputError(
                    f"{path}: {name!r} is not compressed by deflate, the usual method of zip; create the archive again "
                    "with deflate"
                )
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _not_a_file(path, name)
            yield Member(name, info.is_dir(), info.file_size, partial(_read_zipped, archive, info))


def tar_members(path: Path, most_bytes: int, *, compressed: bool) -> Iterator[Member]:
    """Yield the members of the tar `path`, which may unpack to `most_bytes`. Read a member before the next is yielded.

    Raises:
        InputError: when the archive unpacks to more, the headers of a member are too large to be read into memory, or a
            member is neither a file nor a folder.
    """
    # tarfile's own mode "r|gz" neither checks the gzip checksum nor detects a truncated stream.
    with path.open("rb") as raw, gzip.open(raw) if compressed else raw as plain:
        stream = _CheckedStream(plain, path, most_bytes)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            while info := archive.next():
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all members and their headers
                stream.headers_end = archive.offset + _MOST_HEADERS
                # Some headers apply to all members that follow, so tarfile must keep these.
                if sum(map(len, itertools.chain.from_iterable(archive.pax_headers.items()))) > _MOST_HEADERS:
                    raise _too_large_headers(path)
                if not (info.isfile() or info.isdir()):
                    raise _not_a_file(path, info.name)
                yield Member(info.name, info.isdir(), info.size, partial(_read_from_tar, archive, info))
            stream.headers_end = most_bytes
            while stream.read(1 << 20):
                pass
            # tarfile treats a damaged header as the end of the archive. After the real end, the stream holds at least
            # one block of zeros, and nothing but zeros.
            if stream.last_nonzero > archive.offset or stream.position < archive.offset + tarfile.BLOCKSIZE:
                raise tarfile.ReadError("unexpected end of data")


def too_large(path: Path, most_bytes: int) -> InputError:
    return InputError(f"{path}: unpacks to more than {most_bytes:,} bytes and may be a zip bomb; check it")


def _too_large_headers(path: Path) -> InputError:
    return InputError(
        f"{path}: the headers of a file have more than {_MOST_HEADERS:,} bytes; create the archive again from the files"
    )


def _not_a_file(path: Path, name: str) -> InputError:
    return InputError(f"{path}: {name!r} is a link or a device; a data set holds files only, so remove it")


def _read_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as file:
        return file.read(info.file_size)  # `read()` would unpack all there is before it keeps as much as is claimed


def _read_from_tar(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(info)
    # `read()` would copy a sparse file once for each of its parts.
    return b"".join(iter(partial(file.read, _PIECE), b"")) if file else b""


class _CheckedStream(RawIOBase):
    """Wraps a stream to limit its length. Tracks the position, and the position after the last nonzero byte.

    The headers of the next member must end before `headers_end`.
    """

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, path: Path, most_bytes: int) -> None:
        self.stream = stream
        self.path = path
        self.most_bytes = most_bytes
        self.headers_end = _MOST_HEADERS
        self.position = 0
        self.last_nonzero = 0

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(size)
        if length := len(data.rstrip(b"\0")):
            self.last_nonzero = self.position + length
        self.position += len(data)
        if self.position > self.most_bytes:
            raise too_large(self.path, self.most_bytes)
        if self.position > self.headers_end + tarfile.RECORDSIZE:  # tarfile reads ahead by up to a record
            raise _too_large_headers(self.path)
        return data
