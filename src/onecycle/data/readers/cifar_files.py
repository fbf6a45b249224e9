"""What the official archives of CIFAR-10 and CIFAR-100 share: their files, their records and their pickles.

Source: Alex Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images"; https://www.cs.toronto.edu/~kriz/cifar.html
"""

import hashlib
import io
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onecycle.core.errors import InputError, OnecycleError
from onecycle.data.readers.download import RemoteFile, matches
from onecycle.data.readers.entries import entries_of
from onecycle.data.readers.image_set import ImageSet
from onecycle.data.readers.sets import Sets

_PIXELS = 3 * 32 * 32


class Batch(NamedTuple):
    """The images and labels of one file. `pixels` is uint8 `[n,3072]`, plane by plane; `labels` is int64 `[n]`."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One of the official formats: the names of its files, and the functions that read their content.

    Each function also takes the name of the file, to use it in error messages.
    """

    version: str  # "binary" or "python"
    meta: str
    train: tuple[str, ...]
    test: str
    names: Callable[[bytes, str], tuple[str, ...]]
    batch: Callable[[bytes, str], Batch]

    @property
    def files(self) -> tuple[str, ...]:
        return self.meta, *self.train, self.test


def find_official(folder: Path, names: Sequence[str], is_unpacked: Callable[[Path], bool]) -> Path | None:
    """Find an official data set in `folder`.

    Returns `folder` itself if it has the unpacked files. Otherwise returns the first archive or folder in `folder` that
    has one of the official `names`.
    """
    if is_unpacked(folder):
        return folder
    # `Path.exists` would raise an error for a path that is forbidden or too long.
    return next((folder / name for name in names if os.path.exists(folder / name)), None)


def read_cifar(path: Path, layouts: Sequence[Layout], *, title: str, name: str, official: Sequence[RemoteFile]) -> Sets:
    """Read the data set `name` from `path`, an archive or an unpacked folder.

    The layout is the first of `layouts` that has a file in `path`. Images are uint8 `[N,32,32,3]` in the official
    order. A note warns if `path` is not one of the `official` archives.

    Raises:
        InputError: when a file is missing, truncated or in another format, or a pickle contains more than plain data.
    """
    contents = _contents(path, {file for layout in layouts for file in layout.files})
    layout = next((each for each in layouts if not contents.keys().isdisjoint(each.files)), layouts[0])
    if missing := [file for file in layout.files if file not in contents]:
        raise InputError(f"{path}: {title} is incomplete: {', '.join(missing)} missing; download it again")
    digest = hashlib.sha256()
    for file in layout.files:
        digest.update(contents[file])
    classes = layout.names(contents[layout.meta], f"{path}: {layout.meta}")
    train = [layout.batch(contents.pop(file), f"{path}: {file}") for file in layout.train]
    test = layout.batch(contents.pop(layout.test), f"{path}: {layout.test}")
    sizes = [len(batch.labels) for batch in train]
    if len(set(sizes)) != 1:
        raise InputError(f"{path}: {title} is incomplete: its training batches hold {sizes} images; download it again")
    for file, batch in zip([*layout.train, layout.test], [*train, test], strict=True):
        labels = batch.labels
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
            wrong = labels.min() if labels.min() < 0 else labels.max()
            raise InputError(
                f"{path}: {file} has label {wrong}, but there are {len(classes)} classes; download it again"
            )
    return Sets(
        name=name,
        source=f"{title}, {layout.version} version, from {path}",
        train=_image_set(train, classes),
        test=_image_set([test], classes),
        notes=tuple(_notes(path, digest.hexdigest(), sum(sizes), len(test.labels), title, official)),
    )


def _notes(
    path: Path, contents: str, train: int, test: int, title: str, official: Sequence[RemoteFile]
) -> Iterator[str]:
    """Yield what the user should know about `path`.

    `contents` is the sha256 of the files that were read. `train` and `test` are the numbers of images in the two sets.
    """
    if path.is_dir():
        yield f"Unverified: {path.name} is unpacked, so it has no official checksum (its sha256: {contents})"
    elif not any(matches(path, archive) for archive in official):
        with path.open("rb") as file:
            fingerprint = hashlib.file_digest(file, "sha256").hexdigest()
        yield (
            f"Unverified: {path.name} does not have the checksum of an official {title} archive "
            f"(its sha256: {fingerprint})"
        )
    if (train, test) != (50_000, 10_000):
        yield f"Not all of {title}: {train:,} training and {test:,} test images, not 50,000 and 10,000"


