"""Find out what a path holds, and find CIFAR-10.

This module uses `os.path.exists`, which returns False for a path that is forbidden or too long. `Path.exists` would
raise an error.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from onecycle.core.cache import cache_folder
from onecycle.core.errors import InputError, OnecycleError
from onecycle.data.readers import cifar10
from onecycle.data.readers.entries import Entry, archives_in, entries_of, is_ignored
from onecycle.data.readers.label_file import NO_LABELS, find_labels
from onecycle.data.readers.left_out import LeftOut
from onecycle.data.store.index import ALWAYS_SPLITS

OFFICIAL_NAMES = ("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz", "cifar-10-batches-bin", "cifar-10-batches-py")


@dataclass(frozen=True)
class Found:
    """What `path`, an archive or a folder, contains: CIFAR-10 in an official layout, or images."""

    path: Path
    layout: cifar10.Layout | Literal["images"]


def locate(path: Path, labels: str | None = None) -> Found:
    """Find out what the file or folder at `path` holds. If `labels`, a table of labels, is given, it holds images.

    Raises:
        InputError: when `path` does not exist, or holds neither CIFAR-10 nor images.
    """
    path = Path(os.path.expanduser(path))
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file or folder; check the path")
    if labels not in (None, NO_LABELS):
        return Found(path, "images")
    if not path.is_dir():
        return Found(path, _layout_of_archive(path))
    try:
        visible = [p for p in path.iterdir() if not is_ignored(p.name, is_folder=p.is_dir())]
        folders = sorted(p for p in visible if p.is_dir())
        empty = not any(path.iterdir())
        around = [p for p in folders if any((p / split).is_dir() for split in ALWAYS_SPLITS)]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check it") from error
    if any(folder.name in ALWAYS_SPLITS for folder in folders):
        return Found(path, "images")
    if found := cifar10_in(path):
        return found
    if len(around) == len(visible) == 1:
        return Found(around[0], "images")
    if len(around) > 1:
        raise InputError(f"{path}: holds several image folders ({', '.join(p.name for p in around)}); give one of them")
    if empty:
        raise InputError(f"{path}: the folder is empty; give CIFAR-10's archive or folder, or an image folder")
    left_out = LeftOut()
    if archives := archives_in(path):
        if next(filter(None, map(_first_layout, archives)), None) == "images":
            return Found(path, "images")
    else:
        for entry in entries_of(path):
            if _is_in_class(entry):
                return Found(path, "images")
            left_out.add_entry(entry)
    if find_labels(path):
        return Found(path, "images")
    raise InputError(
        left_out.appended_to(
            f"{path}: holds neither CIFAR-10 ({', '.join(OFFICIAL_NAMES)}) nor images in folders "
            "(train/<class>/* and test/<class>/*, or <class>/*), nor images with a labels.csv, nor archives of these; "
            "give a folder with one of them"
        )
    )


def cifar10_in(folder: Path) -> Found | None:
    """Find CIFAR-10 in `folder`: as unpacked files, or as an archive or folder with an official name. Else None."""
    for layout, names in cifar10.FILES.items():
        if any(os.path.isfile(folder / name) for name in names):
            return Found(folder, layout)
    for name in OFFICIAL_NAMES:
        if os.path.exists(folder / name):
            return Found(folder / name, "binary" if "-bin" in name else "python")
    return None


def find_cifar10() -> Found | None:
    """Find CIFAR-10 at `$ONECYCLE_DATA` or, if it is not set, in `./data` or the user's cache. None if not found.

    Raises:
        InputError: when `$ONECYCLE_DATA` is set but does not hold CIFAR-10.
    """
    if named := os.environ.get("ONECYCLE_DATA"):
        path = Path(os.path.expanduser(named))
        try:
            there = cifar10_in(path) or locate(path)
        except OnecycleError as error:
            raise InputError(f"$ONECYCLE_DATA: {error}") from error
        if there.layout == "images":
            raise InputError(
                f"$ONECYCLE_DATA: {named} is an image folder, not CIFAR-10; give it with --data, or unset ONECYCLE_DATA"
            )
        return there
    return next((found for folder in (Path("data"), cache_folder()) if (found := cifar10_in(folder))), None)


def _layout_of_archive(path: Path) -> cifar10.Layout | Literal["images"]:
    """The layout of an archive. Reading stops at the first entry that determines the layout."""
    has_classes, left_out = False, LeftOut()
    for entry in entries_of(path):
        if layout := _official_layout(path, entry):
            return layout
        if any(part in ALWAYS_SPLITS for part in entry.parts[:2]):
            return "images"
        has_classes = has_classes or _is_in_class(entry)
        left_out.add_entry(entry)
    if has_classes or find_labels(path):
        return "images"
    raise InputError(
        left_out.appended_to(
            f"{path}: holds neither CIFAR-10's batches nor images in folders (train/<class>/* and test/<class>/*, or "
            "<class>/*), nor images with a labels.csv; give an archive with one of them"
        )
    )


def _first_layout(archive: Path) -> cifar10.Layout | Literal["images"] | None:
    """The layout of `archive`. Its first CIFAR-10 file or first image in a class folder determines the layout.

    Reading stops at this file. Returns None if the archive has no such file.
    """
    for entry in entries_of(archive):
        if layout := _official_layout(archive, entry):
            return layout
        if _is_in_class(entry):
            return "images"
    return None


def _official_layout(archive: Path, entry: Entry) -> cifar10.Layout | None:
    """The official layout of CIFAR-10 that has a file called like `entry` of `archive`, or None.

    Raises:
        InputError: when `archive` is CIFAR-100.
    """
    if entry.is_folder:
        return None
    if entry.parts in cifar10.CIFAR100_FILES:
        raise InputError(
            f"{archive}: this is CIFAR-100, which is not read yet; save its images as train/<class>/*.png and "
            "test/<class>/*.png, and give that folder"
        )
    return cifar10.layout_of(entry.parts[-1])


def _is_in_class(entry: Entry) -> bool:
    return len(entry.parts) > 1 and entry.is_image
