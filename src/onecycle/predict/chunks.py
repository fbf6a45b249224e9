"""Split many images into chunks, the unit of work of bulk prediction, and read the images of a chunk."""

import hashlib
import os
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from onecycle.core.errors import InputError
from onecycle.core.files import printable
from onecycle.data.readers.entries import ARCHIVE_SUFFIXES, Entry, entries_of
from onecycle.data.readers.left_out import LeftOut
from onecycle.data.store.decode import Unreadable
from onecycle.predict.stream import files_of, read_content

CHUNK_IMAGES = 1000  # approximate number of images in a chunk
# To reach a chunk of an archive, a process reads everything before it. This limit bounds the repeated reading.
MOST_CHUNKS_PER_ARCHIVE = 16
_DIGEST_BYTES = 12  # length of the hash of one image name


class ChunkFile(NamedTuple):
    """An image file, a slice of an archive's images, or a source that cannot be read."""

    path: str
    first: int = 0  # how many images of the archive come before the slice
    length: int | None = None  # images in the slice; None for a file
    reason: str | None = None  # why the file cannot be read; None if it can
    names: str | None = None  # one hash of all image names in the slice


@dataclass(frozen=True)
class Chunk:
    """Images that are predicted as one unit of work."""

    number: int
    files: tuple[ChunkFile, ...]

    @property
    def images(self) -> int:
        return sum(1 if file.length is None else file.length for file in self.files)


class ChunkImage(NamedTuple):
    """An encoded image, or why it cannot be read."""

    path: str
    member: str | None  # the image's name in the archive; None for a file
    content: bytes | Unreadable

    @property
    def where(self) -> str:
        return printable(self.path if self.member is None else f"{self.path}:{self.member}")


def split_into_chunks(sources: Iterable[str], batch_size: int, left_out: LeftOut | None = None) -> Iterator[Chunk]:
    """Split all images in `sources` into chunks. Sources are files, folders, patterns and archives.

    Listing the images reads each archive once. A full chunk of files holds a multiple of `batch_size` files, so that
    its batches are full. In folders and archives, files that are not images are counted in `left_out`.
    """
    left_out = LeftOut() if left_out is None else left_out
    chunk_size = batch_size * max(1, CHUNK_IMAGES // batch_size)
    number = 0
    files: list[ChunkFile] = []
    for path, problem in files_of(sources, left_out):
        if problem is None and path.name.lower().endswith(ARCHIVE_SUFFIXES) and os.path.isfile(path):
            slices = list(_slices(path, left_out))
        else:
            if problem is None and not os.path.lexists(path):
                problem = f"there is no file {printable(path)}; check the name"
            files.append(ChunkFile(str(path), reason=problem))
            slices = []
        if files and (slices or len(files) == chunk_size):
            yield Chunk(number, tuple(files))
            number, files = number + 1, []
        for archive_slice in slices:
            yield Chunk(number, (archive_slice,))
            number += 1
    if files:
        yield Chunk(number, tuple(files))


def _slices(path: Path, left_out: LeftOut) -> Iterator[ChunkFile]:
    in_archive = LeftOut()
    try:
        names = bytearray()
        for entry in entries_of(path):
            if entry.is_image:
                names += _digest(entry)
            else:
                in_archive.add_entry(entry)
    except InputError as error:
        yield ChunkFile(str(path), reason=str(error))
        return
    if not names:
        reason = in_archive.appended_to(f"{printable(path)}: no image found; check the name")
        yield ChunkFile(str(path), reason=reason)
    else:
        left_out.include(in_archive, f"{path}:")
    total = len(names) // _DIGEST_BYTES
    slice_size = max(CHUNK_IMAGES, -(-total // MOST_CHUNKS_PER_ARCHIVE))
    for first in range(0, total, slice_size):
        length = min(slice_size, total - first)
        own = names[first * _DIGEST_BYTES : (first + length) * _DIGEST_BYTES]
        yield ChunkFile(str(path), first, length, names=_hash(own))


def _digest(entry: Entry) -> bytes:
    """A hash of an image's name."""
    return hashlib.blake2b("/".join(entry.parts).encode(errors="surrogateescape"), digest_size=_DIGEST_BYTES).digest()


def _hash(digests: bytes | bytearray) -> str:
    return hashlib.blake2b(digests, digest_size=16).hexdigest()


def read_images(chunk: Chunk) -> Iterator[ChunkImage]:
    """The images of a chunk, in order.

    Raises:
        InputError: when an archive has changed since it was listed, or this machine finds none of the chunk's files.
    """
    listed = [file.path for file in chunk.files if file.reason is None]
    if listed and not any(map(os.path.lexists, listed)):
        raise InputError(
            f"{platform.node()} finds neither {printable(listed[0])} nor any other file of chunk {chunk.number}; put "
            "the files where all nodes can read them"
        )
    for file in chunk.files:
        if file.reason is not None:
            yield ChunkImage(file.path, None, Unreadable(file.reason))
        elif file.length is None:
            yield ChunkImage(file.path, None, read_content(Path(file.path)))
        else:
            yield from _read_slice(file, file.length)


def _read_slice(file: ChunkFile, length: int) -> Iterator[ChunkImage]:
    found = bytearray()
    images = (entry for entry in entries_of(Path(file.path)) if entry.is_image)
    for entry in islice(images, file.first, file.first + length):
        found += _digest(entry)
        content: bytes | Unreadable
        try:
            content = entry.read()
        except InputError as error:
            content = Unreadable(str(error))
        yield ChunkImage(file.path, "/".join(entry.parts), content)
    if _hash(found) != file.names:
        raise InputError(f"the images of {printable(file.path)} have changed since they were listed; use another --out")
