"""Many pictures cut into parts, each of which is labelled as a whole: what is in a part, and how it is read."""

import hashlib
import os
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from onecycle.core.errors import InputError
from onecycle.core.files import shown
from onecycle.data.preprocessing import suffixes
from onecycle.data.readers.entries import Entry, entries_of
from onecycle.predict.predictor import read_file
from onecycle.predict.stream import files_of

ABOUT = 1000  # pictures in a part
# What is before a part of an archive has to be read through, so that more parts would read it more often.
MOST_OF_AN_ARCHIVE = 16
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
_DIGEST = 12  # bytes, of a picture's name


class Piece(NamedTuple):
    """A picture file; or `length` pictures of an archive, from the one at `first` (0-based) on; or what is neither."""

    path: str
    first: int = 0
    length: int | None = None  # None where it is no archive
    reason: str | None = None  # why it cannot be read
    names: str | None = None  # a digest of those of the archive's pictures


@dataclass(frozen=True)
class Part:
    """What is labelled as a whole."""

    number: int
    pieces: tuple[Piece, ...]

    @property
    def pictures(self) -> int:
        return sum(1 if piece.length is None else piece.length for piece in self.pieces)


class Picture(NamedTuple):
    """A picture's file, as it was read, or why it cannot be."""

    path: str
    member: str | None  # its name in the archive
    content: bytes | InputError

    @property
    def where(self) -> str:
        return shown(self.path if self.member is None else f"{self.path}:{self.member}")


def cut(sources: Iterable[str], at_once: int) -> Iterator[Part]:
    """The parts of what `sources` name: files, folders, patterns, and archives, through which this reads once.

    Of files a part has a multiple of `at_once`, so that a network is given the same batches however they are cut.
    """
    each = at_once * max(1, ABOUT // at_once)
    number = 0
    files: list[Piece] = []
    for file in files_of(sources):
        path, reason = (file[0], str(file[1])) if isinstance(file, tuple) else (file, None)
        if reason is None and path.name.lower().endswith(_ARCHIVES) and path.is_file():
            slices = list(_slices(path))
        else:
            if reason is None and not os.path.lexists(path):
                reason = f"there is no file {shown(path)}; check the name"
            files.append(Piece(str(path), reason=reason))
            slices = []
        if files and (slices or len(files) == each):
            yield Part(number, tuple(files))
            number, files = number + 1, []
        for piece in slices:
            yield Part(number, (piece,))
            number += 1
    if files:
        yield Part(number, tuple(files))


def _slices(path: Path) -> Iterator[Piece]:
    try:
        names = bytearray()
        for entry in _pictures_in(path):
            names += _digest(entry)
    except InputError as error:
        yield Piece(str(path), reason=str(error))
        return
    if not names:
        yield Piece(str(path), reason=f"{shown(path)}: there are no pictures; check the name")
    total = len(names) // _DIGEST
    each = max(ABOUT, -(-total // MOST_OF_AN_ARCHIVE))
    for first in range(0, total, each):
        length = min(each, total - first)
        own = names[first * _DIGEST : (first + length) * _DIGEST]
        yield Piece(str(path), first, length, names=_together(own))


def _pictures_in(archive: Path) -> Iterator[Entry]:
    for entry in entries_of(archive):
        if not entry.is_folder and os.path.splitext(entry.parts[-1])[1].lower() in suffixes():
            yield entry


def _digest(entry: Entry) -> bytes:
    """Of a picture's name."""
    return hashlib.blake2b("/".join(entry.parts).encode(errors="surrogateescape"), digest_size=_DIGEST).digest()


def _together(digests: bytes | bytearray) -> str:
    return hashlib.blake2b(digests, digest_size=16).hexdigest()


def read(part: Part) -> Iterator[Picture]:
    """The pictures of a part, in order, one after the other.

    Raises:
        InputError: when an archive is not what it was when it was cut, or nothing of the part can be seen from here.
    """
    listed = [piece.path for piece in part.pieces if piece.reason is None]
    if listed and not any(map(os.path.lexists, listed)):
        raise InputError(
            f"{shown(listed[0])} and all else of part {part.number} cannot be seen from {platform.node()}, though "
            "it was there before; put it where all nodes see it"
        )
    for piece in part.pieces:
        if piece.reason is not None:
            yield Picture(piece.path, None, InputError(piece.reason))
        elif piece.length is None:
            yield Picture(piece.path, None, _content(piece.path))
        else:
            yield from _members(piece, piece.length)


def _content(path: str) -> bytes | InputError:
    try:
        return read_file(Path(path))
    except InputError as error:
        return error


def _members(piece: Piece, length: int) -> Iterator[Picture]:
    found = bytearray()
    for entry in islice(_pictures_in(Path(piece.path)), piece.first, piece.first + length):
        found += _digest(entry)
        try:
            content: bytes | InputError = entry.read()
        except InputError as error:
            content = error
        yield Picture(piece.path, "/".join(entry.parts), content)
    if _together(found) != piece.names:
        raise InputError(f"{shown(piece.path)} has other pictures than when it was listed; give another --out")
