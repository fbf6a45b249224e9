"""One's own images, in a folder or an archive: `train/<class>/*` and `test/<class>/*`, or just `<class>/*`.

Where there is no test set one is drawn: the same from the same files, whatever else differs.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import numpy as np

from onecycle.dataset.cache import cached
from onecycle.dataset.decoding import each_decoded, square_of
from onecycle.dataset.entries import entries_of
from onecycle.dataset.folder_index import SPLITS, Index, index_of
from onecycle.dataset.image_set import ImageSet
from onecycle.errors import InputError
from onecycle.files import shown

PROBLEMS_TOLD = 5  # in a message
_CACHE_VERSION = 2  # raised when decoding or the cached files change

T = TypeVar("T")


class FolderSets(NamedTuple):
    """What is in an image folder; `drawn` names the test images, where the test set was drawn."""

    train: ImageSet
    test: ImageSet
    drawn: tuple[str, ...] | None


def read_image_folder(source: Path, input_size: int) -> FolderSets:
    """The training and the test set of `source`, a folder or an archive, which may have one folder around its own.

    Images are uint8 `[N,input_size,input_size,3]`, ordered by class and file name, in files mapped into memory
    (copy on write); classes are the folders' names, sorted. They are decoded once, into the user's cache.

    Raises:
        InputError: the folders are not as they must be, or there are images that cannot be used; the message names
            them, or the first few.
    """
    if source.is_dir():
        index = index_of(entries_of(source), source)
        key = _folder_key(source, index)
    else:
        index = None
        with source.open("rb") as file:
            key = hashlib.file_digest(file, "sha256").hexdigest()
    key = hashlib.sha256(json.dumps([_CACHE_VERSION, input_size, key]).encode()).hexdigest()[:32]

    def write(folder: Path) -> None:
        _decode_all(source, index or index_of(entries_of(source), source), input_size, folder)

    return cached(key, write, _read_decoded)


def _folder_key(source: Path, index: Index) -> str:
    digest = hashlib.sha256(os.fsencode(source.resolve()))
    root = os.fspath(source)
    for parts in sorted(index.rows):
        stat = os.stat(os.path.join(root, *parts))
        digest.update(json.dumps([parts, stat.st_size, stat.st_mtime_ns]).encode())
    return digest.hexdigest()


def _decode_all(source: Path, index: Index, size: int, folder: Path) -> None:
    """Fill `folder` with the arrays of both splits, in one pass over `source`, whatever its order."""
    (folder / "classes.json").write_text(json.dumps(index.classes))
    drawn = ["/".join(parts) for parts, (split, _) in index.rows.items() if split == "test"]  # in the order of the rows
    (folder / "drawn.json").write_text(json.dumps(drawn if index.is_drawn else None))
    with ExitStack() as stack:
        files: dict[str, tuple[IO[bytes], int]] = {}
        for split, labels in index.labels.items():
            np.save(folder / f"{split}_labels.npy", labels)
            file = stack.enter_context((folder / f"{split}_images.npy").open("wb"))
            shape = (len(labels), size, size, 3)
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            files[split] = file, file.tell()
        problems: list[str] = []
        missing = len(index.rows)
        for image, square in decoded(source, index, partial(square_of, size=size)):
            missing -= 1
            if isinstance(square, InputError):
                problems.append(str(square))
                continue
            to, start = files[image.split]
            # Written, not mapped: a full disk is then an error instead of a killed process.
            to.seek(start + image.row * square.nbytes)
            to.write(square.tobytes())
    if missing:
        raise InputError(f"{source}: {missing} images went away while it was read; try again")
    if problems:
        more = f", and {len(problems) - PROBLEMS_TOLD} more" if len(problems) > PROBLEMS_TOLD else ""
        raise InputError(
            f"{source}: {len(problems)} of {len(index.rows):,} images cannot be used: "
            f"{' '.join(problems[:PROBLEMS_TOLD])}{more}. `onecycle check {source}` lists all"
        )


class EncodedImage(NamedTuple):
    """A file with an image: where it goes, and the name that messages give it."""

    split: str
    row: int
    content: bytes | InputError  # why it could not be read
    where: str


def decoded(source: Path, index: Index, decode: Callable[[EncodedImage], T]) -> Iterator[tuple[EncodedImage, T]]:
    """Every image of `index` with what `decode` makes of it, in one pass over `source`, whatever its order."""
    return each_decoded(_encoded(source, index), decode)


def _encoded(source: Path, index: Index) -> Iterator[EncodedImage]:
    top = f"{source}/" if source.is_dir() else f"{source}:"
    for entry in entries_of(source):
        if not entry.is_folder and entry.parts in index.rows:
            content: bytes | InputError
            try:
                content = entry.read()
            except InputError as error:
                content = error
            where = top + "/".join(entry.parts)
            yield EncodedImage(*index.rows[entry.parts], content, shown(where))


def _read_decoded(folder: Path) -> FolderSets:
    classes = tuple(json.loads((folder / "classes.json").read_text()))
    drawn = json.loads((folder / "drawn.json").read_text())
    train, test = (
        ImageSet(
            # Copy on write: torch warns of arrays that cannot be written.
            np.asarray(np.load(folder / f"{split}_images.npy", mmap_mode="c")),
            np.load(folder / f"{split}_labels.npy"),
            classes,
        )
        for split in SPLITS
    )
    return FolderSets(train, test, None if drawn is None else tuple(drawn))
