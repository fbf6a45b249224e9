"""Read a table of labels: a CSV file with the file, the label and perhaps the split of each image."""

import csv
import hashlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from onecycle.core.errors import InputError
from onecycle.core.files import printable
from onecycle.core.regular_files import read_regular
from onecycle.data.readers.entries import archives_in, entries_of, is_ignored
from onecycle.data.store.index import split_of

FOUND_NAMES = ("labels.csv", "trainlabels.csv")
"""Files with these names, in upper or lower case, are read although no option names them."""

NO_LABELS = "none"
"""Given instead of the path of a table of labels, this means: read no table, even if there is one."""

# Known column names, the preferred ones first. Only the letters and digits of a name are compared, in lower case.
_FILE = (
    *("file", "filename", "filepath", "path", "image", "imagefile", "imagefilename", "imagename", "imagepath"),
    *("img", "imgname", "imgpath", "imageid", "idcode", "id"),
)
_LABEL = ("label", "labels", "class", "classname", "classlabel", "category", "target")
_SPLIT = ("split", "set", "subset", "partition", "dataset", "datasplit")

_MOST_BYTES = 2**28
_MOST_COLUMNS = 1000
_DELIMITERS = (",", ";", "\t")


class LabeledFile(NamedTuple):
    """A row of a table of labels. `split` is empty if the table has no splits."""

    line: int  # 1-based, for messages
    file: str  # the path of the image, as it is written in the table
    label: str
    split: str


@dataclass(frozen=True, kw_only=True)
class LabelFile:
    """A table of labels. `name` is its path, as messages show it. `digest` is the SHA-256 of its content, in hex."""

    name: str
    rows: tuple[LabeledFile, ...]
    columns: tuple[str, ...]  # the names of the columns that are read
    digest: str
    inside: str | None  # the path of the table in the data; None if the table is elsewhere
    # The folder that contains the table, as an absolute path. If the data is in an archive, this is the path in the
    # archive instead, or "" if the table is outside of the archive.
    folder: str
    root: str | None  # the absolute path of the data; None if the data is in an archive

    @property
    def has_splits(self) -> bool:
        return len(self.columns) == 3

    def paths(self, row: LabeledFile) -> list[str]:
        """The possible paths of the image of `row`, relative to the data.

        `row.file` may be relative to the folder of the table or to the data.

        Raises:
            InputError: when all paths are outside of the data.
        """
        value = row.file.replace("\\", "/")
        joined = os.path.normpath(os.path.join(self.folder, value))
        relative = joined if self.root is None else os.path.relpath(joined, self.root)
        found = dict.fromkeys((relative, os.path.normpath(value)))
        if inside := [path for path in found if not re.match(r"/|\.\.(/|$)|[A-Za-z]:/", path)]:
            return inside
        raise self.problem(row.line, f"{row.file!r} is outside of the data; give its path inside")

    def problem(self, line: int, what: str) -> InputError:
        return InputError(f"{self.name}, line {line}: {what}")


def find_labels(source: Path, given: str | None = None, *, compare: bool = True) -> LabelFile | None:
    """The table of labels for the images in `source`, a folder or an archive.

    `given` is the path of the table, relative to the working folder or to `source`. Without `given`, a file with one
    of `FOUND_NAMES` is used. This file must be at the top of `source`, or in the only folder there. It must have the
    columns of a table of labels. Returns None if there is no such file, or if `given` is "none".

    There may be a file `given` in the working folder and another one in an archive. With `compare`, the archive is then
    searched, which takes long, and the files must be equal. Otherwise, the file in the working folder is used.

    Raises:
        InputError: when there is no file `given`, two files `given` differ, or the file is not a table of labels.
    """
    if given == NO_LABELS:
        return None
    if given is None:
        return _found_in_folder(source) if source.is_dir() else _found_in_archive(source)
    here = Path(os.path.expanduser(given))
    content_here = _content(here) if os.path.isfile(here) else None
    if content_here is not None and not (compare or source.is_dir()):
        return _from_file(here, content_here, source)
    there = _given_in_folder(source, given) if source.is_dir() else _given_in_archive(source, given)
    if there and content_here is not None and hashlib.sha256(content_here).hexdigest() != there.digest:
        raise InputError(
            f"--labels: {given} names one file from here and another one from {source}; give the full path"
        )
    if there is None and content_here is None:
        raise InputError(f"--labels: there is no file {given}, neither here nor in {source}; check the path")
    return there or _from_file(here, content_here or b"", source)


def _given_in_folder(source: Path, given: str) -> LabelFile | None:
    path = source / given
    return _from_file(path, _content(path), source) if os.path.isfile(path) else None


def _given_in_archive(source: Path, given: str) -> LabelFile | None:
    wanted = os.path.normpath(given)
    if os.path.isabs(wanted) or wanted.startswith(".."):
        return None
    for entry in entries_of(source):
        if not entry.is_folder and "/".join(entry.parts) == wanted:
            return _from_archive(entry.parts, entry.read(), source)
    return None


