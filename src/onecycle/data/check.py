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
from onecycle.data.readers.formats import ReadOptions, RowFormat
from onecycle.data.readers.image_folder import ImageFolder, indexed, source_in_words, sources_of
from onecycle.data.readers.image_names import ImageNames
from onecycle.data.readers.label_file import find_labels
from onecycle.data.readers.loading import is_path, load_dataset
from onecycle.data.readers.search import locate
from onecycle.data.splits import DRAWN_SHARE, drawn_for_test
from onecycle.data.store.decode import Encoded, Unreadable, each_decoded, open_encoded
from onecycle.data.store.listing import Listing, listing_of, located
from onecycle.data.store.parallel_decode import images_in
from onecycle.data.store.rows import RowSets

MOST_SHARED = 0.01  # accepted fraction of test or validation images that are also in the training set
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
    is_drawn: bool = False  # whether the test set would be drawn from the training images
    repeated: tuple[tuple[NamedImage, ...], ...] = ()  # groups of images with identical pixels at the training size

    def shared(self) -> dict[str, int]:
        """For each split except train, the number of its images that are also in the training set."""
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
        shared = " and ".join(f"{count:,} {split}" for split, count in self.shared().items())
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
            *(
                [f"There is no test set: {DRAWN_SHARE:.0%} of each class are drawn for testing"]
                if self.is_drawn
                else []
            ),
            "",
            f"Images that cannot be used: {len(self.problems):,}",
            *(f"  {problem}" for problem in self.problems),
            *(["Left out:", *(f"  {line}" for line in self.left_out)] if self.left_out else []),
            *conversions,
            f"Images with copies: {len(self.repeated):,}; {shared} images are also in the training set, and "
            f"{self.contradicted():,} training images have a copy with another label",
            *again,
            *([f"  … and {len(self.repeated) - _LISTED:,} more"] if len(self.repeated) > _LISTED else []),
            "",
            f"Not safe to train on: {'; '.join(dangers)}" if (dangers := self.dangers()) else "Safe to train on",
        ]


def check(
    data: str | os.PathLike[str], *, labels: str | None = None, input_size: int = 32, coarse: bool = False
) -> DataCheck:
    """Decode and check every image of a data set. `data` is its name or path. The options are those of `load_dataset`.

    Raises:
        InputError: when there is no such data set, or its structure is wrong.
    """
    if is_path(data):
        found = locate(Path(data), labels)
        if isinstance(found.format, ImageFolder):
            return _check_folder(found.path, input_size, labels)
        if isinstance(found.format, RowFormat):
            return _check_rows(found.format.rows(found.path, ReadOptions(size=input_size, coarse=coarse)), input_size)
    dataset = load_dataset(data, labels=labels, input_size=input_size, coarse=coarse)
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


@dataclass
class _Findings:
    """What was found in the images that are checked. Images are numbered from 0."""

    problems: list[str] = field(default_factory=list)
    converted: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    # Lists would need about four times as much memory.
    digests: bytearray = field(default_factory=bytearray)
    digested: "array[int]" = field(default_factory=lambda: array("q"))

    def add(self, image: int, where: str, checked: tuple[bytes, tuple[str, ...]] | Unreadable) -> None:
        """Add `checked`, the result of `_check_image` for the image with the number `image` and the name `where`."""
        if isinstance(checked, Unreadable):
            self.problems.append(checked.reason)
            return
        digest, changes = checked
        for change in changes:
            self.converted[change].append(where)
        self.digests += digest
        self.digested.append(image)

    def groups(self) -> Iterator[NDArray[np.int64]]:
        """Yield the image numbers of each group of images with identical pixels."""
        return (np.asarray(self.digested)[group] for group in _groups(self.digests))


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
    findings = _Findings()
    for image, checked in each_decoded(_wanted_images(listings, splits >= 0), partial(_check_image, size=size)):
        findings.add(image.number, image.where, checked)

    def named(images: NDArray[np.int64]) -> tuple[NamedImage, ...]:
        return tuple(
            NamedImage(names[splits[image]], listing.where(path), int(labels[image]))
            for image, (listing, path) in zip(images, located(listings, images), strict=True)
        )

    return DataCheck(
        source=source_in_words(source, index.layout),
        classes=index.classes,
        counts={split: _counts(labels, index.classes) for split, labels in index.labels.items()},
        problems=tuple(findings.problems),
        left_out=(*beside.lines(), *index.left_out.lines()),
        is_drawn=index.is_drawn,
        converted=dict(sorted(findings.converted.items())),
        repeated=tuple(map(named, findings.groups())),
    )


def _check_rows(rows: RowSets, size: int) -> DataCheck:
    findings = _Findings()
    images = itertools.chain.from_iterable(map(rows.images, rows.by_split))
    for number, (image, checked) in enumerate(each_decoded(images, partial(_check_image, size=size))):
        findings.add(number, image.where, checked)
    names = ImageNames.of(itertools.chain.from_iterable(of_split.names() for of_split in rows.by_split.values()))
    labels = np.concatenate([of_split.labels for of_split in rows.by_split.values()])
    splits = np.repeat(list(rows.by_split), [len(of_split.labels) for of_split in rows.by_split.values()])
    if len(rows.by_split) == 1:  # there is no test set, so draw the images that training would draw
        splits[drawn_for_test(labels)] = "test"

    def named(images: NDArray[np.int64]) -> tuple[NamedImage, ...]:
        return tuple(
            NamedImage(str(splits[image]), f"{rows.prefix}{names[image]}", int(labels[image]))
            for image in images.tolist()
        )

    return DataCheck(
        source=rows.source,
        classes=rows.classes,
        counts={
            split: _counts(labels[splits == split], rows.classes)
            for split in ("train", "validation", "test")
            if split in splits
        },
        problems=tuple(findings.problems),
        left_out=rows.left_out,
        is_drawn=len(rows.by_split) == 1,
        converted=dict(sorted(findings.converted.items())),
        repeated=tuple(map(named, findings.groups())),
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
    """The digest of an image's pixels and the conversions that the image needs, or `Unreadable` if it is unusable."""
    try:
        image = open_encoded(encoded)
        return _digest(to_square(image, size, encoded.where)), conversions(image, encoded.where)
    except InputError as error:
        return Unreadable(str(error))


def _digest(pixels: NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()


def _counts(labels: NDArray[np.int64], classes: Sequence[str]) -> tuple[int, ...]:
    return tuple(np.bincount(labels, minlength=len(classes)).tolist())


def _groups(digests: bytes | bytearray) -> list[NDArray[np.int64]]:
    """Find digests that occur more than once. A digest has 16 bytes.

    Returns one group for each of these digests: the indices at which the digest occurs. Groups are sorted by their
    first index.
    """
    halves = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    order = np.lexsort(halves.T)
    starts = np.flatnonzero((halves[order][1:] != halves[order][:-1]).any(axis=1)) + 1
    groups = (group for group in np.split(order, starts) if len(group) > 1)
    return sorted(groups, key=lambda group: int(group[0]))
