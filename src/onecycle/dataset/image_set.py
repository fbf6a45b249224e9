"""Labelled images in memory."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one size with their labels.

    `images` is uint8 `[N,H,W,3]`, `labels` int64 `[N]`, positions in `classes`, the unique class names.

    Raises:
        ValueError: when shapes, dtypes, label range or class names are not these.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[3] != 3:
            raise ValueError(f"images are {self.images.dtype} {self.images.shape}; they must be uint8 [N,H,W,3]")
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels are {self.labels.dtype} {self.labels.shape}; "
                f"they must be int64 [{len(self.images)}], one for each image"
            )
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes are {self.classes}; they must be one or more different names")
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise ValueError(
                f"labels run from {self.labels.min()} to {self.labels.max()}; "
                f"{len(self.classes)} classes allow 0 to {len(self.classes) - 1}"
            )

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256, in hex, of shape, pixels, labels and class names: equal sets have equal fingerprints."""
        shape_and_classes = json.dumps([list(self.images.shape), list(self.classes)])
        digest = hashlib.sha256(shape_and_classes.encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels, dtype="<i8").data)  # the same on a big-endian machine
        return digest.hexdigest()

    def subset(self, indices: NDArray[np.integer[Any]]) -> Self:
        """The images and labels at `indices` (integers `[M]`), in that order, copied."""
        return type(self)(self.images[indices], self.labels[indices], self.classes)
