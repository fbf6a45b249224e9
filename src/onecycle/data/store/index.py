"""Assign each image of folders or archives to a split and a class, by the names of its folders."""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onecycle.core.class_names import find_alike
from onecycle.core.errors import InputError
from onecycle.core.files import printable
from onecycle.data.readers.left_out import BESIDE_CLASSES, LeftOut
from onecycle.data.splits import drawn_for_test
from onecycle.data.store.listing import Listing, Parts, located

SPLITS = ("train", "test")
_SPLIT_LIKE = {"training", "testing", "val", "valid", "validation", *SPLITS}  # compared with lower-case names

_Places = list[tuple[str, str] | str]
"""The split and class of each folder of a listing, or the reason why the images in this folder are left out."""

_Counts = dict[str, dict[str, int]]
"""The number of images by split and class."""


@dataclass(frozen=True, eq=False)
class Index:
    """The split and class of each image. Images are numbered consecutively across all listings."""

    classes: tuple[str, ...]
    labels: dict[str, NDArray[np.int64]]  # by split, `[N]`
    images: dict[str, NDArray[np.int64]]  # by split, `[N]`: image numbers, ordered by class and name
    is_drawn: bool  # whether the test set was drawn from the training images
    left_out: LeftOut


def index_of(listings: Sequence[Listing], source: Path) -> Index:
    """Assign each image of `listings` to a split and a class. The listings are the content of `source`.

    The images of each listing may be inside extra folders, one in the other.

    Raises:
        InputError: when the folder structure is wrong, or two images have the same name.
    """
    tops = _single_folders(listings)
    is_split = [
        any(_depth_of_set(folder, top) is not None for folder in listing.folders)
        for listing, top in zip(listings, tops, strict=True)
    ]
    if any(is_split):
        _require_sets(listings, is_split)
        tops = [_around_sets(listing, top) for listing, top in zip(listings, tops, strict=True)]
        places, counts = _by_split(listings, tops, source)
    else:
        places, counts = _by_class(listings, tops, source)
    is_drawn = set(counts) == {"train"}
    left_out = _left_out(listings, places)
    try:
        _check(counts, source, is_drawn=is_drawn)
    except InputError as error:
        raise InputError(left_out.appended_to(str(error))) from error
    classes = tuple(sorted(counts["train"]))
    labels, images = _ordered(listings, places, tops, classes)
    if is_drawn:
        is_test = np.zeros(len(labels["train"]), bool)
        is_test[drawn_for_test(labels["train"])] = True
        labels, images = ({"train": of["train"][~is_test], "test": of["train"][is_test]} for of in (labels, images))
    return Index(classes, labels, images, is_drawn, left_out)


def _require_sets(listings: Sequence[Listing], is_split: Sequence[bool]) -> None:
    for listing, split in zip(listings, is_split, strict=True):
        if len(listing) and not split:
            other = listings[is_split.index(True)].source
            raise InputError(
                f"{listing.source}: has neither train/ nor test/, but {other} has one of them; "
                f"move the class folders of {listing.source.name} into train/ or test/; if train/ or test/ is a "
                "class, rename it"
            )


def _around_sets(listing: Listing, single: Parts) -> Parts:
    """The folder that contains train/ and test/, or () if that is the top folder."""
    around = {folder[:depth] for folder in listing.folders if (depth := _depth_of_set(folder, single)) is not None}
    if len(around) > 1:
        tops = ", ".join(sorted("/".join(top) or "the top itself" for top in around))
        raise InputError(f"{listing.source}: train/ and test/ occur in several places ({tops}); keep one pair")
    top = around.pop() if around else ()
    # Images directly in the folders around `top` are counted as left out. Other folders may be classes.
    if any(folder[: len(top)] != top[: len(folder)] for folder in _with_images(listing)):
        raise InputError(
            f"{listing.source}: {'/'.join(top)}/ contains train/ or test/, but there are images outside this folder; "
            "move train/ and test/ to the top, or rename them"
        )
    return top


def _depth_of_set(folder: Parts, single: Parts) -> int | None:
    """The number of folders around train/ or test/ in the path `folder`: none, one, or all of `single`."""
    return next((depth for depth in (0, 1, len(single)) if depth < len(folder) and folder[depth] in SPLITS), None)


def _single_folders(listings: Sequence[Listing]) -> list[Parts]:
    """For each listing, the folders around its classes or splits, one in the other.

    Returns () for all listings if any listing with images has no such folder.
    """
    tops = [_single_path(listing.folders)[:1] for listing in listings]
    with_images = [top for listing, top in zip(listings, tops, strict=True) if len(listing) or len(listings) == 1]
    if not all(with_images):
        return [() for _ in listings]
    # At the top, each archive may have a folder of another name. Below, folders of different names are classes.
    below = _single_path(
        [folder[len(top) :] for listing, top in zip(listings, tops, strict=True) for folder in listing.folders]
    )
    return [(*top, *below) for top in tops]


