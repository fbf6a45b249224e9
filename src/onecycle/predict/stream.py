"""Naming what is in picture files, thousands of them: one after the other, in memory that does not grow."""

import glob
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from onecycle.core.errors import InputError
from onecycle.core.files import shown
from onecycle.data.preprocessing import suffixes
from onecycle.data.store.decoding import Encoded, each_decoded, square_of
from onecycle.predict.predictor import Prediction, Predictor, read_file

E = TypeVar("E", bound=Encoded)


class Labelled(NamedTuple):
    """A file, and what is in it, or why it cannot be read."""

    path: Path
    prediction: Prediction | InputError


class _File(NamedTuple):
    path: Path
    content: bytes | InputError

    @property
    def where(self) -> str:
        return shown(self.path)


def label(predictor: Predictor, sources: Iterable[str]) -> Iterator[Labelled]:
    """Name what is in the files of all `sources`, in order: files, folders and patterns such as `photos/**/*.jpg`.

    Of a folder those are read, at any depth, whose name is a picture's.
    """
    for file, prediction in each_labelled(predictor, map(_read, files_of(sources))):
        yield Labelled(file.path, prediction)


def each_labelled(predictor: Predictor, files: Iterator[E]) -> Iterator[tuple[E, Prediction | InputError]]:
    """Every one of `files` with what is in it, or why it cannot be read, in their order."""
    decode = partial(square_of, size=predictor.preprocessing.input_size)
    waiting: list[tuple[E, NDArray[np.uint8] | InputError]] = []
    for file, seen in each_decoded(files, decode):
        waiting.append((file, seen))
        if len(waiting) == predictor.at_once:
            yield from _labelled(predictor, waiting)
            waiting = []
    yield from _labelled(predictor, waiting)


def files_of(sources: Iterable[str]) -> Iterator[Path | tuple[Path, InputError]]:
    """The files that `sources` name; a source that names none comes with the reason."""
    for source in sources:
        path = Path(source)
        files: Iterable[Path | tuple[Path, InputError]]
        if not source:  # a variable of a shell that is not set; as a path it would be the current folder
            files = [(path, InputError("a name is empty; name a file, a folder or a pattern"))]
        elif os.path.isdir(path):
            files = _files_below(path)
        elif not os.path.lexists(path) and glob.has_magic(source):
            files = (Path(name) for name in sorted(glob.iglob(source, recursive=True)) if not os.path.isdir(name))
        else:
            files = [path]
        empty = True
        for file in files:
            empty = False
            yield file
        if empty:
            yield path, InputError(f"{shown(path)}: there are no pictures; check the name")


def _files_below(folder: Path) -> Iterator[Path | tuple[Path, InputError]]:
    unread: list[OSError] = []
    for place, folders, names in os.walk(folder, onerror=unread.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes():
                yield Path(place, name)
    for error in unread:
        path = Path(os.fsdecode(error.filename))
        yield path, InputError(f"{shown(path)} cannot be read: {error.strerror}")


def _read(file: Path | tuple[Path, InputError]) -> _File:
    if isinstance(file, tuple):
        return _File(*file)
    try:
        return _File(file, read_file(file))
    except InputError as error:
        return _File(file, error)


def _labelled(
    predictor: Predictor, waiting: list[tuple[E, NDArray[np.uint8] | InputError]]
) -> Iterator[tuple[E, Prediction | InputError]]:
    images = [seen for _, seen in waiting if not isinstance(seen, InputError)]
    predictions = iter(predictor.predict_images(np.stack(images)) if images else ())
    for file, seen in waiting:
        yield file, seen if isinstance(seen, InputError) else next(predictions)
