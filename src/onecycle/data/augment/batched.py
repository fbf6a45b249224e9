"""Augmentations of whole batches: tensors on any device, at a small part of the cost for an image.

With the values of the baseline they have the same distribution as `transforms.Augmentation`, which calls albumentations
for every image; the draws differ.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from onecycle.core.config import HOLE, PADDING, Flip
from onecycle.data.preprocessing import constant

# Keep these draws apart from those for order.
_DRAWS = 2**33
_COINS = 2**34
_LIGHT = 2**35

LEVELS = 1000  # between no change of the light and the greatest, each way


class BatchedAugmentation:
    """Random crop after padding, horizontal flip, change of the light, one square hole, for images of one size.

    The border is padded by reflection without repeating the edge; the hole is filled with `fill`, the mean colour
    (R,G,B from 0 to 255) of the training set, and lies wholly inside the image; a `hole` of 0 is none. An image gets
    brighter or darker by up to `brightness` of the full range, and then its contrast about the mean colour changes by
    up to the part `contrast`; how much of either is uniform. Flips are "random", or "alternating": a
    coin decides how an image begins, and then it is flipped in every other epoch, so that two epochs show both sides of
    every image. Source: Jordan 2024, arXiv 2404.00498, section 3.6.
    """

    def __init__(
        self,
        size: int,
        fill: Sequence[float],
        *,
        padding: int = PADDING,
        hole: int = HOLE,
        flip: Flip = "random",
        brightness: float = 0,
        contrast: float = 0,
    ) -> None:
        self.size = size
        self.fill = tuple(round(value) for value in fill)
        self.padding = padding
        self.hole = hole
        self.flip = flip
        self.brightness = brightness
        self.contrast = contrast

    def draw(self, seed: int, epoch: int, order: NDArray[np.int64]) -> NDArray[np.int16]:
        """What happens in an epoch to the images with the indices `order` `[N]`: int16 `[N,5]`, or `[N,7]` with light.

        Top and left of the crop in the padded image, whether it is flipped, top and left of the hole; how much brighter
        it gets and how much richer in contrast, from -1000 to 1000 thousandths of the most.
        """
        generator = np.random.default_rng((seed, epoch, _DRAWS))
        offsets, holes = 2 * self.padding + 1, self.size - self.hole + 1
        ends = (offsets, offsets, 2, holes, holes)
        # Drawn image by image, so that a longer epoch begins alike.
        draws = generator.integers(ends, size=(len(order), len(ends)), dtype=np.int16)
        if self.flip == "alternating":
            coins = np.random.default_rng((seed, _COINS)).integers(2, size=order.max() + 1, dtype=np.int16)
            draws[:, 2] = coins[order] ^ (epoch % 2)
        if not (self.brightness or self.contrast):
            return draws
        light = np.random.default_rng((seed, epoch, _LIGHT))
        return np.hstack([draws, light.integers(-LEVELS, LEVELS + 1, size=(len(order), 2), dtype=np.int16)])

    def __call__(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Augmented copies of `images` uint8 `[B,S,S,3]`, as `draws` int16 `[B,5 or 7]` say, on the same device."""
        top, left, flipped, hole_top, hole_left, *light = draws.T[:, :, None]  # [B,1] each
        place = torch.arange(self.size, device=images.device)  # [S]
        rows = self._reflected(place + top - self.padding)  # [B,S], of the source
        columns = self._reflected(torch.where(flipped == 1, self.size - 1 - place, place) + left - self.padding)
        image = torch.arange(len(images), device=images.device)[:, None, None]
        moved = images[image, rows[:, :, None], columns[:, None, :]]  # [B,S,S,3]
        if light:
            moved = self._lit(moved, *light)
        if not self.hole:
            return moved
        in_rows = (place >= hole_top) & (place < hole_top + self.hole)  # [B,S]
        in_columns = (place >= hole_left) & (place < hole_left + self.hole)
        hole = (in_rows[:, :, None] & in_columns[:, None, :])[..., None]  # [B,S,S,1]
        return torch.where(hole, constant(self.fill, images.dtype, images.device), moved)

    def _lit(self, images: torch.Tensor, brightness: torch.Tensor, contrast: torch.Tensor) -> torch.Tensor:
        """`images` uint8 `[B,S,S,3]` in the light that draws `[B,1]` say."""
        mean = constant(self.fill, torch.float32, images.device)  # [3]
        shift = (255 * self.brightness / LEVELS * brightness)[:, :, None, None]  # [B,1,1,1]
        factor = (1 + self.contrast / LEVELS * contrast)[:, :, None, None]
        offset = (shift - mean) * factor + mean + 0.5  # and so rounded where the type cuts off
        return (images * factor).add_(offset).clamp_(0, 255).to(images.dtype)

    def _reflected(self, place: torch.Tensor) -> torch.Tensor:
        last = self.size - 1
        return last - (last - place.abs()).abs()
