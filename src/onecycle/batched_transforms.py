"""The recipe's augmentations on whole batches: tensors on any device, at a small part of the cost for an image.

The same distribution as `transforms.Augmentation`, which calls albumentations for every image; the draws differ.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from onecycle.config import HOLE, PADDING
from onecycle.preprocessing import constant

# Keeps these draws apart from those for order.
_DRAWS = 2**33


class BatchedAugmentation:
    """Random crop after padding by 4, horizontal flip, one 8×8 hole, for images of one size.

    The border is padded by reflection without repeating the edge; the hole is filled with `fill`, the mean colour
    (R,G,B from 0 to 255) of the training set, and lies wholly inside the image.
    """

    def __init__(self, size: int, fill: Sequence[float]) -> None:
        self.size = size
        self.fill = tuple(round(value) for value in fill)

    def draw(self, seed: int, epoch: int, count: int) -> NDArray[np.int16]:
        """What happens to the images at positions 0 to `count` of an epoch: int16 `[count,5]`.

        Top and left of the crop in the padded image, whether it is flipped, top and left of the hole.
        """
        generator = np.random.default_rng((seed, epoch, _DRAWS))
        holes = self.size - HOLE + 1
        ends = (2 * PADDING + 1, 2 * PADDING + 1, 2, holes, holes)
        # Drawn image by image, so that a longer epoch begins alike.
        return generator.integers(ends, size=(count, len(ends)), dtype=np.int16)

    def __call__(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Augmented copies of `images` uint8 `[B,S,S,3]`, as `draws` int16 `[B,5]` say, on the same device."""
        top, left, flipped, hole_top, hole_left = draws.T[:, :, None]  # [B,1] each
        place = torch.arange(self.size, device=images.device)  # [S]
        rows = self._reflected(place + top - PADDING)  # [B,S], of the source
        columns = self._reflected(torch.where(flipped == 1, self.size - 1 - place, place) + left - PADDING)
        image = torch.arange(len(images), device=images.device)[:, None, None]
        moved = images[image, rows[:, :, None], columns[:, None, :]]  # [B,S,S,3]
        in_rows = (place >= hole_top) & (place < hole_top + HOLE)  # [B,S]
        in_columns = (place >= hole_left) & (place < hole_left + HOLE)
        hole = (in_rows[:, :, None] & in_columns[:, None, :])[..., None]  # [B,S,S,1]
        return torch.where(hole, constant(self.fill, images.dtype, images.device), moved)

    def _reflected(self, place: torch.Tensor) -> torch.Tensor:
        last = self.size - 1
        return last - (last - place.abs()).abs()
