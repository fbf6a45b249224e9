"""Image sets of any size, in memory-mapped files in the cache."""

import hashlib
import json
import math
import mmap
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onecycle.data.image_files import to_square
from onecycle.data.preprocessing import channel_sums
from onecycle.data.readers.image_names import ImageNames
from onecycle.data.readers.image_set import ImageSet, ImageStatistics, fingerprint_of
from onecycle.data.store.cache import cached

IN_MEMORY = 2**28  # bytes; a larger subset becomes a file
_AT_ONCE = 2**23  # bytes of images copied at a time
_VERSION = 1  # increase it when the file format of a subset changes

# By default, the system reserves memory for private writable pages, so it refuses to map a set larger than memory. This
# flag turns the reservation off. Python has the flag's name from 3.13 on. 0x4000 is its value on Linux.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def subset_of(images: ImageSet, rows: NDArray[np.integer[Any]]) -> ImageSet:
    """The images at `rows`, integers `[M]`, in that order. A large subset is in the cache, a small one in memory.

    Raises:
        StorageError: when the cache cannot be written.
    """
    if len(rows) * images.images[:1].nbytes <= IN_MEMORY:
        return images.subset(rows)
    digest = hashlib.sha256(json.dumps([_VERSION, images.fingerprint]).encode())
    digest.update(np.ascontiguousarray(rows, dtype="<i8").data)
    parts = (images.images[rows[part]] for part in portions(len(rows), images.images[:1].nbytes))
    shape = (len(rows), *images.images.shape[1:])

    def write(folder: Path) -> None:
        write_set(folder, "subset", parts, shape, images.labels[rows], images.classes)

    subset = cached(digest.hexdigest()[:32], write, lambda folder: read_set(folder, "subset"))
    # The cached files contain no names, because image sets that differ only in their names share these files.
    return subset if images.names is None else replace(subset, names=images.names.subset(rows))


def resized(images: ImageSet, size: int) -> ImageSet:
    """`images` with `size`×`size` pixels. A large set is in the cache, a small one in memory.

    Raises:
        StorageError: when the cache cannot be written.
    """
    if images.images.shape[1:3] == (size, size):
        return images
    shape = len(images), size, size, 3
    parts = (
        np.stack([to_square(Image.fromarray(image), size) for image in images.images[part]])
        for part in portions(len(images), size * size * 3)
    )
    if math.prod(shape) <= IN_MEMORY:
        return ImageSet(np.concatenate(list(parts)), images.labels, images.classes, names=images.names)
    digest = hashlib.sha256(json.dumps([_VERSION, "resized", size, images.fingerprint]).encode())

    def write(folder: Path) -> None:
        write_set(folder, "resized", parts, shape, images.labels, images.classes)

    larger = cached(digest.hexdigest()[:32], write, lambda folder: read_set(folder, "resized"))
    return larger if images.names is None else replace(larger, names=images.names)


def portions(count: int, nbytes: int) -> Iterator[slice]:
    """Slices that cover `count` images of `nbytes` bytes each. Each slice covers a few megabytes."""
    step = max(1, _AT_ONCE // max(1, nbytes))
    return (slice(start, start + step) for start in range(0, count, step))


def write_set(
    folder: Path,
    name: str,
    parts: Iterable[NDArray[np.uint8]],
    shape: Sequence[int],
    labels: NDArray[np.int64],
    classes: Sequence[str],
    names: Iterable[str] | None = None,
) -> None:
    """Write an image set into `folder`, in files whose names start with `name`.

    `parts` yields the images as arrays whose total shape is `shape`. `names` yields their names, if they have any.

    Raises:
        OSError: when the folder cannot be written.
    """
    sums = np.zeros((2, 3), np.int64)
    with (folder / f"{name}_images.npy").open("wb") as file:
        # The file is written, not memory-mapped. A full disk then raises an error instead of killing the process.
        header = {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(file, header)

        def passed() -> Iterator[NDArray[np.uint8]]:
            nonlocal sums
            for part in parts:
                file.write(part.data)
                sums += channel_sums(part)
                yield part

        fingerprint = fingerprint_of(passed(), shape, labels, classes)
    np.save(folder / f"{name}_labels.npy", labels)
    if names is not None:
        np.save(folder / f"{name}_names.npy", ImageNames.of(names).to_array())
    description = {"classes": list(classes), "fingerprint": fingerprint, "channel_sums": sums.tolist()}
    (folder / f"{name}.json").write_text(json.dumps(description))


def read_set(folder: Path, name: str) -> ImageSet:
    """Read the set that `write_set` wrote. Its images and their names are memory-mapped.

    The memory map is copy-on-write, because torch warns about read-only arrays.

    Raises:
        OSError, EOFError, ValueError, KeyError: when the set is missing or damaged.
    """
    description = json.loads((folder / f"{name}.json").read_text())
    names = folder / f"{name}_names.npy"
    return ImageSet(
        _mapped(folder / f"{name}_images.npy"),
        np.load(folder / f"{name}_labels.npy"),
        tuple(description["classes"]),
        ImageStatistics(description["fingerprint"], np.array(description["channel_sums"], np.int64)),
        ImageNames(np.load(names, mmap_mode="r")) if names.exists() else None,
    )


def _mapped(path: Path) -> NDArray[np.uint8]:
    if sys.platform == "win32":
        return np.asarray(np.load(path, mmap_mode="c"))
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, _ = np.lib.format.read_array_header_1_0(file)
        content = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE)
        return np.frombuffer(content, np.uint8, offset=file.tell()).reshape(shape)