def _single_path(folders: Collection[Parts]) -> Parts:
    """The longest path of `folders` of which each is the only one in its parent.

    It ends before train/ and test/, and before a folder without folders.
    """
    path: list[str] = []
    while True:
        inside = [folder[len(path) :] for folder in folders if len(folder) > len(path)]
        names = {folder[0] for folder in inside}
        if len(names) != 1 or names & set(SPLITS) or all(len(folder) == 1 for folder in inside):
            return tuple(path)
        path += names


def _by_split(listings: Sequence[Listing], tops: Sequence[Parts], source: Path) -> tuple[list[_Places], _Counts]:
    """The split and class of each folder like `train/<class>`, and the number of images in each class."""
    counts: _Counts = {}
    all_places: list[_Places] = []
    beside: str | None = None
    loose: set[str] = set()  # splits with images outside their class folders
    for listing, top in zip(listings, tops, strict=True):
        places: _Places = []
        for folder, images in zip(listing.folders, _images_in(listing), strict=True):
            inside = folder[len(top) :]
            is_set = bool(inside) and inside[0] in SPLITS
            if is_set:
                of_split = counts.setdefault(inside[0], {})
            elif inside and images:
                beside = beside or "/".join((*top, inside[0]))
            if is_set and len(inside) > 1:
                places.append((inside[0], inside[1]))
                of_split[inside[1]] = of_split.get(inside[1], 0) + images
            elif is_set or not inside:
                places.append(BESIDE_CLASSES)
                if images:
                    loose.update(inside)
            else:
                places.append(f"image in {printable(inside[0])}/, which is neither train/ nor test/")
        all_places.append(places)
    if beside:
        _require_no_class_called_like_a_split(counts, loose, beside, source)
    return all_places, counts


def _require_no_class_called_like_a_split(counts: _Counts, loose: set[str], beside: str, source: Path) -> None:
    """Refuse train/ or test/ if it and the folder `beside` it seem to be classes, or if it is alone beside images."""
    advice = {
        "train": "rename it to train/ to train on it",
        "test": "rename it to test/ to evaluate on it, or move it away to draw a test set from train/",
    }
    for split, other in itertools.permutations(SPLITS):
        if split in loose and not counts[split]:
            raise InputError(
                f"{source}: {split}/ looks like a class, as {beside}/ does, but has the name of a split; rename it, "
                f"or put its images into {split}/<class>/"
            )
        if other not in counts:
            raise InputError(
                f"{source}: there is no {other}/, but {beside}/ beside {split}/ has images; {advice[other]}; "
                f"if {split}/ is a class, rename {split}/"
            )


def _by_class(listings: Sequence[Listing], tops: Sequence[Parts], source: Path) -> tuple[list[_Places], _Counts]:
    """The split and class of each folder, and the number of images in each class, if there is no train/ or test/."""
    counts: dict[str, int] = {}
    all_places: list[_Places] = []
    for listing, top in zip(listings, tops, strict=True):
        places: _Places = []
        for folder, images in zip(listing.folders, _images_in(listing), strict=True):
            inside = folder[len(top) :]
            places.append(("train", inside[0]) if inside else BESIDE_CLASSES)
            if inside:
                counts[inside[0]] = counts.get(inside[0], 0) + images
        all_places.append(places)
        if len(listings) > 1 and (name := listing.source.name.split(".")[0]).lower() in _SPLIT_LIKE:
            raise InputError(
                f"{listing.source}: {name} looks like a split; "
                "move the class folders of this archive into train/ or test/"
            )
    if sets := sorted(name for name in counts if name.lower() in _SPLIT_LIKE):
        raise InputError(
            f"{source}: {sets[0]}/ looks like a split, not a class; name the splits train/ and test/; if it is a "
            "class, rename it"
        )
    return all_places, {"train": counts}


def _images_in(listing: Listing) -> list[int]:
    """The number of images in each folder, without its subfolders."""
    counts: list[int] = np.bincount(np.asarray(listing.folder_of, np.int32), minlength=len(listing.folders)).tolist()
    return counts


def _with_images(listing: Listing) -> list[Parts]:
    return [folder for folder, images in zip(listing.folders, _images_in(listing), strict=True) if images]


def _left_out(listings: Sequence[Listing], places: Sequence[_Places]) -> LeftOut:
    """The files in `listings` that are not images of a class."""
    found = LeftOut()
    for listing, of_folders in zip(listings, places, strict=True):
        prefix = f"{listing.source.name}:" if len(listings) > 1 else ""
        found.include(listing.left_out, prefix)
        reasons = {folder: place for folder, place in enumerate(of_folders) if isinstance(place, str)}
        outside = np.flatnonzero(np.isin(np.asarray(listing.folder_of), list(reasons)))
        for image, (_, path) in zip(outside.tolist(), located([listing], outside), strict=True):
            found.add(reasons[listing.folder_of[image]], prefix + path)
    return found


