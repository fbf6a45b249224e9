"""Labeled images, in memory or in a memory-mapped file."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from onecycle.core.class_names import require_class_names
from onecycle.data.preprocessing import are_gray, channel_sums
from onecycle.data.readers.image_names import ImageNames


@dataclass(frozen=True, eq=False)
class ImageStatistics:
    """Values computed from all pixels of an image set. They are saved with the set, so its pixels are read once."""

    fingerprint: str
    channel_sums: NDArray[np.int64]  # [2,3], see `preprocessing.channel_sums`


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one size with their labels.

    `images` is uint8 `[N,H,W,3]`. `labels` is int64 `[N]`. Its values are indices into `classes`. The class
    names in `classes` are unique. If `statistics` is None, the set computes these values from its pixels when they are
    needed. `names` are the file names of the images, if the images have any. These names change neither the order nor
    the fingerprint.

    Raises:
        ValueError: when a shape, a dtype, a label or the class names are wrong.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    statistics: ImageStatistics | None = None
    names: ImageNames | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[3] != 3:
            raise ValueError(f"images are {self.images.dtype} {self.images.shape}; they must be uint8 [N,H,W,3]")
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels are {self.labels.dtype} {self.labels.shape}; "
                f"they must be int64 [{len(self.images)}], one for each image"
            )
        if self.names is not None and len(self.names) != len(self.images):
            raise ValueError(f"there are {len(self.names)} names, but {len(self.images)} images")
        require_class_names(self.classes)
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise ValueError(
                f"labels run from {self.labels.min()} to {self.labels.max()}; "
                f"{len(self.classes)} classes allow 0 to {len(self.classes) - 1}"
            )

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256, in hex, of the shape, pixels, labels and class names. Equal sets have equal fingerprints."""
        if self.statistics:
            return self.statistics.fingerprint
        return fingerprint_of([np.ascontiguousarray(self.images)], self.images.shape, self.labels, self.classes)

    @cached_property
    def channel_sums(self) -> NDArray[np.int64]:
        """For each channel, the sum of the values of all pixels and the sum of their squares: int64 `[2,3]`."""
        return self.statistics.channel_sums if self.statistics else channel_sums(self.images)

    @cached_property
    def is_gray(self) -> bool:
        """Whether all pixels of all images are gray."""
        return are_gray(self.images, self.channel_sums)

    def subset(self, indices: NDArray[np.integer[Any]]) -> Self:
        """A copy of the images and labels at `indices` (integers `[M]`), in that order."""
        names = None if self.names is None else self.names.subset(indices)
        return type(self)(self.images[indices], self.labels[indices], self.classes, names=names)


def fingerprint_of(
    parts: Iterable[NDArray[np.uint8]], shape: Sequence[int], labels: NDArray[np.int64], classes: Sequence[str]
) -> str:
    """The fingerprint of an image set of `shape` `[N,H,W,3]`. `parts` yields its pixels as uint8 arrays `[n,H,W,3]`."""
    digest = hashlib.sha256(json.dumps([list(shape), list(classes)]).encode())
    for part in parts:
        digest.update(part.data)
    digest.update(np.ascontiguousarray(labels, dtype="<i8").data)  # little-endian on every machine
    return digest.hexdigest()
