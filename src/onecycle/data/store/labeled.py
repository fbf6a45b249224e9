"""Assign each image of folders or archives to a split and a class, by a table of labels."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onecycle.core.errors import InputError
from onecycle.data.image_files import has_image_suffix
from onecycle.data.readers.label_file import LabeledFile, LabelFile
from onecycle.data.readers.left_out import LeftOut
from onecycle.data.store.index import (
    SPLITS,
    Index,
    in_words,
    ordered_index,
    require_different_names,
    require_two_classes,
    split_of,
)
from onecycle.data.store.listing import Listing, located


def index_by_labels(listings: Sequence[Listing], labels: LabelFile, source: Path) -> Index:
    """Assign each image of `listings`, which list the content of `source`, to its class and split in `labels`.

    If `labels` has no column of splits, the folder of an image, such as test/, gives its split. Images in other folders
    are for training. If this gives no training image, all images are for training. Images without a row in `labels` are
    left out.

    Raises:
        InputError: when a row names no image, or the labels contradict each other or do not form a usable data set.
    """
    images = _Images(listings)
    rows: dict[int, LabeledFile] = {}
    missing: list[LabeledFile] = []
    for row in labels.rows:
        if (image := images.find(row, labels)) is None:
            missing.append(row)
            continue
        other = rows.setdefault(image, row)
        if (other.label, other.split) != (row.label, row.split):
            what = "label" if other.label != row.label else "split"
            raise labels.problem(
                row.line,
                f"{row.file!r} has the {what} {getattr(row, what)!r}, but {getattr(other, what)!r} in line "
                f"{other.line}; keep one",
            )
    if missing:
        which = f"the {len(missing):,} rows without an image" if len(missing) > 1 else "the line"
        raise labels.problem(missing[0].line, f"there is no image {missing[0].file!r} in {source}; correct {which}")
    splits = _splits(rows, images, labels)
    counts = {split: Counter[str]() for split in SPLITS if split in splits.values()}
    for image, row in rows.items():
        counts[splits[image]][row.label] += 1
    _check(counts, labels)
    classes = tuple(sorted(counts["train"]))
    label_of = {name: label for label, name in enumerate(classes)}
    first = {split: number * len(classes) for number, split in enumerate(counts)}
    groups = np.full(len(images.paths), -1, np.int32)
    for image, row in rows.items():
        groups[image] = first[splits[image]] + label_of[row.label]
    return ordered_index(
        listings,
        [()] * len(listings),
        groups,
        list(counts),
        classes,
        left_out=_left_out(listings, groups, labels, source),
        layout=f"labels from {_place_of(labels)} (columns {in_words(labels.columns)})",
    )


def _place_of(labels: LabelFile) -> str:
    """The path of the table. In an archive, it is the path inside, because the archive may be renamed later."""
    return labels.inside if labels.root is None and labels.inside else labels.name


class _Images:
    """Finds images by the ends of their paths. The file suffix may be missing. `paths` has the paths of all images."""

    def __init__(self, listings: Sequence[Listing]) -> None:
        count = sum(map(len, listings))
        self.paths = [path for _, path in located(listings, np.arange(count))]
        self._ends: dict[tuple[int, bool], dict[str, list[int]]] = {}
        self._found: dict[tuple[str, str], int | None] = {}

    def find(self, row: LabeledFile, labels: LabelFile) -> int | None:
        """The number of the image that `row` names, or None if there is none.

        Raises:
            InputError: when the row names a path outside of the data, or several images have this name.
        """
        key = row.file, row.split
        if key not in self._found:
            self._found[key] = self._find(row, labels)
        return self._found[key]

    def _find(self, row: LabeledFile, labels: LabelFile) -> int | None:
        paths = labels.paths(row)
        for path in paths:
            if len(found := [image for image in self._ending_with(path) if self._is_all(image, path)]) == 1:
                return found[0]
        found = self._ending_with(paths[-1])
        if len(found) > 1:  # an id may occur in train/ and in test/
            split = row.split or "train"
            found = [i for i in found if split in map(split_of, self.paths[i].split("/")[:-1])] or found
        if len(found) > 1:
            one, other = (repr(self.paths[image]) for image in found[:2])
            raise labels.problem(row.line, f"{row.file!r} may be {one} or {other}; give more of its path")
        return found[0] if found else None

    def _ending_with(self, path: str) -> list[int]:
        """The images whose paths end with the parts of `path`."""
        with_suffix, parts = has_image_suffix(path), path.count("/") + 1
        if (parts, with_suffix) not in self._ends:
            self._ends[parts, with_suffix] = self._by_end(parts, with_suffix=with_suffix)
        return self._ends[parts, with_suffix].get(path, [])

    def _by_end(self, parts: int, *, with_suffix: bool) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for image, path in enumerate(self.paths):
            end = "/".join(path.split("/")[-parts:])
            found.setdefault(end if with_suffix else os.path.splitext(end)[0], []).append(image)
        return found

    def _is_all(self, image: int, end: str) -> bool:
        return self.paths[image].count("/") == end.count("/")


def _splits(rows: dict[int, LabeledFile], images: _Images, labels: LabelFile) -> dict[int, str]:
    """The split of each image that has a row."""
    if labels.has_splits:
        return {image: row.split for image, row in rows.items()}
    by_folder = {
        image: next(filter(None, map(split_of, images.paths[image].split("/")[:-1])), "train") for image in rows
    }
    return by_folder if "train" in by_folder.values() else dict.fromkeys(rows, "train")


def _check(counts: dict[str, Counter[str]], labels: LabelFile) -> None:
    source = Path(labels.name)
    if "train" not in counts:
        raise InputError(f"{source}: no row has the split train; set the split of the training images to train")
    names = sorted(set().union(*counts.values()))
    require_different_names(names, str, "labels", source)
    for split, of_split in counts.items():
        if unknown := sorted(of_split.keys() - counts["train"].keys()):
            raise InputError(
                f"{source}: the label {unknown[0]!r} is in the {split} set, but not in the training set; add training "
                "images with this label, or remove the label"
            )
    require_two_classes(counts["train"], source, is_drawn=len(counts) == 1)


def _left_out(listings: Sequence[Listing], groups: NDArray[np.int32], labels: LabelFile, source: Path) -> LeftOut:
    """The files in `listings` that are not images, or that have no label."""
    found = LeftOut()
    for listing in listings:
        found.include(listing.left_out, f"{listing.source.name}:" if len(listings) > 1 else "")
    if labels.inside is not None and [listing.source for listing in listings] == [source]:
        found.discount(labels.inside)
    for listing, path in located(listings, np.flatnonzero(groups < 0)):
        found.add(
            f"image without a row in {os.path.basename(labels.name)}",
            f"{listing.source.name}:{path}" if len(listings) > 1 else path,
        )
    return found
