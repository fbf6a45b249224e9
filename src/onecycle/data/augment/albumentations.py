"""Augmentation with albumentations. Only this module imports albumentations, because the import takes seconds."""

import os
import random
from collections.abc import Sequence
from typing import Any

# This must be set before the import. Otherwise albumentations checks the web for updates.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations
import cv2
import numpy as np
from numpy.typing import NDArray

from onecycle.core.option_groups import CUTOUT, PADDING
from onecycle.data.augment.image_random import ImageRandom

# One image is too little work for several threads, and OpenCV's threads would compete with training for the cores.
cv2.setNumThreads(0)


class Augmentation:
    """Pads an image by 4 pixels, crops it at random, flips it horizontally at random, and cuts out one 8×8 square.

    All images have `size`×`size` pixels. Padding reflects the image without repeating the edge, as in David C. Page's
    DAWNBench entry. The cutout lies fully inside the image. It is filled with `fill`, the mean color of the training
    set (R,G,B from 0 to 255).
    """

    def __init__(self, size: int, fill: Sequence[float]) -> None:
        self._arguments = size, fill
        padded = size + 2 * PADDING
        # Without `strict`, albumentations only warns about an unknown argument and uses a default.
        compose = albumentations.Compose(
            [
                albumentations.PadIfNeeded(padded, padded, border_mode=cv2.BORDER_REFLECT_101),
                albumentations.RandomCrop(size, size),
                albumentations.HorizontalFlip(p=0.5),
                _OneCutout(
                    num_holes_range=(1, 1),
                    hole_height_range=(CUTOUT, CUTOUT),
                    hole_width_range=(CUTOUT, CUTOUT),
                    fill=tuple(round(value) for value in fill),
                    p=1.0,
                ),
            ],
            strict=True,
        )
        self._stream = _Stream()
        # `__call__` applies the transforms one by one, because `Compose` would validate every image again. That
        # validation takes a third of the time.
        self._transforms = compose.transforms
        for transform in self._transforms:
            transform.set_random_state(self._stream.generator, self._stream)

    def __reduce__(self) -> tuple[type, tuple[int, Sequence[float]]]:
        return type(self), self._arguments  # a worker process that is not forked makes a new copy from these

    def __call__(self, image: NDArray[np.uint8], key: Sequence[int]) -> NDArray[np.uint8]:
        """An augmented copy of `image`, uint8 `[S,S,3]`. Equal keys (seed, epoch, position) give equal copies."""
        self._stream.begin(*key)
        augmented = image
        for transform in self._transforms:
            augmented = transform(image=augmented)["image"]
        return augmented


class _OneCutout(albumentations.CoarseDropout):  # type: ignore[misc]
    """A `CoarseDropout` that drops exactly one square.

    It is three times as fast as `CoarseDropout`, because it draws two numbers instead of arrays. It also does not seed
    a generator for random fills, because the fill is constant.
    """

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        top, left = (int(self.random_generator.integers(side - CUTOUT + 1)) for side in (height, width))
        holes = np.array([[left, top, left + CUTOUT, top + CUTOUT]])
        # albumentations passes "seed" to `default_rng`. If "seed" is a generator, `default_rng` returns it unchanged.
        return {"holes": holes, "seed": self.random_generator}


class _Stream(ImageRandom, random.Random):
    """The random numbers of an image. This one stream replaces both generators that albumentations uses.

    Two generators with the same seed would correlate flips and crops.
    """

    def __init__(self) -> None:
        ImageRandom.__init__(self)
        random.Random.__init__(self)

    def random(self) -> float:
        return self.generator.random()

    def getrandbits(self, count: int, /) -> int:
        return int(self.generator.random() * 2**count)  # the product is exact up to 53 bits; albumentations needs fewer

    def seed(self, *_: object) -> None:
        """Ignore seeds, because only `begin` sets the state of the generator."""
