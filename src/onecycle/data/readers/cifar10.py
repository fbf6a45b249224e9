"""Read CIFAR-10 in its two official formats.

Source: Alex Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images"; https://www.cs.toronto.edu/~kriz/cifar.html
"""

import hashlib
import io
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onecycle.core.errors import InputError, OnecycleError
from onecycle.data.readers.download import CIFAR10_BINARY, CIFAR10_PYTHON, matches
from onecycle.data.readers.entries import entries_of
from onecycle.data.readers.image_set import ImageSet
from onecycle.data.readers.sets import Sets

Layout = Literal["binary", "python"]

_TRAIN = [f"data_batch_{i}" for i in range(1, 6)]
_META: Mapping[Layout, str] = {"binary": "batches.meta.txt", "python": "batches.meta"}
_SUFFIX: Mapping[Layout, str] = {"binary": ".bin", "python": ""}
FILES: Mapping[Layout, tuple[str, ...]] = {
    layout: (_META[layout], *(name + _SUFFIX[layout] for name in (*_TRAIN, "test_batch"))) for layout in _META
}
# In the official archives of CIFAR-100, which is not read.
CIFAR100_FILES = (
    ("cifar-100-binary", "train.bin"),
    ("cifar-100-binary", "test.bin"),
    ("cifar-100-python", "train"),
    ("cifar-100-python", "test"),
)
_PIXELS = 3 * 32 * 32


def layout_of(name: str) -> Layout | None:
    """The official layout that has a file called `name`, or None."""
    return next((layout for layout, names in FILES.items() if name in names), None)


def read_cifar10(path: Path, layout: Layout) -> Sets:
    """Read CIFAR-10 from `path`, an archive or an unpacked folder. Files without an official checksum have a note.

    Images are uint8 `[N,32,32,3]` in the official order. Class names come from `batches.meta`.

    Raises:
        InputError: when a file is missing, truncated or in another format, or a pickle contains more than plain data.
    """
    contents = _contents(path, FILES[layout])
    missing = [name for name in FILES[layout] if name not in contents]
    if missing:
        raise InputError(f"{path}: CIFAR-10 is incomplete: {', '.join(missing)} missing; download it again")
    digest = hashlib.sha256()
    for name in FILES[layout]:
        digest.update(contents[name])
    names, batch = (_text_names, _binary_batch) if layout == "binary" else (_pickled_names, _pickled_batch)
    meta, *train_names, test_name = FILES[layout]
    classes = names(contents[meta], f"{path}: {meta}")
    train = [batch(contents.pop(name), f"{path}: {name}") for name in train_names]
    test = batch(contents.pop(test_name), f"{path}: {test_name}")
    sizes = [len(labels) for _, labels in train]
    if len(set(sizes)) != 1:
        raise InputError(f"{path}: CIFAR-10 is incomplete: its training batches hold {sizes} images; download it again")
    for name, (_, labels) in zip([*train_names, test_name], [*train, test], strict=True):
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
            wrong = labels.min() if labels.min() < 0 else labels.max()
            raise InputError(
                f"{path}: {name} has label {wrong}, but there are {len(classes)} classes; download it again"
            )
    notes = _notes(path, digest.hexdigest(), sum(sizes), len(test[1]))
    return Sets(
        name="cifar10",
        source=f"CIFAR-10, {layout} version, from {path}",
        train=_image_set(train, classes),
        test=_image_set([test], classes),
        notes=tuple(notes),
    )


def _notes(path: Path, contents: str, train: int, test: int) -> Iterator[str]:
    """What the user should know of `path`, whose files have the sha256 `contents`, and of its numbers of images."""
    if path.is_dir():
        yield f"Unverified: {path.name} is unpacked, so it has no official checksum (its sha256: {contents})"
    elif not any(matches(path, official) for official in (CIFAR10_BINARY, CIFAR10_PYTHON)):
        with path.open("rb") as file:
            fingerprint = hashlib.file_digest(file, "sha256").hexdigest()
        yield (
            f"Unverified: {path.name} does not have the checksum of an official CIFAR-10 archive "
            f"(its sha256: {fingerprint})"
        )
    if (train, test) != (50_000, 10_000):
        yield f"Not all of CIFAR-10: {train:,} training and {test:,} test images, not 50,000 and 10,000"


