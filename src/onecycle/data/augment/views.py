"""The views of an image: the image itself and augmented copies. The copies depend on nothing but the image."""

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from onecycle.data.augment.batched import BatchedAugmentation

if TYPE_CHECKING:
    from onecycle.data.augment.degradation import Degradation  # imports OpenCV, which takes long

_FIRST = np.zeros(1, np.int64)  # the order of a set of one image


class Views:
    """`count` views of each image: first the image itself, then copies that `degrade` and `augmentation` make.

    The copies of an image are drawn from a seed that is the hash of its pixels. So runs with different seeds or
    different data sets share the views of an image, and everything computed from the views.
    """

    def __init__(self, augmentation: BatchedAugmentation, count: int, degrade: "Degradation | None" = None) -> None:
        self._augmentation = augmentation
        self._degrade = degrade
        self.count = count

    def of(self, image: NDArray[np.uint8]) -> torch.Tensor:
        """Create the views of `image`, uint8 `[S,S,3]`. Returns uint8 `[count,S,S,3]`."""
        seed = int.from_bytes(digest_of(image))
        draws = [self._augmentation.draw(seed, number, _FIRST) for number in range(self.count)]
        original = torch.tensor(image)
        copies = original.expand(self.count, -1, -1, -1)
        if self._degrade:
            degraded = [self._degrade(image, (seed, number, 0)) for number in range(self.count)]
            copies = torch.from_numpy(np.stack(degraded))
        views = self._augmentation(copies, torch.from_numpy(np.concatenate(draws)))
        views[0] = original
        return views

    def first_only(self) -> "Views":
        """Only the first view of each image: the image itself."""
        return Views(self._augmentation, 1)

    def to_json(self) -> dict[str, Any]:
        """All values that the views of an image depend on."""
        degraded = {"degraded": self._degrade.share} if self._degrade else {}
        return {"views": self.count, **degraded, **vars(self._augmentation)}


def digest_of(image: NDArray[np.uint8]) -> bytes:
    """The sha256 of the pixels of `image`, uint8 `[S,S,3]`."""
    return hashlib.sha256(np.ascontiguousarray(image).data).digest()
