"""Resize and normalize images in the same way for training, evaluation and prediction."""

import functools
import math
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from onecycle.core.option_groups import LARGEST_SIZE
from onecycle.core.validated import Between, Fraction, validated

# Pixels are summed in parts, so that a memory-mapped set is never copied as a whole. A part has at most `_SUMMED`
# images and `_SUMMED_BYTES` bytes, but at least one image.
_SUMMED = 4096
_SUMMED_BYTES = 2**23
# The std of a channel is above 1e-9, unless the channel is constant. Division by 1e-9 does not give infinity.
_Std = Annotated[float, Between(1e-9, 1)]


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resize uint8 images `[B,H,W,3]` to `[B,size,size,3]`, bilinearly with antialiasing."""
    if images.shape[1:3] == (size, size):
        return images
    pixels = images.permute(0, 3, 1, 2)
    if images.device.type != "cpu":  # on other devices PyTorch resizes only floats
        pixels = pixels.float()
    resized = functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1).round().to(torch.uint8)


@functools.cache
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """`values` as a cached tensor on `device`. Copying `values` to a GPU for every batch would make the GPU wait."""
    return torch.tensor(values, dtype=dtype, device=device)


def channel_sums(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """For each channel of all `images`, uint8 `[N,H,W,3]`, the sum of the values and the sum of their squares.

    Returns int64 `[2,3]`. Integer sums are exact, need no float copy of the images, and give a constant channel a
    standard deviation of exactly 0.
    """
    sums = np.zeros((2, 3), np.int64)
    size = int(np.prod(images.shape[1:]))
    at_once = max(1, min(_SUMMED, _SUMMED_BYTES // max(size, 1)))
    for start in range(0, len(images), at_once):
        part = images[start : start + at_once].reshape(-1, size)  # [n, 3 H W]
        for row, values in enumerate((part, np.square(part, dtype=np.uint16))):
            sums[row] += values.sum(axis=0, dtype=np.int64).reshape(-1, 3).sum(axis=0)
    return sums


def are_gray(images: NDArray[np.uint8], sums: NDArray[np.int64]) -> bool:
    """Whether the three channels of all `images`, uint8 `[N,H,W,3]`, are equal. `sums` are their `channel_sums`."""
    if (sums != sums[:, :1]).any():  # true for most color images; their pixels are then not read here
        return False
    at_once = max(1, min(_SUMMED, _SUMMED_BYTES // max(images[:1].size, 1)))
    parts = (images[start : start + at_once] for start in range(0, len(images), at_once))
    return all((part == part[..., :1]).all() for part in parts)


def to_gray(pixels: torch.Tensor) -> torch.Tensor:
    """Convert float32 `pixels` `[B,H,W,3]` with integer values 0..255 to gray, as Pillow does.

    Gray pixels do not change. The weights are those of ITU-R BT.601 in 65536ths. Float32 represents all sums exactly.
    """
    red, green, blue = pixels.unbind(dim=-1)
    gray = ((19595 * red + 38470 * green + 7471 * blue + 32768) / 65536).floor()  # [B,H,W]
    return gray.unsqueeze(-1).repeat(1, 1, 1, 3)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Turns pixels into the network's input. It is saved with the weights.

    `mean` and `std` are the mean and standard deviation of each channel of the training set, on the scale 0..1. `gray`
    says that all training images are gray. If so, `normalize` converts color images to gray.
    """

    input_size: Annotated[int, Between(1, LARGEST_SIZE)]
    mean: tuple[Fraction, Fraction, Fraction]
    std: tuple[_Std, _Std, _Std]
    gray: bool = False

    @classmethod
    def of(cls, images: NDArray[np.uint8]) -> Self:
        """The preprocessing that normalizes each channel of `images`, uint8 `[N,S,S,3]`, to mean 0 and std 1."""
        sums = channel_sums(images)
        return cls.of_sums(sums, images=len(images), input_size=images.shape[1], gray=are_gray(images, sums))

    @classmethod
    def of_sums(cls, sums: NDArray[np.int64], *, images: int, input_size: int, gray: bool) -> Self:
        """Like `of`, but from `sums`, the `channel_sums` of the images.

        `images` is the number of images, and `gray` says whether all images are gray.
        """
        n = images * input_size**2
        totals = list(zip(*sums.tolist(), strict=True))
        mean = [total / (255 * n) for total, _ in totals]
        std = [math.sqrt(n * squares - total**2) / (255 * n) for total, squares in totals]
        return cls(
            input_size=input_size,
            mean=(mean[0], mean[1], mean[2]),
            # A constant channel is only centered.
            std=(std[0] or 1.0, std[1] or 1.0, std[2] or 1.0),
            gray=gray,
        )

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Turn uint8 images `[B,H,W,3]` into the network's input: float32 `[B,3,H,W]`, channels-last."""
        mean = constant(self.mean, torch.float32, images.device) * 255
        scale = constant(self.std, torch.float32, images.device) * 255
        pixels = images.to(torch.float32, copy=True)
        if self.gray:
            pixels = to_gray(pixels)
        normalized = pixels.sub_(mean).div_(scale)  # in place, because a batch is large
        return normalized.permute(0, 3, 1, 2)  # [B,H,W,3] -> [B,3,H,W]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return validated(cls, values)