def _contents(path: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    if not path.is_dir():
        return {e.parts[-1]: e.read() for e in entries_of(path) if not e.is_folder and e.parts[-1] in names}
    try:
        return {name: (path / name).read_bytes() for name in names if (path / name).is_file()}
    except OSError as error:
        raise InputError(
            f"{error.filename}: cannot be read ({error.strerror}); check it, or download it again"
        ) from error


def _image_set(batches: list[tuple[NDArray[np.uint8], NDArray[np.int64]]], classes: tuple[str, ...]) -> ImageSet:
    images = np.empty((sum(len(labels) for _, labels in batches), 32, 32, 3), np.uint8)
    start = 0
    for pixels, labels in batches:
        planes = pixels.reshape(-1, 3, 32, 32)  # [n,3072] -> [n,3,32,32]
        for channel in range(3):  # more than twice as fast as copying all channels at once
            images[start : start + len(labels), :, :, channel] = planes[:, channel]
        start += len(labels)
    return ImageSet(images, np.concatenate([labels for _, labels in batches]), classes)


def _text_names(content: bytes, where: str) -> tuple[str, ...]:
    try:
        return _checked_names(content.decode().split("\n"), where)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not a list of class names; download it again") from error


def _binary_batch(content: bytes, where: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    record = 1 + _PIXELS
    if not content or len(content) % record:
        raise InputError(
            f"{where} has {len(content):,} bytes, not a multiple of the record size {record:,}; download it again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    return records[:, 1:], records[:, 0].astype(np.int64)


def _pickled_names(content: bytes, where: str) -> tuple[str, ...]:
    names = _unpickle(content, where).get("label_names")
    if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
        raise InputError(f"{where}: no list of class names; download it again")
    return _checked_names([_text(name) for name in names], where)


def _pickled_batch(content: bytes, where: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    values = _unpickle(content, where)
    pixels, labels = values.get("data"), values.get("labels")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (_PIXELS,):
        raise InputError(f"{where}: its data is not rows of {_PIXELS:,} bytes; download it again")
    if not isinstance(labels, list) or not all(type(label) is int and -1 < label < 256 for label in labels):
        raise InputError(f"{where}: its labels are not a list of small integers; download it again")
    if not len(pixels) or len(labels) != len(pixels):
        raise InputError(f"{where} has {len(pixels):,} images and {len(labels):,} labels; download it again")
    return pixels, np.array(labels, np.int64)


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
        raise InputError(
            f"{where}: not a readable CIFAR-10 file ({type(error).__name__}); download it again"
        ) from error
    if not isinstance(values, dict):
        raise InputError(f"{where}: not a CIFAR-10 file but a pickled {type(values).__name__}; download it again")
    return {_text(key): value for key, value in values.items()}


def _bytes_dtype(code: str | bytes, *_: object) -> np.dtype[Any]:
    if _text(code).strip("|") != "u1":
        raise InputError(f"holds an array of {_text(code)!r}, not of bytes, so it was not loaded")
    # CIFAR-10's pickles pass `align` and `copy` as numbers, which numpy 2.4 warns about. This function passes booleans.
    # `copy` is True, because the unpickler then modifies the new dtype object.
    return np.dtype("u1", False, True)


def _latin_1_bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise InputError(f"asks for the encoding {encoding!r}, so it was not loaded")
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
            raise InputError(f"asks to call {module}.{name}, which CIFAR-10 does not need, so it was not loaded")
        return self._ALLOWED[module, name]
