"""One's own images: `train/<class>/*` and `test/<class>/*`, in a folder or an archive."""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onecycle.dataset.cache import cached
from onecycle.dataset.entries import Entry, entries_of
from onecycle.dataset.image_set import ImageSet
from onecycle.errors import InputError
from onecycle.preprocessing import open_picture, to_square

SPLITS = ("train", "test")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"})
PROBLEMS_TOLD = 5  # in a message
_CACHE_VERSION = 1  # raised when decoding or the cached files change
_CHUNK = 64  # files read ahead, to keep a pool busy
_CHUNK_BYTES = 2**26  # at which no more are
_LARGE_BYTES = 50_000

Parts = tuple[str, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class Index:
    """Where each image goes: `rows` gives its split and its row there; `labels` are those of the rows."""

    classes: tuple[str, ...]
    rows: dict[Parts, tuple[str, int]]
    labels: dict[str, NDArray[np.int64]]


def read_image_folder(source: Path, input_size: int) -> tuple[ImageSet, ImageSet]:
    """The training and the test set of `source`, a folder or an archive, which may have one folder around the two.

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


def index_of(entries: Iterable[Entry], source: Path) -> Index:
    found: dict[str, dict[str, set[Parts]]] = {}  # split -> class -> images
    around: set[Parts] = set()
    for entry in entries:
        depth = next((i for i, part in enumerate(entry.parts[:2]) if part in SPLITS), None)
        if depth is None or (len(entry.parts) == depth + 1 and not entry.is_folder):
            continue
        around.add(entry.parts[:depth])
        classes = found.setdefault(entry.parts[depth], defaultdict(set))
        inside = entry.parts[depth + 1 :]
        if len(inside) > 1 or (inside and entry.is_folder):
            images = classes[inside[0]]
            if not entry.is_folder and Path(inside[-1]).suffix.lower() in SUFFIXES:
                images.add(entry.parts)
    if len(around) > 1:
        tops = ", ".join(sorted("/".join(top) or "the top itself" for top in around))
        raise InputError(f"{source}: train/ and test/ are in several places ({tops}); keep one pair")
    classes_of = _checked(found, source)
    rows: dict[Parts, tuple[str, int]] = {}
    labels: dict[str, NDArray[np.int64]] = {}
    for split in SPLITS:
        ordered = [(label, parts) for label, name in enumerate(classes_of) for parts in sorted(found[split][name])]
        rows |= {parts: (split, row) for row, (_, parts) in enumerate(ordered)}
        labels[split] = np.array([label for label, _ in ordered], np.int64)
    return Index(classes_of, rows, labels)


def _checked(found: dict[str, dict[str, set[Parts]]], source: Path) -> tuple[str, ...]:
    """The class names, when both splits have images of the same two classes or more."""
    for split in SPLITS:
        if split not in found:
            raise InputError(f"{source}: there is no {split}/ folder; put images in {split}/<class>/")
        if not found[split]:
            raise InputError(f"{source}: {split}/ has no class folders; put images in {split}/<class>/")
    for split in SPLITS:
        if empty := sorted(name for name, images in found[split].items() if not images):
            raise InputError(f"{source}: class folder {split}/{empty[0]} has no images; add some or remove it")
    train, test = (set(found[split]) for split in SPLITS)
    if different := sorted(train ^ test):
        here, there = ("train", "test") if different[0] in train else ("test", "train")
        raise InputError(
            f"{source}: train/ and test/ have different classes: {different[0]!r} is in {here}/ but not in {there}/; "
            "both need the same class folders"
        )
    if len(train) == 1:
        raise InputError(f"{source}: there is one class only, {min(train)!r}; a classifier needs two or more")
    for name in sorted(train):
        if not name.isprintable():
            raise InputError(f"{source}: the class name {name!r} cannot be printed; rename the folder")
    return tuple(sorted(train))


def _decode_all(source: Path, index: Index, size: int, folder: Path) -> None:
    """Fill `folder` with the arrays of both splits, in one pass over `source`, whatever its order."""
    (folder / "classes.json").write_text(json.dumps(index.classes))
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
        for image, square in decoded(source, index, partial(_square, size=size)):
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
    images = _encoded(source, index)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        while chunk := _chunk(images):
            # Threads take turns on small files and are slower there than one after the other.
            is_large = _size(chunk) > len(chunk) * _LARGE_BYTES
            results = (pool.map if is_large else map)(decode, chunk)
            yield from zip(chunk, results, strict=True)


def _chunk(images: Iterator[EncodedImage]) -> list[EncodedImage]:
    chunk: list[EncodedImage] = []
    for image in images:
        chunk.append(image)
        if len(chunk) == _CHUNK or _size(chunk) > _CHUNK_BYTES:
            break
    return chunk


def _size(chunk: Sequence[EncodedImage]) -> int:
    return sum(len(image.content) for image in chunk if isinstance(image.content, bytes))


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
            yield EncodedImage(*index.rows[entry.parts], content, where if where.isprintable() else ascii(where))


def _square(encoded: EncodedImage, size: int) -> NDArray[np.uint8] | InputError:
    try:
        return to_square(open_encoded(encoded), size)
    except InputError as error:
        return error


def open_encoded(encoded: EncodedImage) -> Image.Image:
    """The picture in it.

    Raises:
        InputError: when there is none that can be used.
    """
    if isinstance(encoded.content, InputError):
        raise encoded.content
    return open_picture(encoded.content, encoded.where)


def _read_decoded(folder: Path) -> tuple[ImageSet, ImageSet]:
    classes = tuple(json.loads((folder / "classes.json").read_text()))
    train, test = (
        ImageSet(
            # Copy on write: torch warns of arrays that cannot be written.
            np.asarray(np.load(folder / f"{split}_images.npy", mmap_mode="c")),
            np.load(folder / f"{split}_labels.npy"),
            classes,
        )
        for split in SPLITS
    )
    return train, test
