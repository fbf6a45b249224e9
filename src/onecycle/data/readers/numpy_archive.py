"""Read NumPy archives (.npz) with the arrays of MedMNIST or of Keras. Nothing in them is unpickled.

Sources: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html; Yang et al. 2023, "MedMNIST v2"
(train_images, train_labels, val_images, …); Keras' mnist.npz (x_train, y_train, x_test, y_test).
"""

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from onecycle.core.errors import InputError
from onecycle.core.files import printable
from onecycle.data.readers.archive_members import Member, too_large, zip_members
from onecycle.data.readers.entries import most_bytes, one_line_errors
from onecycle.data.readers.formats import FileNames, ReadOptions, RowFormat
from onecycle.data.readers.left_out import LeftOut
from onecycle.data.readers.stored_arrays import LabeledArray, StoredArray, array_sets
from onecycle.data.store.rows import RowSets

_SUFFIX = ".npz"
_SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
_NAMES = {  # for each split, the names of its image array and the names of its label array, in lower case
    name: ((f"{name}_images", f"x_{name}"), (f"{name}_labels", f"y_{name}")) for name in _SPLITS
}
_READ_HEADER = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class _Header(NamedTuple):
    """The header of an array in an archive. The values of the array start at byte `start` of the file `member`."""

    member: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int


class NumpyArchive(RowFormat):
    """Arrays of images and labels in a file that `numpy.savez` or `numpy.savez_compressed` wrote."""

    name = "a NumPy archive"
    example = "an .npz with train_images and train_labels, or with x_train and y_train"

    def find(self, files: FileNames) -> list[Path]:
        found = files.folders(lambda name: name.lower().endswith(_SUFFIX))
        return [folder / name for folder, names in found.items() for name in names]

    def is_member(self, parts: tuple[str, ...]) -> bool:
        return len(parts) == 1 and parts[0].endswith(".npy")

    def rows(self, path: Path, options: ReadOptions) -> RowSets:
        headers = _headers(path)
        by_lower_case = {name.lower(): name for name in headers}
        arrays, used = {}, set[str]()
        for name, split in _SPLITS.items():
            images, labels = (
                next((by_lower_case[each] for each in each_name if each in by_lower_case), None)
                for each_name in _NAMES[name]
            )
            if images is None and labels is None:
                continue
            if images is None or labels is None:
                raise InputError(
                    f"{path}: has {images or labels}, but no {'labels' if images else 'images'} beside it; save both"
                )
            if split in arrays:
                raise InputError(f"{path}: has two arrays of images for {split}; keep one of them")
            arrays[split] = LabeledArray(_stored(path, images, headers), _labels(path, labels, headers), labels)
            used |= {images, labels}
        if "train" not in arrays:
            raise InputError(
                f"{path}: has no training images; it must have arrays called train_images and train_labels, or x_train "
                f"and y_train; it has {', '.join(map(printable, headers)) or 'no arrays'}"
            )
        left_out = LeftOut()
        for name in headers:
            if name not in used:
                left_out.add("array of another name", name)
        return array_sets(path, arrays, source=f"NumPy archive {path}", files=[path], left_out=left_out)


def _headers(path: Path) -> dict[str, _Header]:
    """The headers of the arrays in the archive `path`, by name.

    For each array, the size that the header gives is checked against the size that the archive gives.
    """
    found: dict[str, _Header] = {}
    most = left = most_bytes(path)
    with one_line_errors(path), zipfile.ZipFile(path) as archive:
        for member in zip_members(path):  # `zip_members` refuses links, and all compression except deflate
            left -= member.size
            if left < 0:
                raise too_large(path, most)
            name = member.name.removesuffix(".npy")
            if name == member.name:
                raise InputError(f"{path}: {printable(name)} is not an array; keep the .npy files only")
            with archive.open(member.name) as file:
                found[name] = _header(path, name, member, file)
    return found


def _header(path: Path, name: str, member: Member, file: IO[bytes]) -> _Header:
    version = npy.read_magic(file)
    if version not in _READ_HEADER:
        raise InputError(f"{path}: {name} has the version {version} of NumPy's format; save it again")
    shape, is_fortran, dtype = _READ_HEADER[version](file)
    if dtype.hasobject:
        raise InputError(f"{path}: {name} holds Python objects, which may run code, so it was not loaded; save numbers")
    if is_fortran and len(shape) > 1:
        raise InputError(f"{path}: {name} is in Fortran order; save np.ascontiguousarray({name})")
    if min(shape, default=0) < 0 or file.tell() + math.prod(shape) * dtype.itemsize != member.size:
        raise InputError(
            f"{path}: {name} has {member.size:,} bytes, which is not the size of {dtype} {shape} that its header says; "
            "save it again"
        )
    return _Header(member.name, shape, dtype, file.tell())


def _stored(path: Path, name: str, headers: dict[str, _Header]) -> StoredArray:
    header = headers[name]
    if header.dtype != np.uint8:
        advice = (
            f"(255 * {name}).round().astype('uint8') if they are from 0 to 1"
            if header.dtype.kind == "f"
            else f"{name}.astype('uint8')"
        )
        raise InputError(f"{path}: {name} is {header.dtype}; pixels must be uint8, from 0 to 255: save {advice}")
    return StoredArray(path, name, header.shape, partial(_opened, path, header))


def _labels(path: Path, name: str, headers: dict[str, _Header]) -> NDArray[np.integer[Any]]:
    header = headers[name]
    if header.dtype.kind not in "iu":
        raise InputError(
            f"{path}: {name} is {header.dtype}; labels must be integers, namely class numbers: save "
            f"{name}.astype('int64')"
        )
    with one_line_errors(path), _opened(path, header) as file:
        content = file.read()
    return np.frombuffer(content, header.dtype).reshape(header.shape)


@contextmanager
def _opened(path: Path, header: _Header) -> Iterator[IO[bytes]]:
    """Yield a file with the values of an array. Reading this file to its end checks the checksum of the array."""
    with zipfile.ZipFile(path) as archive, archive.open(header.member) as file:
        file.read(header.start)
        yield file
