"""Augment whole batches with tensor operations, on any device. This is much cheaper than augmenting image by image.

With the baseline's settings, augmented images have the same distribution as with `augment.albumentations`, but the two
modules draw different random numbers.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from onecycle.core.option_groups import CUTOUT, PADDING, Flip
from onecycle.data.preprocessing import constant

# Constants in the seeds of this module's random streams. They make these streams differ from each other and from the
# stream that shuffles the images.
_DRAWS = 2**33
_COINS = 2**34
_COLOR = 2**35

LEVELS = 1000  # number of steps from no color change to the largest change, in each direction


class BatchedAugmentation:
    """Random crop after padding, horizontal flip, color jitter and one square cutout, for images of one size.

    Padding reflects the image without repeating the edge. The cutout lies fully inside the image. It is filled with
    `fill`, the mean color of the training set (R,G,B from 0 to 255). If `cutout` is 0, there is no cutout.

    Color jitter first shifts the brightness by up to the fraction `brightness` of the full range. Then it scales the
    contrast around the mean color by up to the fraction `contrast`. Both changes are drawn uniformly.

    `flip` is "random" or "alternating". Alternating flips mirror a random half of the images in the first epoch and the
    other half in the next epoch, and so on. So in two consecutive epochs, each image is shown once mirrored and once
    unchanged.
    Source of alternating flips: Jordan 2024, arXiv 2404.00498, section 3.6.
    """

    def __init__(
        self,
        size: int,
        fill: Sequence[float],
        *,
        padding: int = PADDING,
        cutout: int = CUTOUT,
        flip: Flip = "random",
        brightness: float = 0,
        contrast: float = 0,
    ) -> None:
        self.size = size
        self.fill = tuple(round(value) for value in fill)
        self.padding = padding
        self.cutout = cutout
        self.flip = flip
        self.brightness = brightness
        self.contrast = contrast

    def draw(self, seed: int, epoch: int, order: NDArray[np.int64]) -> NDArray[np.int16]:
        """Draw the augmentation of each image of an epoch: int16 `[N,5]`, or `[N,7]` with color jitter.

        `order` `[N]` contains the indices of the images. The columns are: top and left of the crop in the padded image,
        flipped (0 or 1), top and left of the cutout, and the changes of brightness and contrast. These changes are from
        -1000 to 1000, in thousandths of the largest change.
        """
        generator = np.random.default_rng((seed, epoch, _DRAWS))
        offsets, positions = 2 * self.padding + 1, self.size - self.cutout + 1
        ends = (offsets, offsets, 2, positions, positions)
        # Draw all numbers of an image before those of the next image. The draws of the first images then do not
        # depend on the number of images.
        draws = generator.integers(ends, size=(len(order), len(ends)), dtype=np.int16)
        if self.flip == "alternating":
            coins = np.random.default_rng((seed, _COINS)).integers(2, size=order.max() + 1, dtype=np.int16)
            draws[:, 2] = coins[order] ^ (epoch % 2)
        if not (self.brightness or self.contrast):
            return draws
        color = np.random.default_rng((seed, epoch, _COLOR))
        return np.hstack([draws, color.integers(-LEVELS, LEVELS + 1, size=(len(order), 2), dtype=np.int16)])

    def __call__(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Augmented copies of `images`, uint8 `[B,S,S,3]`. `draws`, int16 `[B,5]` or `[B,7]`, is on the same device."""
        top, left, flipped, hole_top, hole_left, *color = draws.T[:, :, None]  # [B,1] each
        place = torch.arange(self.size, device=images.device)  # [S]
        rows = self._reflected(place + top - self.padding)  # [B,S], row numbers in `images`
        columns = self._reflected(torch.where(flipped == 1, self.size - 1 - place, place) + left - self.padding)
        image = torch.arange(len(images), device=images.device)[:, None, None]
        moved = images[image, rows[:, :, None], columns[:, None, :]]  # [B,S,S,3]
        if color:
            moved = self._jitter_color(moved, *color)
        if not self.cutout:
            return moved
        in_rows = (place >= hole_top) & (place < hole_top + self.cutout)  # [B,S]
        in_columns = (place >= hole_left) & (place < hole_left + self.cutout)
        cutout = (in_rows[:, :, None] & in_columns[:, None, :])[..., None]  # [B,S,S,1]
        return torch.where(cutout, constant(self.fill, images.dtype, images.device), moved)

    def _jitter_color(self, images: torch.Tensor, brightness: torch.Tensor, contrast: torch.Tensor) -> torch.Tensor:
        """Change the colors of `images`, uint8 `[B,S,S,3]`, by the drawn `brightness` and `contrast`, `[B,1]` each."""
        mean = constant(self.fill, torch.float32, images.device)  # [3]
        shift = (255 * self.brightness / LEVELS * brightness)[:, :, None, None]  # [B,1,1,1]
        factor = (1 + self.contrast / LEVELS * contrast)[:, :, None, None]
        offset = (shift - mean) * factor + mean + 0.5  # 0.5 makes the cast to integers round
        return (images * factor).add_(offset).clamp_(0, 255).to(images.dtype)

    def _reflected(self, place: torch.Tensor) -> torch.Tensor:
        last = self.size - 1
        return last - (last - place.abs()).abs()
