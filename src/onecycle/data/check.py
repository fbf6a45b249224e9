"""Validate a data set before training on it: `onecycle check`."""

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
from onecycle.data.image_files import conversions, to_square
from onecycle.data.readers.image_folder import indexed, source_in_words, sources_of
from onecycle.data.readers.label_file import find_labels
from onecycle.data.readers.loading import is_path, load_dataset
from onecycle.data.readers.search import locate
from onecycle.data.store.decode import Encoded, Unreadable, each_decoded, open_encoded
from onecycle.data.store.listing import Listing, listing_of, located
from onecycle.data.store.parallel_decode import images_in

MOST_SHARED = 0.01  # accepted fraction of test images that are also in the training set
MOST_CONTRADICTED = 0.01  # accepted fraction of training images that have a copy with another label
_LISTED = 10  # the printed result shows at most this many groups of identical images


@dataclass(frozen=True)
class NamedImage:
    """The split, the label and the readable name of an image."""

    split: str
    name: str
    label: int


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """The result of the check. `problems` has one line for each image that cannot be used."""

    source: str
    classes: tuple[str, ...]
    counts: dict[str, tuple[int, ...]]  # images by split and class, including images that cannot be used
    problems: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()  # a line for each reason why files are not used
    converted: dict[str, list[str]] = field(default_factory=dict)  # names of images, by the conversion that they need
    repeated: tuple[tuple[NamedImage, ...], ...] = ()  # groups of images with identical pixels at the training size

    def shared(self) -> dict[str, int]:
        """The number of images of each set for evaluation that are also in the training set."""
        both = [group for group in self.repeated if any(image.split == "train" for image in group)]
        return {
            split: sum(image.split == split for group in both for image in group)
            for split in self.counts
            if split != "train"
        }

    def contradicted(self) -> int:
        """The number of training images that have a copy with another label."""
        train = ([image for image in group if image.split == "train"] for group in self.repeated)
        return sum(len(group) for group in train if len({image.label for image in group}) > 1)

    def dangers(self) -> list[str]:
        """The reasons why training would fail or its result would mislead. Empty if there are none."""
        images = {split: sum(counts) for split, counts in self.counts.items()}
        found = {
            f"{len(self.problems):,} images cannot be used": bool(self.problems),
            **{
                f"{shared:,} of {images[split]:,} {split} images are also in the training set": (
                    shared > MOST_SHARED * images[split]
                )
                for split, shared in self.shared().items()
            },
            f"{self.contradicted():,} of {images['train']:,} training images have a copy with another label": (
                self.contradicted() > MOST_CONTRADICTED * images["train"]
            ),
        }
        return [words for words, holds in found.items() if holds]

    def lines(self) -> list[str]:
        """The result as lines of text."""
        width = max(len(name) for name in ("class", *self.classes))
        shared = "".join(
            f"{count:,} {split} images are also in the training set, " for split, count in self.shared().items()
        )
        conversions = (
            f"{len(names):,} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for what, names in self.converted.items()
        )
        again = (
            "  " + " = ".join(f"{image.name} ({self.classes[image.label]})" for image in group)
            for group in self.repeated[:_LISTED]
        )
        return [
            self.source,
            "",
            f"{'class':<{width}}" + "".join(f"{split:>12}" for split in self.counts),
            *(
                f"{name:<{width}}" + "".join(f"{count:>12,}" for count in counts)
                for name, *counts in zip(self.classes, *self.counts.values(), strict=True)
            ),
            "",
            f"Images that cannot be used: {len(self.problems):,}",
            *(f"  {problem}" for problem in self.problems),
            *(["Left out:", *(f"  {line}" for line in self.left_out)] if self.left_out else []),
            *conversions,
            f"Images with copies: {len(self.repeated):,}; {shared}and {self.contradicted():,} training images have a "
            "copy with another label",
            *again,
            *([f"  … and {len(self.repeated) - _LISTED:,} more"] if len(self.repeated) > _LISTED else []),
            "",
            f"Not safe to train on: {'; '.join(dangers)}" if (dangers := self.dangers()) else "Safe to train on",
        ]


