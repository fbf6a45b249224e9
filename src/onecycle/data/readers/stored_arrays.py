"""Arrays of images and labels in files. Their shapes are checked first; images are read a few megabytes at a time."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from gzip import GzipFile
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onecycle.core.errors import InputError
from onecycle.data.image_files import MOST_PIXELS, SMALLEST_SIDE
from onecycle.data.readers.entries import one_line_errors
from onecycle.data.readers.labels import classes_of
from onecycle.data.readers.left_out import LeftOut
from onecycle.data.store.rows import Rows, RowSets

_AT_ONCE = 2**22  # bytes of images that are read at a time


@dataclass(frozen=True)
class StoredArray:
    """An array of bytes in the file `path`. The array is called `name`, and its header gives the `shape`.

    `open` opens the file, and moves to the first value after the header. If the file has a checksum, reading the opened
    file to its end must raise an error when the file is damaged.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    open: Callable[[], AbstractContextManager[IO[bytes] | GzipFile]]

    def values(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the array in parts of a few megabytes. The last dimension of `[N,H,W,1]` is removed.

        Raises:
            InputError: when the file holds fewer or more values than its header says, or is damaged.
        """
        of_one = self.shape[1:-1] if self.shape[3:] == (1,) else self.shape[1:]
        nbytes = math.prod(of_one)
        at_once = max(1, _AT_ONCE // max(1, nbytes))
        with one_line_errors(self.path), self.open() as file:
            for start in range(0, self.shape[0], at_once):
                count = min(at_once, self.shape[0] - start)
                content = file.read(count * nbytes)
                is_last = start + count == self.shape[0]
                if len(content) < count * nbytes or (is_last and file.read(1)):
                    claimed = f"the {self.shape[0]:,} entries that its header claims"
                    raise InputError(f"{self.path}: {self.name} does not hold {claimed}; get it again")
                yield np.frombuffer(content, np.uint8).reshape(count, *of_one)

    def images(self) -> Iterator[NDArray[np.uint8]]:
        """Yield each image, `[H,W]` or `[H,W,3]`."""
        return itertools.chain.from_iterable(self.values())


class LabeledArray(NamedTuple):
    """The images and labels of a split. `labels` are integers of any shape, from the array called `labels_name`."""

    images: StoredArray
    labels: NDArray[np.integer[Any]]
    labels_name: str


def array_sets(
    path: Path,
    arrays: Mapping[str, LabeledArray],
    *,
    source: str,
    files: Sequence[Path],
    class_names: Sequence[str] | None = None,
    name: str | None = None,
    notes: Sequence[str] = (),
    left_out: LeftOut,
) -> RowSets:
    """Make a data set of `arrays`, one per split. Without `class_names`, the names of the classes are their numbers.

    Raises:
        InputError: when the shape of an array is wrong, or the labels cannot be used.
    """
    labels = {split: _checked_labels(path, array) for split, array in arrays.items()}

    def row_name(split: str, row: int) -> str:
        return _row_name(arrays[split].images, row)

    classes = classes_of(labels, str(path), row_name, class_names)
    by_split = {
        split: Rows(
            labels=classes.labels[split],
            names=partial(_row_names, array.images),
            contents=array.images.images,
        )
        for split, array in arrays.items()
    }
    return RowSets(
        source=source,
        prefix=f"{path}{'/' if path.is_dir() else ': '}",
        path=path,
        files=files,
        classes=classes.names,
        by_split=by_split,
        name=name,
        notes=tuple(notes),
        left_out=(*left_out.lines(), *classes.left_out.lines()),
    )


def _row_name(images: StoredArray, row: int) -> str:
    return f"{images.name}, row {row}"


def _row_names(images: StoredArray) -> Iterator[str]:
    return (_row_name(images, row) for row in range(images.shape[0]))


def _checked_labels(path: Path, array: LabeledArray) -> NDArray[np.int64]:
    """Check the shapes of `array`, and return its labels as int64 `[N]`."""
    shape, where = array.images.shape, f"{path}: {array.images.name}"
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
        raise InputError(f"{where} has the shape {shape}; images must be [N,H,W] or [N,H,W,3]")
    if min(shape[1:3]) < SMALLEST_SIDE or math.prod(shape[1:3]) > MOST_PIXELS:
        raise InputError(
            f"{where} has images of {shape[2]}×{shape[1]} pixels; they must have at least {SMALLEST_SIDE} pixels on "
            f"each side, and at most {MOST_PIXELS:,} in all"
        )
    labels = array.labels.reshape(-1) if array.labels.shape[1:] == (1,) else array.labels
    if labels.ndim != 1:
        raise InputError(
            f"{path}: {array.labels_name} has the shape {labels.shape}; each image needs one label, the number of its "
            "class, so the labels must be [N] or [N,1]"
        )
    if len(labels) != shape[0]:
        raise InputError(
            f"{where} has {shape[0]:,} images, but {array.labels_name} has {len(labels):,} labels; save both again"
        )
    return labels.astype(np.int64)
