"""Assign each image of folders or archives to a split and a class, by the names of its folders."""

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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

SPLITS = ("train", "validation", "test")
ALWAYS_SPLITS = ("train", "test")
"""Folders with exactly these names are always splits. Other split names, such as val/, need a train/ beside them."""

_SPLIT_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_NEVER_CLASSES = _SPLIT_OF.keys() - {"dev"}  # a class may be called dev

_KIND = {"train": "training", "validation": "validation", "test": "test"}

_Places = list[tuple[str, str] | str]
"""The split and class of each folder of a listing, or the reason why the images in this folder are left out."""

_Counts = dict[str, dict[str, int]]
"""The number of images by split and class."""


@dataclass(frozen=True, eq=False)
class Index:
    """The split and class of each image. Images are numbered consecutively across all listings.

    There is always a training set. There is also a validation set, a test set or both.
    """

    classes: tuple[str, ...]
    labels: dict[str, NDArray[np.int64]]  # for each split, the labels `[N]`
    images: dict[str, NDArray[np.int64]]  # for each split, the image numbers `[N]`, ordered by class and name
    is_drawn: bool  # whether the test set was drawn from the training images
    left_out: LeftOut
    layout: str  # how splits and classes are given, such as "train/ and test/"


def split_of(name: str) -> str | None:
    """The split that the folder name or table cell `name` stands for. Returns None if it stands for no split."""
    return _SPLIT_OF.get(name.strip().lower())


def index_of(listings: Sequence[Listing], source: Path) -> Index:
    """Assign each image of `listings` to a split and a class. The listings are the content of `source`.

    The images of each listing may be inside extra nested folders.

    Raises:
        InputError: when the folder structure is wrong, or two images have the same name.
    """
    singles = _single_folders(listings)
    if tops := _around_splits(listings, singles):
        places, counts, names = _by_split(listings, tops, source)
        layout = in_words(f"{names[split]}/" for split in counts)
    else:
        tops, names, layout = singles, {"train": "train"}, "class folders"
        places, counts = _by_class(listings, tops, source)
    is_drawn = set(counts) == {"train"}
    left_out = _left_out(listings, places)
    try:
        _check(counts, names, source, is_drawn=is_drawn)
    except InputError as error:
        raise InputError(left_out.appended_to(str(error))) from error
    classes = tuple(sorted(counts["train"]))
    numbers = {group: number for number, group in enumerate(itertools.product(counts, classes))}
    groups = np.concatenate(
        [
            np.array([-1 if isinstance(place, str) else numbers.get(place, -1) for place in of_folders], np.int32)[
                np.asarray(listing.folder_of)
            ]
            for listing, of_folders in zip(listings, places, strict=True)
        ]
    )
    return ordered_index(listings, tops, groups, list(counts), classes, left_out=left_out, layout=layout)