@contextmanager
def _with_way_out() -> Iterator[None]:
    """Add to an error about a table that was found, and not given, how to ignore the table."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{error}; --labels {NO_LABELS} ignores the file") from error


def _found_in_folder(source: Path) -> LabelFile | None:
    try:
        places = [source, *_only_folder(source)]
        paths = [path for place in places for path in sorted(place.iterdir()) if _is_found(path.name)]
    except OSError:
        return None  # the error is reported later, when the images are read
    with _with_way_out():
        for path in paths:
            if path.is_file() and _has_columns(content := _content(path)):
                return _from_file(path, content, source)
    return None


def _found_in_archive(source: Path) -> LabelFile | None:
    found: dict[tuple[str, ...], bytes] = {}
    tops = set()
    for entry in entries_of(source):
        if entry.is_folder or len(entry.parts) > 1:
            tops.add(entry.parts[0])
        if len(entry.parts) <= 2 and not entry.is_folder and _is_found(entry.parts[-1]):
            with _with_way_out():
                content = entry.read()
            if _has_columns(content):
                found[entry.parts] = content
    parts = min((parts for parts in found if len(parts) == 1 or len(tops) == 1), key=len, default=None)
    with _with_way_out():
        return None if parts is None else _from_archive(parts, found[parts], source)


def _only_folder(source: Path) -> list[Path]:
    folders = [path for path in source.iterdir() if path.is_dir() and not is_ignored(path.name, is_folder=True)]
    return folders if len(folders) == 1 else []


def _is_found(name: str) -> bool:
    return name.lower() in FOUND_NAMES


def _has_columns(content: bytes) -> bool:
    try:
        _, header = next(_lines(content, ""), (0, [""]))
        _columns(header, "")
    except InputError:
        return False
    return True


def _content(path: Path) -> bytes:
    try:
        return read_regular(Path(os.path.realpath(path)), _MOST_BYTES)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check it") from error


def _from_file(path: Path, content: bytes, source: Path) -> LabelFile:
    """The table of labels in the file `path`. The file may be in the folder `source` or elsewhere."""
    absolute, root = os.path.abspath(path), os.path.abspath(source)
    relative = os.path.relpath(absolute, root)
    inside = relative if source.is_dir() and relative.split(os.sep)[0] != os.pardir else None
    if source.is_dir() and not archives_in(source):
        return _parsed(content, str(path), inside=inside, folder=os.path.dirname(absolute), root=root)
    return _parsed(content, str(path), inside=inside, folder="", root=None)


def _from_archive(parts: tuple[str, ...], content: bytes, source: Path) -> LabelFile:
    """The table of labels with the path `parts` in the archive `source`."""
    inside = "/".join(parts)
    return _parsed(content, f"{source}:{inside}", inside=inside, folder="/".join(parts[:-1]), root=None)


def _parsed(content: bytes, path: str, *, inside: str | None, folder: str, root: str | None) -> LabelFile:
    name = printable(path)
    lines = _lines(content, name)
    line, header = next(lines, (1, []))
    if not any(header):
        raise InputError(f"{name}: the file is empty; it needs columns such as file and label")
    places = _columns(header, name)
    rows = []
    for line, cells in lines:
        if not any(cells):
            continue
        if len(cells) != len(header):
            raise InputError(
                f"{name}, line {line}: the number of cells is {len(cells)}, but the first line has {len(header)}; "
                "correct it"
            )
        file, label, split = (cells[place] if place is not None else "" for place in places)
        for what, value in (("file", file), ("label", label)):
            if not value.strip():
                raise InputError(f"{name}, line {line}: the {what} is empty; fill it in, or remove the line")
        if places[2] is not None and split_of(split) is None:
            raise InputError(f"{name}, line {line}: the split is {split!r}; it must be train, val or test")
        rows.append(LabeledFile(line, file, label.strip(), split_of(split) or ""))
    if not rows:
        raise InputError(f"{name}: has no rows below its first line; add a row for each image")
    columns = tuple(printable(header[place].strip()) for place in places if place is not None)
    digest = hashlib.sha256(content).hexdigest()
    return LabelFile(
        name=name, rows=tuple(rows), columns=columns, digest=digest, inside=inside, folder=folder, root=root
    )


def _lines(content: bytes, name: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the cells of each row. A row of several lines has the number of its last line."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: is not text in UTF-8; save it as a CSV file in UTF-8") from error
    first = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            yield reader.line_num, cells
    except csv.Error as error:
        raise InputError(
            f"{name}, line {reader.line_num}: is not a line of a CSV file ({error}); correct it"
        ) from error


def _columns(header: Sequence[str], name: str) -> tuple[int, int, int | None]:
    """The positions of the columns that hold the files, the labels and the splits.

    If no column has a known name for labels, the labels are in the only other column with a name.
    """
    if len(header) > _MOST_COLUMNS:
        raise InputError(
            f"{name}: has {len(header):,} columns, but an image needs only a file and a label; remove the other columns"
        )
    plain = [re.sub(r"[\W_]", "", column).lower() for column in header]
    shown = ", ".join(repr(column[:40]) for column in header[:5]) + (", …" if len(header) > 5 else "")

    def place(names: Sequence[str]) -> int | None:
        wanted = next((name for name in names if name in plain), None)
        if wanted is None:
            return None
        if plain.count(wanted) > 1:
            raise InputError(f"{name}: has two columns {header[plain.index(wanted)]!r}; remove or rename one")
        return plain.index(wanted)

    file, label, split = place(_FILE), place(_LABEL), place(_SPLIT)
    if file is None:
        raise InputError(f"{name}: has no column of files among its columns {shown}; call one of them 'file'")
    if label is None:
        others = [number for number, column in enumerate(plain) if column and number not in (file, split)]
        if len(others) != 1:
            raise InputError(f"{name}: has no column of labels among its columns {shown}; call one of them 'label'")
        (label,) = others
    return file, label, split
