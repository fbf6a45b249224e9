"""Load a data set by name or path: `load_dataset`."""

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from onecycle.core.cache import cache_folder
from onecycle.core.errors import InputError, OnecycleError
from onecycle.data import splits
from onecycle.data.image_files import to_square
from onecycle.data.readers.cifar10 import read_cifar10
from onecycle.data.readers.digits import load_digits
from onecycle.data.readers.download import CIFAR10_BINARY, CIFAR10_PYTHON, download, matches
from onecycle.data.readers.image_folder import read_image_folder
from onecycle.data.readers.image_set import ImageSet
from onecycle.data.readers.search import Found, find_cifar10, locate
from onecycle.data.store.index import DRAWN_SHARE

_ALL_GRAY = "All training images are gray, so the network converts every image to gray"


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """A training set and an evaluation set, with notes that are shown with the results."""

    name: str  # "cifar10", "digits" or the name of the image folder; safe as a file name
    train: ImageSet
    evaluation: ImageSet
    evaluated_on: Literal["test", "validation"]
    source: str  # where the data comes from, in words
    notes: tuple[str, ...] = ()
    drawn: tuple[str, ...] | None = None  # names of the test images, if they were drawn from the training set

    @cached_property
    def fingerprint(self) -> str:
        """The sha256, in hex, of both sets after splits and limits."""
        both = f"{self.train.fingerprint} {self.evaluated_on} {self.evaluation.fingerprint}"
        return hashlib.sha256(both.encode()).hexdigest()


def load_dataset(
    data: str | os.PathLike[str] | None = None,
    *,
    validation: int = 0,
    limit: int | None = None,
    seed: int = 0,
    input_size: int = 32,
) -> Dataset:
    """Load the data set with the name or path `data`. Images are uint8 `[N,input_size,input_size,3]`.

    None or "cifar10" is CIFAR-10 from `$ONECYCLE_DATA`, `./data` or the user's cache. If none of them has CIFAR-10, it
    is downloaded. "digits" is the embedded set. "auto" is CIFAR-10 if it is available, otherwise digits. Anything else
    is a path: to CIFAR-10 (an official archive, an unpacked archive, or a folder with either), or to an image folder or
    an archive of an image folder.

    `validation` images are split off the training set and replace the test set. Then `limit` images of each set are
    kept. Both selections are stratified and depend on `seed`.

    Raises:
        InputError: when the data is missing, damaged, in an unknown format, or too small for `validation` or `limit`.
        StorageError: when the cache cannot be written.
    """
    if input_size < 1:
        raise InputError(f"input_size is {input_size}; it must be 1 or more")
    dataset = _resized(_whole(data, input_size), input_size)
    if validation:
        train, held_out = splits.split_validation(dataset.train, validation, seed=seed)
        dataset = replace(dataset, train=train, evaluation=held_out, evaluated_on="validation")
    if limit is not None:
        train = splits.limit_images(dataset.train, limit, seed=seed)
        evaluation = splits.limit_images(dataset.evaluation, limit, seed=seed)
        dataset = replace(dataset, train=train, evaluation=evaluation)
    if dataset.train.is_gray:
        dataset = replace(dataset, notes=(*dataset.notes, _ALL_GRAY))
    return dataset


def _whole(data: str | os.PathLike[str] | None, input_size: int) -> Dataset:
    if isinstance(data, str) and data in EMBEDDED:
        return EMBEDDED[data]()
    if data is not None and is_path(data):
        return _read(locate(Path(data)), input_size)
    if found := find_cifar10():
        return _read(found, input_size)
    try:
        archive = download(CIFAR10_BINARY, cache_folder())
    except OnecycleError as error:
        if data == "auto":
            return _digits(instead_of_cifar10_because=str(error))
        raise InputError(
            f"CIFAR-10 was not found, and {error}. Download {CIFAR10_BINARY.url} and give its path with --data "
            "or $ONECYCLE_DATA, or use --data digits, which needs no download"
        ) from error
    return _read(Found(archive, "binary"), input_size)


