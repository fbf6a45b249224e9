"""Augmentations of whole batches: tensors on any device, at a small part of the cost for an image.

With the values of the baseline they have the same distribution as `transforms.Augmentation`, which calls albumentations
for every image; the draws differ.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from onecycle.config import HOLE, PADDING, Flip
from onecycle.preprocessing import constant

# Keep these draws apart from those for order.
_DRAWS = 2**33
_COINS = 2**34


class BatchedAugmentation:
    """Random crop after padding, horizontal flip, one square hole unless `hole` is 0, for images of one size.

    The border is padded by reflection without repeating the edge; the hole is filled with `fill`, the mean colour
    (R,G,B from 0 to 255) of the training set, and lies wholly inside the image. Flips are "random", or "alternating": a
    coin decides how an image begins, and then it is flipped in every other epoch, so that two epochs show both sides of
    every image. Source: Jordan 2024, arXiv 2404.00498, section 3.6.
    """

    def __init__(
        self, size: int, fill: Sequence[float], *, padding: int = PADDING, hole: int = HOLE, flip: Flip = "random"
    ) -> None:
        self.size = size
        self.fill = tuple(round(value) for value in fill)
        self.padding = padding
        self.hole = hole
        self.flip = flip

    def draw(self, seed: int, epoch: int, order: NDArray[np.int64]) -> NDArray[np.int16]:
        """What happens in an epoch to the images with the indices `order` `[N]`: int16 `[N,5]`.

        Top and left of the crop in the padded image, whether it is flipped, top and left of the hole.
        """
        generator = np.random.default_rng((seed, epoch, _DRAWS))
        offsets, holes = 2 * self.padding + 1, self.size - self.hole + 1
        ends = (offsets, offsets, 2, holes, holes)
        # Drawn image by image, so that a longer epoch begins alike.
        draws = generator.integers(ends, size=(len(order), len(ends)), dtype=np.int16)
        if self.flip == "alternating":
            coins = np.random.default_rng((seed, _COINS)).integers(2, size=order.max() + 1, dtype=np.int16)
            draws[:, 2] = coins[order] ^ (epoch % 2)
        return draws

    def __call__(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Augmented copies of `images` uint8 `[B,S,S,3]`, as `draws` int16 `[B,5]` say, on the same device."""
        top, left, flipped, hole_top, hole_left = draws.T[:, :, None]  # [B,1] each
        place = torch.arange(self.size, device=images.device)  # [S]
        rows = self._reflected(place + top - self.padding)  # [B,S], of the source
        columns = self._reflected(torch.where(flipped == 1, self.size - 1 - place, place) + left - self.padding)
        image = torch.arange(len(images), device=images.device)[:, None, None]
        moved = images[image, rows[:, :, None], columns[:, None, :]]  # [B,S,S,3]
        if not self.hole:
            return moved
        in_rows = (place >= hole_top) & (place < hole_top + self.hole)  # [B,S]
        in_columns = (place >= hole_left) & (place < hole_left + self.hole)
        hole = (in_rows[:, :, None] & in_columns[:, None, :])[..., None]  # [B,S,S,1]
        return torch.where(hole, constant(self.fill, images.dtype, images.device), moved)

    def _reflected(self, place: torch.Tensor) -> torch.Tensor:
        last = self.size - 1
        return last - (last - place.abs()).abs()
