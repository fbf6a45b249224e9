"""A network that looks at several views of a picture before it answers."""

import torch
from torch.nn import functional

from onecycle.models import ModelComposite

SHIFT = 1  # pixels


class Averaged(ModelComposite):
    """`network` on six views of each image: as it is and shifted by a pixel both ways, each also mirrored.

    Logits are averaged, the shifted views together with as much weight as those that are not. The border of a shifted
    view is padded by reflection. Source: Jordan 2024, arXiv 2404.00498, section 3.5.
    """

    def __init__(self, network: ModelComposite) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits `[B,classes]` of images `[B,3,H,W]`."""
        height, width = images.shape[2:]
        padded = functional.pad(images, (SHIFT,) * 4, mode="reflect")
        one, other = padded[:, :, :height, :width], padded[:, :, -height:, -width:]
        return 0.5 * self._both_sides(images) + 0.25 * (self._both_sides(one) + self._both_sides(other))

    def _both_sides(self, images: torch.Tensor) -> torch.Tensor:
        # In float32: logits of bfloat16 would be rounded again with every mean.
        logits: torch.Tensor = (self.network(images).float() + self.network(images.flip(3)).float()) / 2
        return logits
