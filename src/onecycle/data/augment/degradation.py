"""Degrade images as cameras, programs and web sites do: JPEG compression, blur by resizing, and noise."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from onecycle.data.augment.image_random import ImageRandom

# One image is too little work for several threads, and OpenCV's threads would compete with training for the cores.
cv2.setNumThreads(0)

Pixels = NDArray[np.uint8]

JPEG_QUALITIES = (30, 95)
SCALES = (0.4, 0.9)  # range of the factor that shrinks height and width
SHRINKING = (cv2.INTER_AREA, cv2.INTER_LINEAR)
ENLARGING = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_NEAREST)
READ_NOISE = 0.08  # largest standard deviation in a black area, as a fraction of the full range
SHOT_NOISE = 0.12  # largest additional standard deviation in a white area

_PURPOSE = 1  # the random numbers for crops and flips have purpose 0


class Degradation:
    """Degrades the fraction `share` of the images. Each of these is degraded in one of three ways.

    The three ways are equally likely:

    - The image is compressed as a JPEG with a quality from 30 to 95 and subsampled colors.
    - The image is shrunk to between 0.4 and 0.9 of its height and width, and enlarged again. The interpolations are
      drawn at random.
    - Sensor noise is added. The variance of the noise grows linearly with the brightness of a pixel.

    All strengths are drawn uniformly. Images keep their size.
    Source of the noise: Foi et al. 2008, "Practical Poissonian-Gaussian noise modeling and fitting for single-image
    raw-data".
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self._random = ImageRandom(_PURPOSE)

    def __call__(self, image: Pixels, key: Sequence[int]) -> Pixels:
        """Return `image` (uint8 `[H,W,3]`) or a degraded copy.

        Equal keys (seed, epoch, position) give equal results.
        """
        self._random.begin(*key)
        draw = self._random.generator
        if draw.random() >= self.share:
            return image
        kinds = (_compressed, _resized, _noisy)
        return kinds[draw.integers(len(kinds))](image, draw)


def _compressed(image: Pixels, draw: np.random.Generator) -> Pixels:
    least, most = JPEG_QUALITIES
    quality = int(draw.integers(least, most + 1))
    _, file = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])  # OpenCV expects B,G,R
    return _pixels(np.asarray(cv2.imdecode(file, cv2.IMREAD_COLOR))[..., ::-1])


def _resized(image: Pixels, draw: np.random.Generator) -> Pixels:
    height, width = image.shape[:2]
    scale = draw.uniform(*SCALES)
    smaller = max(1, round(width * scale)), max(1, round(height * scale))
    shrinking, enlarging = (ways[draw.integers(len(ways))] for ways in (SHRINKING, ENLARGING))
    small = cv2.resize(image, smaller, interpolation=shrinking)
    return _pixels(cv2.resize(small, (width, height), interpolation=enlarging))


def _noisy(image: Pixels, draw: np.random.Generator) -> Pixels:
    read, shot = (np.float32(draw.uniform(0, largest)) for largest in (READ_NOISE, SHOT_NOISE))
    std = 255 * np.sqrt(read**2 + shot**2 / 255 * image)
    noise = draw.standard_normal(image.shape, np.float32)
    return _pixels(np.rint(image + std * noise).clip(0, 255))


def _pixels(values: NDArray[Any]) -> Pixels:
    return np.ascontiguousarray(values, np.uint8)