def _contents(path: Path, names: set[str]) -> dict[str, bytes]:
    if not path.is_dir():
        return {e.parts[-1]: e.read() for e in entries_of(path) if not e.is_folder and e.parts[-1] in names}
    try:
        return {name: (path / name).read_bytes() for name in names if (path / name).is_file()}
    except OSError as error:
        raise InputError(
            f"{error.filename}: cannot be read ({error.strerror}); check it, or download it again"
        ) from error


def _image_set(batches: Sequence[Batch], classes: tuple[str, ...]) -> ImageSet:
    """The images of all `batches`, in this order."""
    images = np.empty((sum(len(batch.labels) for batch in batches), 32, 32, 3), np.uint8)
    start = 0
    for pixels, labels in batches:
        planes = pixels.reshape(-1, 3, 32, 32)  # [n,3072] -> [n,3,32,32]
        for channel in range(3):  # more than twice as fast as copying all channels at once
            images[start : start + len(labels), :, :, channel] = planes[:, channel]
        start += len(labels)
    return ImageSet(images, np.concatenate([batch.labels for batch in batches]), classes)


def text_names(content: bytes, where: str) -> tuple[str, ...]:
    """The class names in a text file, one a line."""
    try:
        return _checked_names(content.decode().split("\n"), where)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not a list of class names; download it again") from error


def binary_batch(content: bytes, where: str, *, label: int = 0, labels: int = 1) -> Batch:
    """The images of a binary file, each with one of its labels.

    Each record starts with `labels` bytes, one for each label. `label` is the index of the byte to use.
    """
    record = labels + _PIXELS
    if not content or len(content) % record:
        raise InputError(
            f"{where} has {len(content):,} bytes, not a multiple of the record size {record:,}; download it again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    return Batch(records[:, labels:], records[:, label].astype(np.int64))


def pickled_names(content: bytes, where: str, key: str) -> tuple[str, ...]:
    """The class names that a pickled dictionary holds at `key`."""
    names = _unpickle(content, where).get(key)
    if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
        raise InputError(f"{where}: no list of class names; download it again")
    return _checked_names([_text(name) for name in names], where)


def pickled_batch(content: bytes, where: str, key: str = "labels") -> Batch:
    """The images and the labels of a pickled dictionary. The labels are at `key`."""
    values = _unpickle(content, where)
    pixels, labels = values.get("data"), values.get(key)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (_PIXELS,):
        raise InputError(f"{where}: its data is not rows of {_PIXELS:,} bytes; download it again")
    if not isinstance(labels, list) or not all(type(label) is int and -1 < label < 256 for label in labels):
        raise InputError(f"{where}: its labels are not a list of small integers; download it again")
    if not len(pixels) or len(labels) != len(pixels):
        raise InputError(f"{where} has {len(pixels):,} images and {len(labels):,} labels; download it again")
    return Batch(pixels, np.array(labels, np.int64))


def _checked_names(names: list[str], where: str) -> tuple[str, ...]:
    classes = tuple(name.strip() for name in names if name.strip())
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise InputError(f"{where}: not a list of different class names; download it again")
    return classes


def _text(value: Any) -> Any:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _unpickle(content: bytes, where: str) -> dict[Any, Any]:
    try:
        values = _DataOnly(io.BytesIO(content), encoding="bytes").load()
    except OnecycleError as error:
        raise InputError(f"{where} {error}; download it again") from error
    except Exception as error:  # a damaged pickle may raise any exception
        raise InputError(f"{where}: not a readable CIFAR file ({type(error).__name__}); download it again") from error
    if not isinstance(values, dict):
        raise InputError(f"{where}: not a CIFAR file but a pickled {type(values).__name__}; download it again")
    return {_text(key): value for key, value in values.items()}


def _bytes_dtype(code: str | bytes, *_: object) -> np.dtype[Any]:
    if _text(code).strip("|") != "u1":
        raise InputError(f"holds an array of {_text(code)!r}, not of bytes, so the file was not loaded")
    # CIFAR's pickles pass `align` and `copy` as numbers, which numpy 2.4 warns about. This function passes booleans.
    # `copy` is True, because the unpickler modifies the returned dtype object.
    return np.dtype("u1", False, True)


def _latin_1_bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise InputError(f"asks for the encoding {encoding!r}, which CIFAR does not need, so the file was not loaded")
    return text.encode("latin-1")


class _DataOnly(pickle.Unpickler):
    """An unpickler that creates only lists, dicts, numbers, strings and arrays of bytes."""

    _ALLOWED: Mapping[tuple[str, str], Any] = {
        # numpy's constructor of empty arrays. Its module has different names in numpy 1 and numpy 2.
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): _bytes_dtype,
        ("_codecs", "encode"): _latin_1_bytes,  # how Python 3 pickles bytes in protocol 2
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise InputError(f"asks to call {module}.{name}, which CIFAR does not need, so the file was not loaded")
        return self._ALLOWED[module, name]