def _check(counts: _Counts, source: Path, *, is_drawn: bool) -> None:
    """Check that every split has images of the same two or more classes."""
    wanted = SPLITS[:1] if is_drawn else SPLITS
    for split in wanted:
        if split not in counts:
            raise InputError(f"{source}: there is no {split}/ folder; put images in {split}/<class>/")
        if not counts[split]:
            raise InputError(f"{source}: {split}/ has no class folders; put images in {split}/<class>/")
    for split in wanted:
        if empty := sorted(name for name, images in counts[split].items() if not images):
            where = empty[0] if is_drawn else f"{split}/{empty[0]}"
            raise InputError(f"{source}: class folder {where} has no images; add some or remove it")
    train, test = (set(counts.get(split, counts["train"])) for split in SPLITS)
    if alike := find_alike(sorted(train | test)):
        here, there = (name if is_drawn else f"{'train' if name in train else 'test'}/{name}" for name in alike.names)
        # A terminal shows both Unicode forms alike. The escapes show the difference.
        escaped = f" ({ascii(here)} and {ascii(there)})" if "form" in alike.difference else ""
        raise InputError(
            f"{source}: the class folders {here!r} and {there!r}{escaped} differ in {alike.difference} only; "
            "rename or merge them"
        )
    if different := sorted(train ^ test):
        here, there = ("train", "test") if different[0] in train else ("test", "train")
        raise InputError(
            f"{source}: train/ and test/ have different classes: {different[0]!r} is in {here}/ but not in {there}/; "
            "both need the same class folders"
        )
    if len(train) == 1:
        raise InputError(f"{source}: there is only one class, {min(train)!r}; a classifier needs at least two")
    for name in sorted(train):
        if not name.isprintable():
            raise InputError(f"{source}: the class name {name!r} cannot be printed; rename the folder")
        if is_drawn and counts["train"][name] < 2:
            raise InputError(
                f"{source}: class {name!r} has only one image, but training and testing need one each; add more"
            )


def _ordered(
    listings: Sequence[Listing], places: list[_Places], tops: Sequence[Parts], classes: tuple[str, ...]
) -> tuple[dict[str, NDArray[np.int64]], dict[str, NDArray[np.int64]]]:
    """The labels and image numbers of each split, ordered by class and name."""
    groups = [(split, name) for split in SPLITS for name in classes]
    numbers = {group: number for number, group in enumerate(groups)}
    group_of_image = np.concatenate(
        [
            np.array([-1 if isinstance(place, str) else numbers[place] for place in of_folders], np.int32)[
                np.asarray(listing.folder_of)
            ]
            for listing, of_folders in zip(listings, places, strict=True)
        ]
    )
    by_group = np.argsort(group_of_image, kind="stable")
    bounds = np.searchsorted(group_of_image[by_group], np.arange(len(groups) + 1))
    folders = [
        ["\0".join(folder[len(top) :]) for folder in listing.folders]
        for listing, top in zip(listings, tops, strict=True)
    ]
    # Sort class by class, so that only the names of one class are in memory.
    for start, end in itertools.pairwise(bounds.tolist()):
        by_group[start:end] = _by_name(by_group[start:end], listings, folders)
    middle = int(bounds[len(classes)])
    counts = np.diff(bounds)
    labels = np.arange(len(classes))
    return (
        {"train": np.repeat(labels, counts[: len(classes)]), "test": np.repeat(labels, counts[len(classes) :])},
        {"train": by_group[bounds[0] : middle], "test": by_group[middle:]},
    )


def _by_name(images: NDArray[np.int64], listings: Sequence[Listing], folders: list[list[str]]) -> NDArray[np.int64]:
    """Sort image numbers by the path of the image. `images` must be in ascending order."""
    names: list[str] = []
    first = 0
    for listing, of_listing in zip(listings, folders, strict=True):
        start, end = np.searchsorted(images, (first, first + len(listing)))
        own = (images[start:end] - first).tolist()
        names += [f"{of_listing[listing.folder_of[image]]}\0{listing.name(image)}" for image in own]
        first += len(listing)
    order = sorted(range(len(names)), key=names.__getitem__)
    for place, other in itertools.pairwise(order):
        if names[place] == names[other]:
            raise _duplicate_name(names[place].replace("\0", "/"), int(images[place]), int(images[other]), listings)
    return images[order]


def _duplicate_name(name: str, image: int, other: int, listings: Sequence[Listing]) -> InputError:
    ends = np.cumsum([len(listing) for listing in listings])
    here, there = (listings[int(np.searchsorted(ends, number, side="right"))].source for number in (image, other))
    if here == there:
        return InputError(f"{here}: contains {printable(name)} twice; keep one")
    return InputError(f"{printable(name)} is in {here} and in {there.name}; keep one")
