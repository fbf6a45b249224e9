"""What one should know of a data set before training on it: `onecycle check`."""

import hashlib
import itertools
import os
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onecycle.core.errors import InputError
from onecycle.data.preprocessing import conversions, to_square
from onecycle.data.readers.image_folder import sources_of
from onecycle.data.readers.loading import load_dataset
from onecycle.data.readers.search import locate
from onecycle.data.store.decoding import Encoded, each_decoded, open_encoded
from onecycle.data.store.folder_index import SPLITS, index_of
from onecycle.data.store.listing import Listing, listing_of, located
from onecycle.data.store.parts import images_in

MOST_SHARED = 0.01  # part of the test images that may be in the training set, too
MOST_CONTRADICTED = 0.01  # part of the training images that may be there again with another label
_SHOWN = 10  # of the pictures that are there more than once


@dataclass(frozen=True)
class NamedImage:
    """One image of the set, by the name that a person finds it by."""

    split: str
    name: str
    label: int


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """What was found. `problems` are the images that cannot be used, a line each."""

    source: str
    classes: tuple[str, ...]
    counts: dict[str, tuple[int, ...]]  # by split, of each class, with those that cannot be used
    problems: tuple[str, ...] = ()
    converted: dict[str, list[str]] = field(default_factory=dict)  # the images, by what is done to them
    repeated: tuple[tuple[NamedImage, ...], ...] = ()  # images of the very same pixels, at the size used in training

    def shared(self) -> int:
        """Test images that are in the training set, too."""
        both = (group for group in self.repeated if len({image.split for image in group}) > 1)
        return sum(image.split == "test" for group in both for image in group)

    def contradicted(self) -> int:
        """Training images that are there again with another label."""
        train = ([image for image in group if image.split == "train"] for group in self.repeated)
        return sum(len(group) for group in train if len({image.label for image in group}) > 1)

    def dangers(self) -> list[str]:
        """Why training on the set would fail, or its result would mislead; empty where it is safe."""
        train, test = (sum(self.counts[split]) for split in SPLITS)
        found = {
            f"{len(self.problems):,} images cannot be used": bool(self.problems),
            f"{self.shared():,} of {test:,} test images are in the training set, too": self.shared()
            > MOST_SHARED * test,
            f"{self.contradicted():,} of {train:,} training images are there again with another label": (
                self.contradicted() > MOST_CONTRADICTED * train
            ),
        }
        return [words for words, holds in found.items() if holds]

    def lines(self) -> list[str]:
        """All of it, for people."""
        width = max(len(name) for name in ("class", *self.classes))
        shared, contradicted = self.shared(), self.contradicted()
        conversions = (
            f"{len(names):,} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for what, names in self.converted.items()
        )
        again = (
            "  " + " = ".join(f"{image.name} ({self.classes[image.label]})" for image in group)
            for group in self.repeated[:_SHOWN]
        )
        return [
            self.source,
            "",
            f"{'class':<{width}}" + "".join(f"{split:>10}" for split in self.counts),
            *(
                f"{name:<{width}}" + "".join(f"{count:>10,}" for count in counts)
                for name, *counts in zip(self.classes, *self.counts.values(), strict=True)
            ),
            "",
            f"Images that cannot be used: {len(self.problems):,}",
            *(f"  {problem}" for problem in self.problems),
            *conversions,
            f"Pictures that are there more than once: {len(self.repeated):,}; {shared:,} test images are in the "
            f"training set, too, and {contradicted:,} training images are there again with another label",
            *again,
            *([f"  … and {len(self.repeated) - _SHOWN:,} more"] if len(self.repeated) > _SHOWN else []),
            "",
            f"Not safe to train on: {'; '.join(dangers)}" if (dangers := self.dangers()) else "Safe to train on",
        ]


