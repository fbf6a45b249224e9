"""Predict the classes of many image files, one batch after another, in constant memory."""

import glob
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from onecycle.core.errors import InputError
from onecycle.core.files import printable
from onecycle.data.image_files import has_image_suffix
from onecycle.data.readers.entries import folder_entries
from onecycle.data.readers.left_out import LeftOut
from onecycle.data.store.decode import Encoded, Unreadable, decode_square, each_decoded
from onecycle.predict.predictor import Prediction, Predictor, read_file

E = TypeVar("E", bound=Encoded)


class FilePrediction(NamedTuple):
    """A file with its prediction, or with the reason why the file cannot be read."""

    path: Path
    prediction: Prediction | Unreadable


class NamedFile(NamedTuple):
    """A file that a source names. If `path` gives no file, `problem` says why. Otherwise `problem` is None."""

    path: Path
    problem: str | None = None


class _File(NamedTuple):
    path: Path
    content: bytes | Unreadable

    @property
    def where(self) -> str:
        return printable(self.path)


def predict_files(
    predictor: Predictor, sources: Iterable[str], left_out: LeftOut | None = None
) -> Iterator[FilePrediction]:
    """Predict the class of every file in `sources`, in order.

    Sources are files, folders or patterns like `photos/**/*.jpg`. Folders are searched at any depth for files with the
    suffix of an image format. Other files in folders are counted in `left_out`.
    """
    for file, prediction in predict_each(predictor, map(_read, files_of(sources, left_out))):
        yield FilePrediction(file.path, prediction)


def predict_each(predictor: Predictor, files: Iterator[E]) -> Iterator[tuple[E, Prediction | Unreadable]]:
    """Yield each of `files`, in order, with its prediction or the reason why it cannot be read."""
    decode = partial(decode_square, size=predictor.preprocessing.input_size)
    waiting: list[tuple[E, NDArray[np.uint8] | Unreadable]] = []
    for file, image in each_decoded(files, decode):
        waiting.append((file, image))
        if len(waiting) == predictor.batch_size:
            yield from _predict_batch(predictor, waiting)
            waiting = []
    yield from _predict_batch(predictor, waiting)


def files_of(sources: Iterable[str], left_out: LeftOut | None = None) -> Iterator[NamedFile]:
    """Yield the files that `sources` name. A source is the path of a file or folder, or a pattern.

    A folder that matches a pattern is searched like a folder in `sources`. In folders, files that are not images are
    counted in `left_out`.
    """
    for source in sources:
        path, in_folder = Path(source), LeftOut()
        files: Iterable[NamedFile]
        if not source:  # an unset shell variable gives ""; Path("") would be the current folder
            files = [NamedFile(path, "a file name is empty; give files, folders or patterns")]
        elif os.path.isdir(path):
            files = _files_below(path, in_folder)
        elif not os.path.lexists(path) and glob.has_magic(source):
            files = files_of(_matches(source), left_out)
        else:
            files = [NamedFile(path)]
        empty = True
        for file in files:
            empty = False
            yield file
        if empty:
            yield NamedFile(path, in_folder.appended_to(f"{printable(path)}: no image found; check the name"))
        elif left_out is not None:
            left_out.include(in_folder, f"{path}/")


def _matches(pattern: str) -> Iterator[str]:
    """Yield the paths that match `pattern`, in order. If a folder matches, the paths inside it are skipped.

    The folders at the start of `pattern` are taken literally as far as they exist: brackets in their names are not
    wildcards.
    """
    folder = pattern
    while folder and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    names = glob.iglob(glob.escape(folder) + pattern[len(folder) :], recursive=True)
    around: Path | None = None
    for path in sorted(map(Path, names)):  # in this order, a folder comes directly before the paths inside it
        if around is None or not path.is_relative_to(around):
            yield str(path)
            around = path if os.path.isdir(path) else None


def _files_below(folder: Path, left_out: LeftOut) -> Iterator[NamedFile]:
    unread: list[OSError] = []
    for entry in folder_entries(folder, unread.append):
        # A link with the name of an image, but without a target, is reported as unreadable.
        if not entry.is_folder and has_image_suffix(entry.parts[-1]):
            yield NamedFile(folder.joinpath(*entry.parts))
        else:
            left_out.add_entry(entry)
    for error in unread:
        path = Path(os.fsdecode(error.filename))
        yield NamedFile(path, f"{printable(path)} cannot be read: {error.strerror}")


def _read(file: NamedFile) -> _File:
    return _File(file.path, Unreadable(file.problem) if file.problem else read_content(file.path))


def read_content(path: Path) -> bytes | Unreadable:
    """The content of an image file, or the reason why it cannot be read."""
    try:
        return read_file(path)
    except InputError as error:
        return Unreadable(str(error))


def _predict_batch(
    predictor: Predictor, waiting: list[tuple[E, NDArray[np.uint8] | Unreadable]]
) -> Iterator[tuple[E, Prediction | Unreadable]]:
    images = [image for _, image in waiting if not isinstance(image, Unreadable)]
    predictions = iter(predictor.predict_images(np.stack(images)) if images else ())
    for file, image in waiting:
        yield file, image if isinstance(image, Unreadable) else next(predictions)