def check(data: str | os.PathLike[str], *, labels: str | None = None, input_size: int = 32) -> DataCheck:
    """Decode and check every image of the data set `data`, a name or path, with `labels`, as for `load_dataset`.

    Raises:
        InputError: when there is no such data set, or its folder structure is wrong.
    """
    if is_path(data) and (found := locate(Path(data), labels)).layout == "images":
        return _check_folder(found.path, input_size, labels)
    dataset = load_dataset(data, labels=labels, input_size=input_size)
    sets = dataset.by_split
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
        repeated=tuple(tuple(named[index] for index in group) for group in _groups(b"".join(digests))),
    )


def _check_folder(source: Path, size: int, label_file: str | None) -> DataCheck:
    paths, beside = sources_of(source)
    listings = [listing_of(path) for path in paths]
    table = find_labels(source, label_file)
    if table and table.inside and paths != [source]:
        beside.discount(table.inside)
    index = indexed(listings, source, table, is_given=label_file is not None)
    # The split and label of each image; -1 if the image is not used.
    splits, labels = (np.full(sum(map(len, listings)), -1) for _ in range(2))
    for number, split in enumerate(index.images):
        splits[index.images[split]] = number
        labels[index.images[split]] = index.labels[split]
    names = list(index.images)
    problems: list[str] = []
    converted: dict[str, list[str]] = defaultdict(list)
    digests, digested = bytearray(), array("q")  # lists would need about four times as much memory
    for image, checked in each_decoded(_wanted_images(listings, splits >= 0), partial(_check_image, size=size)):
        if isinstance(checked, Unreadable):
            problems.append(checked.reason)
            continue
        digest, changes = checked
        for change in changes:
            converted[change].append(image.where)
        digests += digest
        digested.append(image.number)

    def named(group: NDArray[np.int64]) -> tuple[NamedImage, ...]:
        images = np.asarray(digested)[group]
        return tuple(
            NamedImage(names[splits[image]], listing.where(path), int(labels[image]))
            for image, (listing, path) in zip(images, located(listings, images), strict=True)
        )

    return DataCheck(
        source=source_in_words(source, index.layout),
        classes=index.classes,
        counts={split: _counts(labels, index.classes) for split, labels in index.labels.items()},
        problems=tuple(problems),
        left_out=(*beside.lines(), *index.left_out.lines()),
        converted=dict(sorted(converted.items())),
        repeated=tuple(map(named, _groups(digests))),
    )


class _NumberedImage(NamedTuple):
    """An encoded image with its number. Images are numbered consecutively across all listings."""

    number: int
    content: bytes | Unreadable
    where: str


def _wanted_images(listings: Sequence[Listing], wanted: NDArray[np.bool_]) -> Iterator[_NumberedImage]:
    """Read the sources of `listings` again, and yield the images for which `wanted` is True."""
    numbers = itertools.count()
    for listing in listings:
        again = Listing(listing.source)
        for image, number in zip(images_in(again), numbers, strict=False):
            if number < len(wanted) and wanted[number]:
                yield _NumberedImage(number, *image)
        if again != listing:
            raise InputError(f"{listing.source} changed while it was read; try again")


def _check_image(encoded: Encoded, size: int) -> tuple[bytes, tuple[str, ...]] | Unreadable:
    """The digest of an image's pixels, and the conversions it needs. `Unreadable` if the image cannot be used."""
    try:
        image = open_encoded(encoded)
        return _digest(to_square(image, size)), conversions(image, encoded.where)
    except InputError as error:
        return Unreadable(str(error))


def _digest(pixels: NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()


def _counts(labels: NDArray[np.int64], classes: Sequence[str]) -> tuple[int, ...]:
    return tuple(np.bincount(labels, minlength=len(classes)).tolist())


def _groups(digests: bytes | bytearray) -> list[NDArray[np.int64]]:
    """The indices of each digest (16 bytes) that occurs more than once, as groups in the order of their first index."""
    halves = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    order = np.lexsort(halves.T)
    starts = np.flatnonzero((halves[order][1:] != halves[order][:-1]).any(axis=1)) + 1
    groups = (group for group in np.split(order, starts) if len(group) > 1)
    return sorted(groups, key=lambda group: int(group[0]))
