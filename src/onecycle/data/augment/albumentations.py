"""The augmentations of training images. The only importer of albumentations, which takes seconds to import."""

import os
import random
from collections.abc import Sequence
from typing import Any

# Set first: on import albumentations asks the network for a newer version of itself.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations
import cv2
import numpy as np
from numpy.typing import NDArray

from onecycle.core.config import HOLE, PADDING

# One image is too little work to share between threads, and OpenCV's would fight the network for the cores.
cv2.setNumThreads(0)


class Augmentation:
    """Random crop after padding by 4, horizontal flip, one 8×8 hole: the recipe's three, for images of one size.

    The border is padded by reflection without repeating the edge, as in Page's original; the hole is filled with
    `fill`, the mean colour (R,G,B from 0 to 255) of the training set, and lies wholly inside the image.
    """

    def __init__(self, size: int, fill: Sequence[float]) -> None:
        self._arguments = size, fill
        padded = size + 2 * PADDING
        # Not strict, albumentations only warns of an argument that it does not know and goes on with a default.
        compose = albumentations.Compose(
            [
                albumentations.PadIfNeeded(padded, padded, border_mode=cv2.BORDER_REFLECT_101),
                albumentations.RandomCrop(size, size),
                albumentations.HorizontalFlip(p=0.5),
                _OneHole(
                    num_holes_range=(1, 1),
                    hole_height_range=(HOLE, HOLE),
                    hole_width_range=(HOLE, HOLE),
                    fill=tuple(round(value) for value in fill),
                    p=1.0,
                ),
            ],
            strict=True,
        )
        self._stream = _Stream()
        # Called one by one: Compose would check image and arguments again for every image, at a third of the cost.
        self._transforms = compose.transforms
        for transform in self._transforms:
            transform.set_random_state(self._stream.generator, self._stream)

    def __reduce__(self) -> tuple[type, tuple[int, Sequence[float]]]:
        return type(self), self._arguments  # for workers that are not forked: a stream has nothing worth sending

    def __call__(self, image: NDArray[np.uint8], key: Sequence[int]) -> NDArray[np.uint8]:
        """An augmented copy of `image` uint8 `[S,S,3]`; equal keys (seed, epoch, position) give equal copies."""
        self._stream.begin(*key)
        augmented = image
        for transform in self._transforms:
            augmented = transform(image=augmented)["image"]
        return augmented


class _OneHole(albumentations.CoarseDropout):  # type: ignore[misc]
    """CoarseDropout of exactly one hole: drawn as two numbers instead of as arrays, which would take twice as long.

    Nor does it seed a generator for a random fill, which would take as long again: there is none.
    """

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        top, left = (int(self.random_generator.integers(side - HOLE + 1)) for side in (height, width))
        holes = np.array([[left, top, left + HOLE, top + HOLE]])
        return {"holes": holes, "seed": self.random_generator}  # which `default_rng` gives back as it is


class _Stream(random.Random):
    """Random numbers by (seed, epoch, position), for albumentations, which asks two generators for them.

    Philox counts its way through numbers that key and counter determine, so that it takes two microseconds to go to
    those of another image. Seeding two generators for each image would take fifteen. Both draw from one stream: were
    each seeded alike, flips and crops would be correlated. Source: Salmon et al. 2011, "Parallel random numbers: as
    easy as 1, 2, 3".
    """

    def __init__(self) -> None:
        self.generator = np.random.Generator(np.random.Philox())
        self._state: dict[str, Any] = dict(self.generator.bit_generator.state)
        self._epoch: tuple[int, int] | None = None
        super().__init__()

    def begin(self, seed: int, epoch: int, position: int) -> None:
        """Go to the numbers for the image at `position` of `epoch`."""
        if self._epoch != (seed, epoch):
            self._epoch = seed, epoch
            self._state["state"]["key"] = np.random.SeedSequence(seed, spawn_key=(epoch,)).generate_state(2, np.uint64)
        self._state["state"]["counter"] = np.array([0, 0, position, 0], np.uint64)
        self.generator.bit_generator.state = self._state  # saved before anything was drawn: nothing is left over

    def random(self) -> float:
        return self.generator.random()

    def getrandbits(self, count: int, /) -> int:
        return int(self.generator.random() * 2**count)  # albumentations asks for a few bits at a time

    def seed(self, *_: object) -> None:
        """Nothing: `begin` does that."""