def _digits(*, instead_of_cifar10_because: str | None = None) -> Dataset:
    train, test = load_digits()
    notes: tuple[str, ...] = ()
    if instead_of_cifar10_because:
        notes = (
            "THIS IS NOT CIFAR-10 but scikit-learn's handwritten digits, so the accuracy says nothing about CIFAR-10. "
            f"CIFAR-10 was not found, and {instead_of_cifar10_because}",
        )
    source = "scikit-learn's handwritten digits, embedded"
    return Dataset(name="digits", train=train, evaluation=test, evaluated_on="test", source=source, notes=notes)


EMBEDDED: Mapping[str, Callable[[], Dataset]] = {"digits": _digits}
"""Data sets that need no files, by name."""


def is_path(data: str | os.PathLike[str]) -> bool:
    """Whether `data` is a path and not the name of a data set."""
    return data not in ("cifar10", "auto", *EMBEDDED)


def _read(found: Found, input_size: int) -> Dataset:
    if found.layout == "images":
        train, test, drawn, left_out = read_image_folder(found.path, input_size)
        source = f"image folder {found.path}"
        name, notes = _safe_name(found.path), _folder_notes(drawn, left_out)
    else:
        drawn = None
        train, test, contents = read_cifar10(found.path, found.layout)
        source = f"CIFAR-10, {found.layout} version, from {found.path}"
        name, notes = "cifar10", _cifar10_notes(found.path, contents, len(train), len(test))
    return Dataset(
        name=name, train=train, evaluation=test, evaluated_on="test", source=source, notes=notes, drawn=drawn
    )


def _folder_notes(drawn: tuple[str, ...] | None, left_out: tuple[str, ...]) -> tuple[str, ...]:
    notes = []
    if drawn is not None:
        notes.append(
            f"There is no test set, so {DRAWN_SHARE:.0%} of each class, {len(drawn):,} images, were drawn for testing. "
            "Every run on these files draws the same images; drawn_test_images.json lists them"
        )
    if left_out:
        notes.append(f"Left out: {'; '.join(left_out)}")
    return tuple(notes)


def _cifar10_notes(path: Path, contents: str, train: int, test: int) -> tuple[str, ...]:
    notes = []
    if path.is_dir():
        notes.append(f"Unverified: {path.name} is unpacked, so it has no official checksum (its sha256: {contents})")
    elif not any(matches(path, official) for official in (CIFAR10_BINARY, CIFAR10_PYTHON)):
        with path.open("rb") as file:
            fingerprint = hashlib.file_digest(file, "sha256").hexdigest()
        notes.append(
            f"Unverified: {path.name} does not have the checksum of an official CIFAR-10 archive "
            f"(its sha256: {fingerprint})"
        )
    if (train, test) != (50_000, 10_000):
        notes.append(f"Not all of CIFAR-10: {train:,} training and {test:,} test images, not 50,000 and 10,000")
    return tuple(notes)


def _safe_name(path: Path) -> str:
    name = path.resolve().name
    if not path.is_dir():
        name = re.sub(r"(\.tar\.gz|\.tgz|\.tar|\.zip)$", "", name, flags=re.IGNORECASE)
    name = re.sub(r"[^\w.-]+", "-", name)[:80].strip("-.") or "images"
    return f"{name}-images" if name in ("cifar10", "digits") else name  # avoids the names of the built-in data sets


def _resized(dataset: Dataset, size: int) -> Dataset:
    def resized(images: ImageSet) -> ImageSet:
        if images.images.shape[1:3] == (size, size):
            return images
        pixels = np.empty((len(images), size, size, 3), np.uint8)
        for row, image in enumerate(images.images):
            pixels[row] = to_square(Image.fromarray(image), size)
        return ImageSet(pixels, images.labels, images.classes)

    return replace(dataset, train=resized(dataset.train), evaluation=resized(dataset.evaluation))