def check(data: str | os.PathLike[str], *, input_size: int = 32) -> DataCheck:
    """Decode every image of the set that `data` names, as `load_dataset` does, and look at what is there.

    Raises:
        InputError: when there is no such set, or its folders or files are not as they must be.
    """
    if data not in ("cifar10", "digits") and (found := locate(Path(data))).layout == "images":
        return _check_folder(found.path, input_size)
    dataset = load_dataset(data, input_size=input_size)
    sets = {"train": dataset.train, "test": dataset.evaluation}
    named = [
        NamedImage(split, f"{split} image {row}", int(label))
        for split, images in sets.items()
        for row, label in enumerate(images.labels)
    ]
    digests = [_digest(pixels) for images in sets.values() for pixels in images.images]
    return DataCheck(
        source=dataset.source,
        classes=dataset.train.classes,
        counts={split: _counts(images.labels, dataset.train.classes) for split, images in sets.items()},
        repeated=tuple(tuple(named[place] for place in group) for group in _groups(b"".join(digests))),
    )


def _check_folder(source: Path, size: int) -> DataCheck:
    listings = [listing_of(path) for path in sources_of(source)]
    index = index_of(listings, source)
    splits, labels = (np.full(sum(map(len, listings)), -1) for _ in range(2))  # of each image
    for number, split in enumerate(SPLITS):
        splits[index.images[split]] = number
        labels[index.images[split]] = index.labels[split]
    problems: list[str] = []
    converted: dict[str, list[str]] = defaultdict(list)
    digests, digested = bytearray(), array("q")  # objects would have more bytes than the pixels
    for image, seen in each_decoded(_images_again(listings, splits >= 0), partial(_look, size=size)):
        if isinstance(seen, InputError):
            problems.append(str(seen))
            continue
        digest, changes = seen
        for change in changes:
            converted[change].append(image.where)
        digests += digest
        digested.append(image.number)

    def named(group: NDArray[np.int64]) -> tuple[NamedImage, ...]:
        images = np.asarray(digested)[group]
        return tuple(
            NamedImage(SPLITS[splits[image]], listing.where(path), int(labels[image]))
            for image, (listing, path) in zip(images, located(listings, images), strict=True)
        )

    return DataCheck(
        source=f"image folder {source}",
        classes=index.classes,
        counts={split: _counts(labels, index.classes) for split, labels in index.labels.items()},
        problems=tuple(problems),
        converted=dict(sorted(converted.items())),
        repeated=tuple(map(named, _groups(digests))),
    )


class _NumberedImage(NamedTuple):
    """An image's file, as in `parts.EncodedImage`, and its number through all listings."""

    number: int
    content: bytes | InputError
    where: str


def _images_again(listings: Sequence[Listing], wanted: NDArray[np.bool_]) -> Iterator[_NumberedImage]:
    """Those that are wanted of the images of `listings`."""
    numbers = itertools.count()
    for listing in listings:
        again = Listing(listing.source)
        for image, number in zip(images_in(again), numbers, strict=False):
            if number < len(wanted) and wanted[number]:
                yield _NumberedImage(number, *image)
        if again != listing:
            raise InputError(f"{listing.source}: changed while it was read; try again")


def _look(encoded: Encoded, size: int) -> tuple[bytes, tuple[str, ...]] | InputError:
    try:
        image = open_encoded(encoded)
        return _digest(to_square(image, size)), conversions(image, encoded.where)
    except InputError as error:
        return error


def _digest(pixels: NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()


def _counts(labels: NDArray[np.int64], classes: Sequence[str]) -> tuple[int, ...]:
    return tuple(np.bincount(labels, minlength=len(classes)).tolist())


def _groups(digests: bytes | bytearray) -> list[NDArray[np.int64]]:
    """The places of those that are there more than once, together, in the order of the first of each."""
    halves = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    order = np.lexsort(halves.T)
    begins = np.flatnonzero((halves[order][1:] != halves[order][:-1]).any(axis=1)) + 1
    groups = (group for group in np.split(order, begins) if len(group) > 1)
    return sorted(groups, key=lambda group: int(group[0]))
