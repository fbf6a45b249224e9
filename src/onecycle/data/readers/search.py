"""Find out which format the data at a path has, and find data sets by their names.

This module uses `os.path.exists`, which returns False for a path that is forbidden or too long. `Path.exists` would
raise an error.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from onecycle.core.cache import cache_folder
from onecycle.core.errors import InputError, OnecycleError
from onecycle.data.readers.entries import archives_in, entries_of
from onecycle.data.readers.formats import START, FileNames, Format
from onecycle.data.readers.label_file import NO_LABELS
from onecycle.data.readers.left_out import LeftOut
from onecycle.data.readers.named import NamedSet
from onecycle.data.readers.registry import DEFAULT, EMBEDDED, FORMATS, IMAGES, NAMED

_MOST_NAMED = 3  # a message about a folder with several data sets names at most this many


@dataclass(frozen=True)
class Found:
    """The format of the data at `path`."""

    path: Path
    format: Format


def locate(path: Path, labels: str | None = None) -> Found:
    """Find out which format the file or folder at `path` has. If `labels` names a table, the format is image files.

    Raises:
        InputError: when `path` does not exist, or does not hold exactly one data set.
    """
    path = Path(os.path.expanduser(path))
    if not os.path.exists(path):
        names = ", ".join((*NAMED, *EMBEDDED))
        raise InputError(f"{path}: no such file or folder; check the path, or use a name: {names}")
    if labels not in (None, NO_LABELS):
        return Found(path, IMAGES)
    return _in_folder(path) if path.is_dir() else _in_file(path)


def _in_folder(folder: Path) -> Found:
    files = FileNames(folder)
    found = [Found(path, format) for format in FORMATS for path in format.find(files)]
    if len(found) > 1:
        named = [f"{each.format.name} ({_inside(each.path, folder)})" for each in found[:_MOST_NAMED]]
        more = ", …" if len(found) > _MOST_NAMED else ""
        raise InputError(
            f"{folder}: holds several data sets: {', '.join(named)}{more}; give the path of one of them, or move the "
            "others away"
        )
    if found:
        return found[0]
    if not any(folder.iterdir()):
        raise InputError(f"{folder}: the folder is empty; give a folder or an archive with images")
    left_out = LeftOut()
    if archives := archives_in(folder):
        formats = (format_of_archive(archive, left_out) for archive in archives)
        if (format := next(filter(None, formats), None)) and format.joins_archives:
            return Found(folder, format)
    else:
        for entry in entries_of(folder):
            left_out.add_entry(entry)
    raise _nothing(folder, left_out, "an archive or a folder")


def _inside(path: Path, folder: Path) -> str:
    return "in the folder itself" if path == folder else str(path.relative_to(folder))


def _in_file(file: Path) -> Found:
    try:
        with file.open("rb") as opened:
            start = opened.read(START)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); check it") from error
    for format in FORMATS:
        if format.is_file(file.name, start):
            return Found(file, format)
    left_out = LeftOut()
    if of_archive := format_of_archive(file, left_out):
        return Found(file, of_archive)
    raise _nothing(file, left_out, "an archive")


def format_of_archive(archive: Path, left_out: LeftOut) -> Format | None:
    """The format of `archive`. Reading stops at the first file that determines the format.

    Files before it are added to `left_out`. Returns None if there is no such file.
    """
    for entry in entries_of(archive):
        if not (entry.is_folder or entry.problem):
            for format in FORMATS:
                if format.is_member(entry.parts):
                    return format
        left_out.add_entry(entry)
    return None


def _nothing(path: Path, left_out: LeftOut, form: str) -> InputError:
    known = "; ".join(f"{format.name} ({format.example})" for format in FORMATS)
    return InputError(left_out.appended_to(f"{path}: holds no data that is read; give {form} with one of: {known}"))


def find_named(named: NamedSet) -> Path | None:
    """Look for `named` in `$ONECYCLE_DATA`, `./data` and the user's cache, in this order. Returns its path or None.

    Raises:
        InputError: when `named` is the default data set, and `$ONECYCLE_DATA` is set but does not hold it.
    """
    if variable := os.environ.get("ONECYCLE_DATA"):
        place = Path(os.path.expanduser(variable))
        if found := named.find(place):
            return found
        if named is DEFAULT:
            return _default_at(place)
    return next(filter(None, map(named.find, (Path("data"), cache_folder()))), None)


def _default_at(place: Path) -> Path:
    """The path of the default data set at `place`. `place` is a file or a folder and may have any name."""
    try:
        found = locate(place)
    except OnecycleError as error:
        raise InputError(f"$ONECYCLE_DATA: {error}") from error
    if found.format.name != DEFAULT.title:
        raise InputError(
            f"$ONECYCLE_DATA: {place} holds {found.format.name}, not {DEFAULT.title}; give this path with --data, or "
            "unset ONECYCLE_DATA"
        )
    return found.path
