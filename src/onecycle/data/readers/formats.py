"""The interface of readers: how to recognize a format, and how to read it. `registry` lists the formats."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from onecycle.core.errors import InputError
from onecycle.data.image_files import has_image_suffix
from onecycle.data.readers.entries import is_ignored
from onecycle.data.readers.sets import Sets
from onecycle.data.store.rows import RowSets, read_rows

_DEPTH = 2  # the given folder and this many levels of subfolders are searched for data sets
START = 512  # bytes that `Format.is_file` gets from the start of a file


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How to read a data set: the `size` of its images, a table of `labels`, and whether the labels are `coarse`."""

    size: int = 32
    labels: str | None = None
    coarse: bool = False


class FileNames:
    """The names of the visible files in a folder and in the folders below it, down to a depth of 2."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self._by_folder = dict(_file_names(top, _DEPTH))

    def folders(self, is_wanted: Callable[[str], bool]) -> Mapping[Path, list[str]]:
        """The folders with wanted files, and the sorted names of these files.

        If such folders are at several depths, only those closest to the top are returned.
        """
        found = {
            folder: wanted for folder, names in self._by_folder.items() if (wanted := sorted(filter(is_wanted, names)))
        }
        uppermost = min((len(folder.parts) for folder in found), default=0)
        return {folder: names for folder, names in found.items() if len(folder.parts) == uppermost}


def _file_names(folder: Path, depth: int) -> Iterator[tuple[Path, list[str]]]:
    names, folders = [], []
    try:
        with os.scandir(folder) as scan:
            for item in scan:
                is_folder = os.path.isdir(item.path)  # `item.is_dir()` raises an error for a loop of links
                if is_ignored(item.name, is_folder=is_folder):
                    continue
                if is_folder:
                    folders.append(Path(item.path))
                    continue
                # Skip a subfolder with images. It may have a million images, and no reader uses its other files.
                if depth < _DEPTH and has_image_suffix(item.name):
                    return
                names.append(item.name)
    except OSError as error:
        if depth == _DEPTH:
            raise InputError(f"{folder}: cannot be read ({error.strerror}); check it") from error
        return  # skip a subfolder that this user must not read; perhaps it is not needed
    yield folder, names
    if depth:
        for below in sorted(folders):
            yield from _file_names(below, depth - 1)


class Format(ABC):
    """A format of data sets."""

    name: ClassVar[str]  # for messages
    example: ClassVar[str]  # file names of this format, for messages
    has_coarse: ClassVar[bool] = False  # whether there may be coarse labels
    joins_archives: ClassVar[bool] = False  # whether several archives in a folder are one data set

    def find(self, files: FileNames) -> list[Path]:
        """The data sets of this format in the folder `files.top`: the paths to give to `read`."""
        return []

    def is_file(self, name: str, start: bytes) -> bool:
        """Whether a file with this `name` and `start`, its first 512 bytes, has this format."""
        return False

    def is_member(self, parts: tuple[str, ...]) -> bool:
        """Whether an archive has this format, given the path of one of its files, split into `parts`."""
        return False

    @abstractmethod
    def read(self, path: Path, options: ReadOptions) -> Sets:
        """Read the data set at `path`, which `find`, `is_file` or `is_member` recognized.

        Raises:
            InputError: when the data cannot be used.
            StorageError: when the cache cannot be written.
        """


class RowFormat(Format):
    """A format that keeps images in the rows of files. `read` decodes the images into the cache."""

    @abstractmethod
    def rows(self, path: Path, options: ReadOptions) -> RowSets:
        """The rows of the data set at `path`, with their labels but not their images.

        Raises:
            InputError: when the data cannot be used.
        """

    def read(self, path: Path, options: ReadOptions) -> Sets:
        return read_rows(self.rows(path, options), options.size)
