"""Sets of images in files of the cache, mapped into memory: of a set of any size only what is looked at is there."""

import hashlib
import json
import mmap
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onecycle.data.preprocessing import channel_sums
from onecycle.data.readers.image_set import ImageSet, Totals, fingerprint_of
from onecycle.data.store.cache import cached

IN_MEMORY = 2**28  # bytes of a cut, above which it is a file
_AT_ONCE = 2**23  # bytes of images that are copied at a time
_VERSION = 1  # raised when the files of a cut change

# Private and writable pages are promised memory when they are mapped: without this, of a set larger than memory
# there would be none. The number is Linux's; Python names it from 3.13 on.
_UNPROMISED = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def cut(images: ImageSet, rows: NDArray[np.integer[Any]]) -> ImageSet:
    """The images in `rows` (integers `[M]`), in that order: in memory, or in the cache where they are too many for it.

    Raises:
        InputError: the cache cannot be written.
    """
    if len(rows) * images.images[:1].nbytes <= IN_MEMORY:
        return images.subset(rows)
    digest = hashlib.sha256(json.dumps([_VERSION, images.fingerprint]).encode())
    digest.update(np.ascontiguousarray(rows, dtype="<i8").data)
    parts = (images.images[rows[part]] for part in portions(len(rows), images.images[:1].nbytes))
    shape = (len(rows), *images.images.shape[1:])

    def write(folder: Path) -> None:
        write_set(folder, "cut", parts, shape, images.labels[rows], images.classes)

    return cached(digest.hexdigest()[:32], write, lambda folder: read_set(folder, "cut"))


def portions(count: int, nbytes: int) -> Iterator[slice]:
    """`count` images of so many bytes each, a few megabytes at a time."""
    step = max(1, _AT_ONCE // max(1, nbytes))
    return (slice(start, start + step) for start in range(0, count, step))


def write_set(
    folder: Path,
    name: str,
    parts: Iterable[NDArray[np.uint8]],
    shape: Sequence[int],
    labels: NDArray[np.int64],
    classes: Sequence[str],
) -> None:
    """Write a set into files of `folder` that begin with `name`; its images, of this `shape`, come in `parts`.

    Raises:
        OSError: it cannot be written.
    """
    sums = np.zeros((2, 3), np.int64)
    with (folder / f"{name}_images.npy").open("wb") as file:
        # Written, not mapped: a full disk is then an error instead of a killed process.
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
    about = {"classes": list(classes), "fingerprint": fingerprint, "channel_sums": sums.tolist()}
    (folder / f"{name}.json").write_text(json.dumps(about))


def read_set(folder: Path, name: str) -> ImageSet:
    """The set that `write_set` wrote, its images mapped: copy on write, as torch warns of what cannot be written.

    Raises:
        OSError, ValueError, KeyError: it is not there, or damaged.
    """
    about = json.loads((folder / f"{name}.json").read_text())
    return ImageSet(
        _mapped(folder / f"{name}_images.npy"),
        np.load(folder / f"{name}_labels.npy"),
        tuple(about["classes"]),
        Totals(about["fingerprint"], np.array(about["channel_sums"], np.int64)),
    )


def _mapped(path: Path) -> NDArray[np.uint8]:
    if sys.platform == "win32":
        return np.asarray(np.load(path, mmap_mode="c"))
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, _ = np.lib.format.read_array_header_1_0(file)
        content = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE | _UNPROMISED, mmap.PROT_READ | mmap.PROT_WRITE)
        return np.frombuffer(content, np.uint8, offset=file.tell()).reshape(shape)