def in_words(names: Iterable[str]) -> str:
    """`names` as a list in a sentence: "train/, val/ and test/"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def ordered_index(
    listings: Sequence[Listing],
    tops: Sequence[Parts],
    groups: NDArray[np.int32],
    splits: Sequence[str],
    classes: tuple[str, ...],
    *,
    left_out: LeftOut,
    layout: str,
) -> Index:
    """The index of images that are assigned to a split and a class.

    `groups` `[N]` has a number for each image: split number * number of classes + label, or -1 if the image is left
    out. `tops` has one folder for each listing. The order of images does not depend on the paths of these folders. If
    "train" is the only split, the test set is drawn from it.

    Raises:
        InputError: when two images of a class have the same name.
    """
    by_group = np.argsort(groups, kind="stable")
    bounds = np.searchsorted(groups[by_group], np.arange(len(splits) * len(classes) + 1))
    folders = [
        ["\0".join(folder[len(top) :]) for folder in listing.folders]
        for listing, top in zip(listings, tops, strict=True)
    ]
    # Sort class by class, so that only the names of one class are in memory.
    for start, end in itertools.pairwise(bounds.tolist()):
        by_group[start:end] = _by_name(by_group[start:end], listings, folders)
    labels, images = {}, {}
    for number, split in enumerate(splits):
        of_classes = bounds[number * len(classes) : (number + 1) * len(classes) + 1]
        labels[split] = np.repeat(np.arange(len(classes)), np.diff(of_classes))
        images[split] = by_group[of_classes[0] : of_classes[-1]]
    if is_drawn := set(splits) == {"train"}:
        is_test = np.zeros(len(labels["train"]), bool)
        is_test[drawn_for_test(labels["train"])] = True
        labels, images = ({"train": of["train"][~is_test], "test": of["train"][is_test]} for of in (labels, images))
    return Index(classes, labels, images, is_drawn, left_out, layout)


def _around_splits(listings: Sequence[Listing], singles: Sequence[Parts]) -> list[Parts] | None:
    """For each listing, the folder that contains its splits, such as train/ and test/. None if there are no splits.

    `singles` is the result of `_single_folders`: for each listing, the path of the nested folders around its classes or
    splits.
    """
    around = [_around_train_and_test(listing, single) for listing, single in zip(listings, singles, strict=True)]
    if not any(around):
        around = [
            {single} if "train" in _splits_below(listing, single) else set()
            for listing, single in zip(listings, singles, strict=True)
        ]
    if not any(around):
        return None
    other = next(listing.source for listing, tops in zip(listings, around, strict=True) if tops)
    for listing, tops, single in zip(listings, around, singles, strict=True):
        if len(listing) and not tops and not _splits_below(listing, single):
            raise InputError(
                f"{listing.source}: has no split such as train/ or test/, but {other} has one; rename that split if "
                f"it is a class; otherwise move the class folders of {listing.source.name} into train/ or test/"
            )
    return [
        _single_top(listing, tops or {single}) for listing, tops, single in zip(listings, around, singles, strict=True)
    ]


def _around_train_and_test(listing: Listing, single: Parts) -> set[Parts]:
    """The folders that contain train/ or test/ and lie 0, 1 or `len(single)` levels below the top."""
    found = set()
    for folder in listing.folders:
        depths = (depth for depth in (0, 1, len(single)) if depth < len(folder) and folder[depth] in ALWAYS_SPLITS)
        if (depth := next(depths, None)) is not None:
            found.add(folder[:depth])
    return found


def _splits_below(listing: Listing, top: Parts) -> set[str | None]:
    """The splits whose folders are directly in the folder `top`, and have images."""
    inside = {folder[len(top)] for folder in _with_images(listing) if len(folder) > len(top)}
    return {split_of(name) for name in inside} - {None}


def _single_top(listing: Listing, around: set[Parts]) -> Parts:
    """The only folder in `around`. It contains the splits.

    Raises:
        InputError: when `around` has several folders, or images are outside of the folder.
    """
    if len(around) > 1:
        tops = ", ".join(sorted("/".join(top) or "the top itself" for top in around))
        raise InputError(f"{listing.source}: train/ and test/ occur in several places ({tops}); keep one pair")
    (top,) = around
    # Images directly in the folders around `top` are counted as left out. Any other folder with images may be a class.
    if any(folder[: len(top)] != top[: len(folder)] for folder in _with_images(listing)):
        raise InputError(
            f"{listing.source}: {'/'.join(top)}/ contains train/ or test/, but there are images outside "
            f"{'/'.join(top)}/; move train/ and test/ to the top, or rename them"
        )
    return top


def _single_folders(listings: Sequence[Listing]) -> list[Parts]:
    """For each listing, the path of the nested folders around its classes or splits.

    If any listing with images has no folder around its classes or splits, the path is () for all listings.
    """
    tops = [_single_path(listing.folders)[:1] for listing in listings]
    splits = {split_of(top[0]) for top in tops if top}
    if len(splits) > 1 and "train" in splits:  # each split has its own archive
        return [() for _ in listings]
    with_images = [top for listing, top in zip(listings, tops, strict=True) if len(listing) or len(listings) == 1]
    if not all(with_images):
        return [() for _ in listings]
    # The top folders of the archives may have different names. Below the top folders, folders with different names are
    # classes.
    below = _single_path(
        [folder[len(top) :] for listing, top in zip(listings, tops, strict=True) for folder in listing.folders]
    )
    return [(*top, *below) for top in tops]


def _single_path(folders: Collection[Parts]) -> Parts:
    """The longest path that starts at the top and in which each folder is the only subfolder of its parent.

    The path ends before train/ and test/, and before a folder without subfolders.
    """
    path: list[str] = []
    while True:
        inside = [folder[len(path) :] for folder in folders if len(folder) > len(path)]
        names = {folder[0] for folder in inside}
        if len(names) != 1 or names & set(ALWAYS_SPLITS) or all(len(folder) == 1 for folder in inside):
            return tuple(path)
        path += names


def _by_split(
    listings: Sequence[Listing], tops: Sequence[Parts], source: Path
) -> tuple[list[_Places], _Counts, dict[str, str]]:
    """The split and class of each folder like `train/<class>`.

    Also returns the number of images in each class of each split, and the folder name of each split.
    """
    counts: _Counts = {}
    all_places: list[_Places] = []
    beside: str | None = None
    loose: set[str] = set()  # splits with images outside their class folders
    folders: dict[str, Counter[str]] = {}  # for each split: its folders, with the number of images in each
    for listing, top in zip(listings, tops, strict=True):
        places: _Places = []
        for folder, images in zip(listing.folders, _images_in(listing), strict=True):
            inside = folder[len(top) :]
            split = split_of(inside[0]) if inside else None
            if split:
                of_split = counts.setdefault(split, {})
                folders.setdefault(split, Counter())[inside[0]] += images
            elif inside and images:
                beside = beside or "/".join((*top, inside[0]))
            if split and len(inside) > 1:
                places.append((split, inside[1]))
                of_split[inside[1]] = of_split.get(inside[1], 0) + images
            elif split or not inside:
                places.append(BESIDE_CLASSES)
                if split and images:
                    loose.add(split)
            else:
                places.append(f"image in {printable(inside[0])}/, which is neither train/, val/ nor test/")
        all_places.append(places)
    names = {split: _only_name(of_split, split, source) for split, of_split in folders.items()}
    for split, name in names.items():
        has_no_classes = not any(counts[split].values())
        is_empty = has_no_classes and split not in loose and name not in ALWAYS_SPLITS
        if is_empty or (has_no_classes and split == "validation" and "test" in counts):
            del counts[split]
    counts = {split: counts[split] for split in SPLITS if split in counts}
    if beside:
        _require_no_class_called_like_a_split(counts, names, loose, beside, source)
    return all_places, counts, names


def _only_name(folders: Counter[str], split: str, source: Path) -> str:
    """The name of the only folder in `folders` with images. If no folder has images, the name of one of them.

    Raises:
        InputError: when several folders have images.
    """
    names = [name for name, images in folders.items() if images]
    if len(names) > 1:
        one, other = sorted(names)[:2]
        raise InputError(
            f"{source}: {printable(one)}/ and {printable(other)}/ are both a {_KIND[split]} set; merge them, or move "
            "one away"
        )
    return names[0] if names else min(folders, key=lambda name: name not in ALWAYS_SPLITS)


def _require_no_class_called_like_a_split(
    counts: _Counts, names: dict[str, str], loose: set[str], beside: str, source: Path
) -> None:
    """Refuse folders that have the names of splits, but may be classes.

    `beside` is a folder next to them. It has images but is not a split, so all of these folders may be classes. They
    are accepted as splits if train/ and another split exist, and every split with images has class folders.
    """
    for split in counts:
        if split in loose and not counts[split]:
            raise InputError(
                f"{source}: {names[split]}/ looks like a class, as {beside}/ does, but has the name of a split; rename "
                f"it, or put its images into {names[split]}/<class>/"
            )
    if len(counts) > 1 and "train" in counts:
        return
    (found, *_) = (names[split] for split in counts)
    missing, advice = (
        (
            "val/ or test/",
            "rename it to val/ or test/ to evaluate on it, or move it away to draw a test set from train/",
        )
        if "train" in counts
        else ("train/", "rename it to train/ to train on it")
    )
    raise InputError(
        f"{source}: there is no {missing} beside {found}/, but there is {beside}/ with images; {advice}; if {found}/ "
        f"is a class, rename {found}/"
    )


def _by_class(listings: Sequence[Listing], tops: Sequence[Parts], source: Path) -> tuple[list[_Places], _Counts]:
    """The split and class of each folder if there is no train/ or test/. Also returns the image count of each class."""
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
        if len(listings) > 1 and (name := listing.source.name.split(".")[0]).lower() in _NEVER_CLASSES:
            raise InputError(
                f"{listing.source}: {name} looks like a split; "
                "move the class folders of this archive into train/, val/ or test/"
            )
    if sets := sorted(name for name in counts if name.lower() in _NEVER_CLASSES):
        raise InputError(
            f"{source}: {sets[0]}/ looks like a split, not a class, but there is no train/; put the training set "
            f"into train/; if {sets[0]}/ is a class, rename it"
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


def _check(counts: _Counts, names: dict[str, str], source: Path, *, is_drawn: bool) -> None:
    """Check that every split has images of the same two or more classes. `names` maps splits to folder names."""

    def where(split: str, name: str) -> str:
        return f"{names[split]}/{name}" if len(counts) > 1 else name

    for split in ("train", *counts):
        if split not in counts:
            raise InputError(f"{source}: there is no {split}/ folder; put images in {split}/<class>/")
        if not counts[split]:
            raise InputError(f"{source}: {names[split]}/ has no class folders; put images in {names[split]}/<class>/")
    for split, classes in counts.items():
        if empty := sorted(name for name, images in classes.items() if not images):
            raise InputError(f"{source}: class folder {where(split, empty[0])} has no images; add some or remove it")
    train = set(counts["train"])
    split_of_class = {name: split for split in reversed(list(counts)) for name in counts[split]}
    require_different_names(split_of_class, lambda name: where(split_of_class[name], name), "class folders", source)
    for split, classes in counts.items():
        if different := sorted(train ^ set(classes)):
            here, there = ("train", split) if different[0] in train else (split, "train")
            raise InputError(
                f"{source}: {names['train']}/ and {names[split]}/ have different classes: {different[0]!r} is in "
                f"{names[here]}/ but not in {names[there]}/; both need the same class folders"
            )
    require_two_classes(counts["train"], source, is_drawn=is_drawn)


def require_different_names(classes: Iterable[str], where: Callable[[str], str], what: str, source: Path) -> None:
    """Refuse `classes` if two of them look alike.

    The message shows each of the two classes as `where(name)`, and calls them `what`, for example "labels".
    """
    if alike := find_alike(sorted(classes)):
        here, there = map(where, alike.names)
        # A terminal shows both Unicode forms alike. The escapes show the difference.
        escaped = f" ({ascii(here)} and {ascii(there)})" if "form" in alike.difference else ""
        raise InputError(
            f"{source}: the {what} {here!r} and {there!r}{escaped} differ in {alike.difference} only; "
            "rename or merge them"
        )


def require_two_classes(counts: Mapping[str, int], source: Path, *, is_drawn: bool) -> None:
    """Check that there are two or more printable classes, and enough images of each.

    `counts` maps each class to its number of images.
    """
    if len(counts) == 1:
        raise InputError(f"{source}: there is only one class, {min(counts)!r}; a classifier needs at least two")
    for name in sorted(counts):
        if not name.isprintable():
            raise InputError(f"{source}: the class name {name!r} cannot be printed; rename it")
        if is_drawn and counts[name] < 2:
            raise InputError(
                f"{source}: class {name!r} has only one image, but training and testing need one each; add more"
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
