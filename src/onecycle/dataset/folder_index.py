"""Which images are in a folder or an archive, and where each goes: by the names of the folders they are in."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onecycle.dataset.entries import Entry
from onecycle.dataset.splits import held_out
from onecycle.errors import InputError
from onecycle.preprocessing import suffixes

SPLITS = ("train", "test")
DRAWN_SHARE = 0.2  # of each class, for testing, where there is no test set
_DRAWN_SEED = 0
_ALIKE = {"training", "testing", "val", "valid", "validation", *SPLITS}  # names of sets, in any letters

Parts = tuple[str, ...]


@dataclass(frozen=True)
class Index:
    """Where each image goes: `rows` gives its split and its row there; `labels` are those of the rows."""

    classes: tuple[str, ...]
    rows: dict[Parts, tuple[str, int]]
    labels: dict[str, NDArray[np.int64]]
    is_drawn: bool  # whether the test set was drawn from one set of images


def index_of(entries: Iterable[Entry], source: Path) -> Index:
    """Where each of the images among the `entries` of `source` goes.

    Raises:
        InputError: when the folders are not as they must be.
    """
    seen = [_seen(entry) for entry in entries]
    is_split = any(part in SPLITS for parts, is_folder in seen for part in (parts if is_folder else parts[:-1])[:2])
    found = _by_split(seen, source) if is_split else {"train": _by_class(seen, source)}
    is_drawn = set(found) == {"train"}
    _check(found, source, is_drawn=is_drawn)
    classes = tuple(sorted(found["train"]))
    ordered = {
        split: [(label, parts) for label, name in enumerate(classes) for parts in sorted(images[name])]
        for split, images in found.items()
    }
    if is_drawn:
        whole = ordered["train"]
        drawn = set(held_out(np.array([label for label, _ in whole]), DRAWN_SHARE, seed=_DRAWN_SEED).tolist())
        ordered = {
            split: [image for row, image in enumerate(whole) if (row in drawn) == (split == "test")] for split in SPLITS
        }
    return Index(
        classes,
        {parts: (split, row) for split in SPLITS for row, (_, parts) in enumerate(ordered[split])},
        {split: np.array([label for label, _ in ordered[split]], np.int64) for split in SPLITS},
        is_drawn,
    )


def _seen(entry: Entry) -> tuple[Parts, bool]:
    """An image or a folder, and whether it is a folder; of another file only the folder that it is in counts."""
    is_image = not entry.is_folder and is_picture(entry.parts)
    return entry.parts if is_image or entry.is_folder else entry.parts[:-1], not is_image


def is_picture(parts: Parts) -> bool:
    """Whether the name at the end of `parts` is a picture's."""
    return Path(parts[-1]).suffix.lower() in suffixes()


def _by_split(seen: list[tuple[Parts, bool]], source: Path) -> dict[str, dict[str, set[Parts]]]:
    """The images by split and class, where there are folders of these."""
    found: dict[str, dict[str, set[Parts]]] = {}
    around: set[Parts] = set()
    for parts, is_folder in seen:
        depth = next((i for i, part in enumerate(parts[:2]) if part in SPLITS), None)
        if depth is None or (len(parts) == depth + 1 and not is_folder):
            continue
        around.add(parts[:depth])
        classes = found.setdefault(parts[depth], defaultdict(set))
        inside = parts[depth + 1 :]
        if len(inside) > 1 or (inside and is_folder):
            images = classes[inside[0]]
            if not is_folder:
                images.add(parts)
    if len(around) > 1:
        tops = ", ".join(sorted("/".join(top) or "the top itself" for top in around))
        raise InputError(f"{source}: train/ and test/ are in several places ({tops}); keep one pair")
    (top,) = around
    if top and any(parts[: len(top)] != top and not is_folder for parts, is_folder in seen):
        raise InputError(
            f"{source}: {'/'.join(top)}/ has sets in it (train/ or test/), and there are pictures beside it; put the "
            "sets at the top, or rename what is no set"
        )
    sets = [(*top, split) for split in found]
    beside = (parts for parts, is_folder in seen if len(parts) > len(top) + 1 and not is_folder)
    if "test" not in found and (other := next((parts for parts in beside if parts[: len(top) + 1] not in sets), None)):
        raise InputError(
            f"{source}: there is no test/, and {'/'.join(other[: len(top) + 1])}/ with pictures beside train/; name it "
            "test/ to evaluate on it, or move it away to have a test set drawn from train/"
        )
    return found


def _by_class(seen: list[tuple[Parts, bool]], source: Path) -> dict[str, set[Parts]]:
    """The images by class, where there are only folders of classes, or one folder around them."""
    folders = {parts if is_folder else parts[:-1] for parts, is_folder in seen}
    tops = {folder[:1] for folder in folders if folder}
    depth = 1 if len(tops) == 1 and any(len(folder) > 1 for folder in folders) else 0
    classes: dict[str, set[Parts]] = {folder[depth]: set() for folder in folders if len(folder) > depth}
    if sets := sorted(name for name in classes if name.lower() in _ALIKE):
        raise InputError(f"{source}: {sets[0]}/ looks like a set, not like a class; name the sets train/ and test/")
    for parts, is_folder in seen:
        if not is_folder and len(parts) > depth + 1:
            classes[parts[depth]].add(parts)
    return classes


def _check(found: dict[str, dict[str, set[Parts]]], source: Path, *, is_drawn: bool) -> None:
    """Refuse what has not images of the same two classes or more in each split."""
    wanted = SPLITS[:1] if is_drawn else SPLITS
    for split in wanted:
        if split not in found:
            raise InputError(f"{source}: there is no {split}/ folder; put images in {split}/<class>/")
        if not found[split]:
            raise InputError(f"{source}: {split}/ has no class folders; put images in {split}/<class>/")
    for split in wanted:
        if empty := sorted(name for name, images in found[split].items() if not images):
            where = empty[0] if is_drawn else f"{split}/{empty[0]}"
            raise InputError(f"{source}: class folder {where} has no images; add some or remove it")
    train, test = (set(found.get(split, found["train"])) for split in SPLITS)
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
        if is_drawn and len(found["train"][name]) < 2:
            raise InputError(f"{source}: class {name!r} has one image, and one is needed for testing; add some")
