"""Which images are in folders or archives, and where each goes: by the names of the folders they are in."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onecycle.core.errors import InputError
from onecycle.core.files import shown
from onecycle.data.splits import held_out
from onecycle.data.store.listing import Listing, Parts

SPLITS = ("train", "test")
DRAWN_SHARE = 0.2  # of each class, for testing, where there is no test set
_DRAWN_SEED = 0
_ALIKE = {"training", "testing", "val", "valid", "validation", *SPLITS}  # names of sets, in any letters

_Places = list[tuple[str, str] | None]
"""The split and the class that each folder of a listing belongs to, if any."""

_Counts = dict[str, dict[str, int]]
"""Images of each class of each split."""


@dataclass(frozen=True, eq=False)
class Index:
    """Where each image goes. Images are numbered through all listings, one after the other."""

    classes: tuple[str, ...]
    labels: dict[str, NDArray[np.int64]]  # of each split, `[N]`
    images: dict[str, NDArray[np.int64]]  # of each split, `[N]`: the numbers, ordered by class and name
    is_drawn: bool  # whether the test set was drawn from one set of images


def index_of(listings: Sequence[Listing], source: Path) -> Index:
    """Where each of the images of `listings` goes: together they are `source`, as if all were in one folder.

    Each listing may have a folder around its own.

    Raises:
        InputError: when the folders are not as they must be, or two images have one name.
    """
    is_split = [any(part in SPLITS for folder in listing.folders for part in folder[:2]) for listing in listings]
    if any(is_split):
        _require_sets(listings, is_split)
        tops = [_around_sets(listing) for listing in listings]
        places, counts = _by_split(listings, tops, source)
    else:
        tops = _around_classes(listings)
        places, counts = _by_class(listings, tops, source)
    is_drawn = set(counts) == {"train"}
    _check(counts, source, is_drawn=is_drawn)
    classes = tuple(sorted(counts["train"]))
    labels, images = _ordered(listings, places, tops, classes)
    if is_drawn:
        is_test = np.zeros(len(labels["train"]), bool)
        is_test[held_out(labels["train"], DRAWN_SHARE, seed=_DRAWN_SEED)] = True
        labels, images = ({"train": of["train"][~is_test], "test": of["train"][is_test]} for of in (labels, images))
    return Index(classes, labels, images, is_drawn)


def _require_sets(listings: Sequence[Listing], is_split: Sequence[bool]) -> None:
    for listing, split in zip(listings, is_split, strict=True):
        if len(listing) and not split:
            other = listings[is_split.index(True)].source
            raise InputError(f"{listing.source}: has neither train/ nor test/, and {other} has; put its classes in one")


def _around_sets(listing: Listing) -> Parts:
    """The folder that train/ and test/ are in, or () where they are at the top."""
    around = {folder[:depth] for folder in listing.folders if (depth := _depth_of_set(folder)) is not None}
    if len(around) > 1:
        tops = ", ".join(sorted("/".join(top) or "the top itself" for top in around))
        raise InputError(f"{listing.source}: train/ and test/ are in several places ({tops}); keep one pair")
    top = around.pop() if around else ()
    if top and any(folder[: len(top)] != top for folder in _with_images(listing)):
        raise InputError(
            f"{listing.source}: {'/'.join(top)}/ has sets in it (train/ or test/), and there are pictures beside it; "
            "put the sets at the top, or rename what is no set"
        )
    return top


def _depth_of_set(folder: Parts) -> int | None:
    return next((depth for depth, part in enumerate(folder[:2]) if part in SPLITS), None)


def _around_classes(listings: Sequence[Listing]) -> list[Parts]:
    """The one folder around the classes of each listing, where each has one, which may be another each time."""
    tops = [_only_folder(listing) for listing in listings]
    with_images = [top for listing, top in zip(listings, tops, strict=True) if len(listing) or len(listings) == 1]
    return [top if all(with_images) else () for top in tops]


def _only_folder(listing: Listing) -> Parts:
    """The one folder that all others are in, if there is one and there are others."""
    tops = {folder[:1] for folder in listing.folders if folder}
    return tops.pop() if len(tops) == 1 and any(len(folder) > 1 for folder in listing.folders) else ()


def _by_split(listings: Sequence[Listing], tops: Sequence[Parts], source: Path) -> tuple[list[_Places], _Counts]:
    """The images by split and class, where there are folders of these."""
    counts: _Counts = {}
    all_places: list[_Places] = []
    beside: str | None = None
    for listing, top in zip(listings, tops, strict=True):
        places: _Places = []
        for folder, images in zip(listing.folders, _images_in(listing), strict=True):
            inside = folder[len(top) :]
            is_set = _depth_of_set(folder) is not None
            if is_set:
                of_split = counts.setdefault(inside[0], {})
            elif inside and images:
                beside = beside or "/".join((*top, inside[0]))
            places.append((inside[0], inside[1]) if is_set and len(inside) > 1 else None)
            if is_set and len(inside) > 1:
                of_split[inside[1]] = of_split.get(inside[1], 0) + images
        all_places.append(places)
    if "test" not in counts and beside:
        raise InputError(
            f"{source}: there is no test/, and {beside}/ with pictures beside train/; name it "
            "test/ to evaluate on it, or move it away to have a test set drawn from train/"
        )
    return all_places, counts


def _by_class(listings: Sequence[Listing], tops: Sequence[Parts], source: Path) -> tuple[list[_Places], _Counts]:
    """The images by class, where there are only folders of classes."""
    counts: dict[str, int] = {}
    all_places: list[_Places] = []
    for listing, top in zip(listings, tops, strict=True):
        places: _Places = []
        for folder, images in zip(listing.folders, _images_in(listing), strict=True):
            inside = folder[len(top) :]
            places.append(("train", inside[0]) if inside else None)
            if inside:
                counts[inside[0]] = counts.get(inside[0], 0) + images
        all_places.append(places)
        if len(listings) > 1 and (name := listing.source.name.split(".")[0]).lower() in _ALIKE:
            raise InputError(f"{listing.source}: {name} looks like a set; put its classes into train/ or test/")
    if sets := sorted(name for name in counts if name.lower() in _ALIKE):
        raise InputError(f"{source}: {sets[0]}/ looks like a set, not like a class; name the sets train/ and test/")
    return all_places, {"train": counts}


def _images_in(listing: Listing) -> list[int]:
    """How many images each folder has, without those in its folders."""
    counts: list[int] = np.bincount(np.asarray(listing.folder_of, np.int32), minlength=len(listing.folders)).tolist()
    return counts


def _with_images(listing: Listing) -> list[Parts]:
    return [folder for folder, images in zip(listing.folders, _images_in(listing), strict=True) if images]


def _check(counts: _Counts, source: Path, *, is_drawn: bool) -> None:
    """Refuse what has not images of the same two classes or more in each split."""
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
        if is_drawn and counts["train"][name] < 2:
            raise InputError(f"{source}: class {name!r} has one image, and one is needed for testing; add some")


def _ordered(
    listings: Sequence[Listing], places: list[_Places], tops: Sequence[Parts], classes: tuple[str, ...]
) -> tuple[dict[str, NDArray[np.int64]], dict[str, NDArray[np.int64]]]:
    """The labels and the images of each split, ordered by class and name."""
    groups = [(split, name) for split in SPLITS for name in classes]
    numbers = {group: number for number, group in enumerate(groups)}
    group_of_image = np.concatenate(
        [
            np.array([numbers[place] if place else -1 for place in of_folders], np.int32)[np.asarray(listing.folder_of)]
            for listing, of_folders in zip(listings, places, strict=True)
        ]
    )
    by_group = np.argsort(group_of_image, kind="stable")
    bounds = np.searchsorted(group_of_image[by_group], np.arange(len(groups) + 1))
    folders = [
        ["\0".join(folder[len(top) :]) for folder in listing.folders]
        for listing, top in zip(listings, tops, strict=True)
    ]
    # Class by class: the names of one are few objects at a time.
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
    """These images, ascending, in the order of their names, part by part from the top down."""
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
            raise _twice(names[place].replace("\0", "/"), int(images[place]), int(images[other]), listings)
    return images[order]


def _twice(name: str, image: int, other: int, listings: Sequence[Listing]) -> InputError:
    ends = np.cumsum([len(listing) for listing in listings])
    here, there = (listings[int(np.searchsorted(ends, number, side="right"))].source for number in (image, other))
    if here == there:
        return InputError(f"{here}: holds {shown(name)} twice; keep one")
    return InputError(f"{shown(name)} is in {here} and in {there.name}; keep one")
