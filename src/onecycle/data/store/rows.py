"""Read images that a file stores as rows of a table or an array, and decode them into the cache."""

import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onecycle.core.errors import InputError
from onecycle.core.files import file_identity
from onecycle.data.readers.sets import Sets
from onecycle.data.store.cache import cached, look_up, unfinished_folder
from onecycle.data.store.decode import Unreadable, decode_square, each_decoded, unusable
from onecycle.data.store.mapped import read_set, write_set

_CACHE_VERSION = 1  # increase it when decoding or the format of the cached files changes
_AT_ONCE = 2**22  # bytes of decoded images in memory

Content = bytes | NDArray[np.uint8] | Unreadable
"""The bytes of an image file, or pixels `[H,W]` or `[H,W,3]`, or the reason why there is no image."""


class RowImage(NamedTuple):
    """An image in a row, not decoded yet. `where` names the row in messages."""

    content: Content
    where: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """The images of a split. `labels` is int64 `[N]`. `names` and `contents` yield the N names and images, in order."""

    labels: NDArray[np.int64]
    names: Callable[[], Iterator[str]]
    contents: Callable[[], Iterator[Content]]


@dataclass(frozen=True, kw_only=True, eq=False)
class RowSets:
    """The images of a data set, by split: "train", and perhaps "validation" and "test"."""

    source: str  # a description with the format and the path, such as "NumPy archive data.npz"
    prefix: str  # what messages put before the name of an image
    path: Path
    files: Sequence[Path]  # all files that are read
    classes: tuple[str, ...]
    by_split: Mapping[str, Rows]
    name: str | None = None  # `name`, `notes` and `left_out` are passed on to `Sets`
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def images(self, split: str) -> Iterator[RowImage]:
        """Yield the images of `split`, in order."""
        rows = self.by_split[split]
        for name, content in zip(rows.names(), rows.contents(), strict=True):
            yield RowImage(content, f"{self.prefix}{name}")

    def fingerprint(self) -> str:
        """A string that changes when a file changes, or when different labels or splits are read from the files."""
        known = [[os.fspath(file.resolve()), *file_identity(file)] for file in self.files]
        digest = hashlib.sha256(json.dumps([known, self.classes, self.left_out]).encode())
        for split, rows in self.by_split.items():
            digest.update(f"{split} {len(rows.labels)} ".encode())
            digest.update(np.ascontiguousarray(rows.labels, "<i8").data)
        return digest.hexdigest()


def read_rows(rows: RowSets, size: int) -> Sets:
    """Decode all images of `rows` to `size`×`size` pixels, a few at a time, into memory-mapped files of the cache.

    Images stay in the order of the rows. They are decoded once.

    Raises:
        InputError: when images cannot be used. The message lists the first few.
        StorageError: when the cache cannot be written.
    """
    fingerprint = rows.fingerprint()
    key = hashlib.sha256(json.dumps([_CACHE_VERSION, size, fingerprint]).encode()).hexdigest()[:32]
    read = partial(_read, rows)
    if found := look_up(key, read):
        return found
    with unfinished_folder(key, rows.path) as unfinished:
        return cached(key, partial(_write, rows, size, fingerprint), read, within=unfinished)


def _write(rows: RowSets, size: int, fingerprint: str, folder: Path) -> None:
    problems: list[str] = []
    for split, of_split in rows.by_split.items():
        shape = (len(of_split.labels), size, size, 3)
        parts = _decoded(rows.images(split), shape, problems)
        write_set(folder, split, parts, shape, of_split.labels, rows.classes, of_split.names())
    if problems:
        raise unusable(rows.path, problems, sum(len(of_split.labels) for of_split in rows.by_split.values()))
    if rows.fingerprint() != fingerprint:
        raise InputError(f"{rows.path}: changed while it was read; try again")


def _decoded(images: Iterator[RowImage], shape: Sequence[int], problems: list[str]) -> Iterator[NDArray[np.uint8]]:
    """Yield the decoded `images` in parts, uint8 `[n,S,S,3]`. `shape` is the shape of all parts together.

    An unusable image is yielded as zeros, and its reason is added to `problems`.
    """
    squares = each_decoded(images, partial(decode_square, size=shape[1]))
    at_once = max(1, _AT_ONCE // math.prod(shape[1:]))
    while part := list(itertools.islice(squares, at_once)):
        pixels = np.zeros((len(part), *shape[1:]), np.uint8)
        for row, (_, square) in zip(pixels, part, strict=True):
            if isinstance(square, Unreadable):
                problems.append(square.reason)
            else:
                row[:] = square
        yield pixels


def _read(rows: RowSets, folder: Path) -> Sets:
    sets = {split: read_set(folder, split) for split in rows.by_split}
    return Sets(
        source=rows.source,
        name=rows.name,
        notes=rows.notes,
        left_out=rows.left_out,
        train=sets["train"],
        validation=sets.get("validation"),
        test=sets.get("test"),
    )
