"""The augmentations of training images. The only importer of albumentations, which takes seconds to import."""

import os
import random
from collections.abc import Sequence

# Set first: on import albumentations asks the network for a newer version of itself.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations
import cv2
import numpy as np
from numpy.typing import NDArray

PADDING = 4  # pixels on each side
HOLE = 8  # side of the square that CoarseDropout fills

# One image is too little work to share between threads, and OpenCV's would fight the network for the cores.
cv2.setNumThreads(0)


class Augmentation:
    """Random crop after padding by 4, horizontal flip, one 8×8 hole: the recipe's three, for images of one size.

    The border is padded by reflection without repeating the edge, as in Page's original; the hole is filled with
    `fill`, the mean colour (R,G,B from 0 to 255) of the training set, and lies wholly inside the image.
    """

    def __init__(self, size: int, fill: Sequence[float]) -> None:
        padded = size + 2 * PADDING
        # Not strict, albumentations only warns of an argument that it does not know and goes on with a default.
        self._compose = albumentations.Compose(
            [
                albumentations.PadIfNeeded(padded, padded, border_mode=cv2.BORDER_REFLECT_101),
                albumentations.RandomCrop(size, size),
                albumentations.HorizontalFlip(p=0.5),
                albumentations.CoarseDropout(
                    num_holes_range=(1, 1),
                    hole_height_range=(HOLE, HOLE),
                    hole_width_range=(HOLE, HOLE),
                    fill=tuple(round(value) for value in fill),
                    p=1.0,
                ),
            ],
            strict=True,
        )

    def __call__(self, image: NDArray[np.uint8], key: Sequence[int]) -> NDArray[np.uint8]:
        """An augmented copy of `image` uint8 `[S,S,3]`; equal keys, whole numbers from 0, give equal copies."""
        # Generators of its own for each image make the result independent of what was augmented before, and where.
        # One pair serves all three transforms: were each seeded alike, flips and crops would be correlated.
        generator = np.random.default_rng(key)
        self._compose.set_random_state(generator, random.Random(int(generator.integers(2**63))))
        augmented: NDArray[np.uint8] = self._compose(image=image)["image"]
        return augmented
