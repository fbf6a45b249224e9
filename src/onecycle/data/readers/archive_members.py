"""List the members of a zip or tar archive with their intended names, and read members in bounded memory."""

import gzip
import itertools
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from io import RawIOBase
from pathlib import Path
from typing import IO, NamedTuple

from onecycle.core.errors import InputError

# Parts of a zip: two flag bits, and the type of the extra field that holds a name in UTF-8.
# Source: PKWARE's APPNOTE.TXT, 4.4.4 and 4.6.9.
_ENCRYPTED, _UTF_8 = 0x1, 0x800
_UNICODE_PATH = 0x7075

# Limit in bytes for the headers of one member of a tar. tarfile reads the headers into memory. They usually have about
# a thousand bytes.
_MOST_HEADERS = 2**20
_PIECE = 2**16  # number of bytes that are read at a time

_INSTEAD = {
    "symbolic link": "put the file itself into the archive (tar --dereference, zip without --symlinks)",
    "hard link": "put a copy of the file into the archive (tar --hard-dereference)",
    "device": "a data set holds files only, so remove it",
}


class Member(NamedTuple):
    """A file or a folder in an archive. `size` is the number of bytes it claims to have; `read` never returns more."""

    name: str
    is_folder: bool
    size: int
    read: Callable[[], bytes]


def zip_members(path: Path) -> Iterator[Member]:
    """Yield the members of the zip `path`.

    Raises:
        InputError: when the archive is encrypted, when a member is neither a file nor a folder, or when a member is
            compressed by a method other than deflate. The decompressors of other methods have no bound on memory.
    """
    with zipfile.ZipFile(path) as archive:
        # .NET before 4.6.1, for example in PowerShell 5, separates folders by backslashes. But a backslash may also be
        # the second byte of a Japanese letter. So backslashes are separators only if no name has a slash.
        has_slashes = any("/" in _name(info) for info in archive.infolist())
        for info in archive.infolist():
            name = _name(info) if has_slashes else _name(info).replace("\\", "/")
            if info.flag_bits & _ENCRYPTED:
                raise InputError(f"{path}: is encrypted; unpack it, or create it again without a password")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise InputError(
                    f"{path}: {name!r} is not compressed by deflate, the usual method of zip; create the archive again "
                    "with deflate"
                )
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _not_a_file(path, name, "symbolic link" if kind == stat.S_IFLNK else "device")
            yield Member(name, name.endswith("/"), info.file_size, partial(_read_zipped, archive, info))


def tar_members(path: Path, most_bytes: int, *, compressed: bool) -> Iterator[Member]:
    """Yield the members of the tar `path`, which may unpack to at most `most_bytes`.

    Read a member before requesting the next one.

    Raises:
        InputError: when the archive unpacks to more than `most_bytes`, when the headers of a member are too large to be
            read into memory, or when a member is neither a file nor a folder.
    """
    # tarfile's own mode "r|gz" neither checks the gzip checksum nor detects a truncated stream.
    with path.open("rb") as raw, gzip.open(raw) if compressed else raw as plain:
        stream = _CheckedStream(plain, path, most_bytes)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            while info := archive.next():
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all members and their headers
                stream.headers_end = archive.offset + _MOST_HEADERS
                # Some headers apply to all members that follow. tarfile must keep these, so their size is limited here.
                if sum(map(len, itertools.chain.from_iterable(archive.pax_headers.items()))) > _MOST_HEADERS:
                    raise _too_large_headers(path)
                if not (info.isfile() or info.isdir()):
                    raise _not_a_file(
                        path, info.name, "symbolic link" if info.issym() else "hard link" if info.islnk() else "device"
                    )
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


def _not_a_file(path: Path, name: str, kind: str) -> InputError:
    return InputError(f"{path}: {name!r} is a {kind}; {_INSTEAD[kind]}")


def _name(info: zipfile.ZipInfo) -> str:
    """The name of a member of a zip.

    If no flag says that a name is UTF-8, `zipfile` decodes it by code page 437. But an extra field may then hold the
    right name, or the name may still be UTF-8: macOS's Archive Utility does not set the flag.
    """
    name = info.orig_filename
    if not info.flag_bits & _UTF_8:
        raw = name.encode("cp437")
        # Each part is decoded by itself, so that a folder has the same name whatever its files are called.
        name = _unicode_path(info.extra, raw) or "/".join(map(_decoded, raw.split(b"/")))
    return name.partition("\0")[0]


def _unicode_path(extra: bytes, raw_name: bytes) -> str | None:
    """The name in Info-ZIP's extra field.

    Returns None if `extra` does not contain this field, or if the field's checksum is not that of `raw_name`.
    """
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == _UNICODE_PATH and field[:5] == struct.pack("<BL", 1, zlib.crc32(raw_name)):
            return field[5:].decode()
    return None


def _decoded(part: bytes) -> str:
    try:
        return part.decode()
    except UnicodeDecodeError:
        return part.decode("cp437")


def _read_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as file:
        return file.read(info.file_size)  # `read()` would unpack everything, and only then cut it to this size


def _read_from_tar(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(info)
    # `read()` would copy a sparse file once for each of its parts.
    return b"".join(iter(partial(file.read, _PIECE), b"")) if file else b""


class _CheckedStream(RawIOBase):
    """Wraps a stream and limits its length to `most_bytes`.

    `position` is the number of bytes read. `last_nonzero` is the position after the last nonzero byte. `headers_end` is
    the position before which the headers of the next tar member must end.
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
