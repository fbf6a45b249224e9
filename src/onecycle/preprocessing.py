"""Resize and normalize: the one preprocessing of training, evaluation and prediction."""

from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps


def to_square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """A picture of any size and mode as uint8 `[size, size, 3]`.

    The short side is resized to `size` with antialiasing, then the centre is cropped. A picture that already has the
    size keeps its pixels. Its orientation tag is obeyed; transparency is put on white.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "I;16", "I;16B", "F"):
        # Pillow would clip these to 0..255; a picture of 16 bits a pixel is scaled, as every viewer does.
        values = np.asarray(image, dtype=np.float64)
        image = Image.fromarray((values / (65535 if values.max() > 255 else 255) * 255).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    image = image.convert("RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), method=Image.Resampling.BICUBIC)
    return np.asarray(image)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What turns stored pixels into the network's input. It travels with the weights.

    `mean` and `std` are those of the training set's channels, on the scale 0..1.
    """

    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of(cls, images: NDArray[np.uint8]) -> Self:
        """The preprocessing that centres and scales `images` uint8 `[N,S,S,3]` channel by channel."""
        # Counting values is exact, needs no float copy of the set, and so is the same on every machine.
        counts = [np.bincount(images[..., c].ravel(), minlength=256) for c in range(3)]
        values = np.arange(256) / 255
        mean = [float((n * values).sum() / n.sum()) for n in counts]
        std = [float(np.sqrt((n * (values - m) ** 2).sum() / n.sum())) for n, m in zip(counts, mean, strict=True)]
        return cls(
            input_size=images.shape[1],
            mean=(mean[0], mean[1], mean[2]),
            # A channel that never varies is only centred.
            std=(std[0] or 1.0, std[1] or 1.0, std[2] or 1.0),
        )

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 `[B,H,W,3]` to float32 `[B,3,H,W]`, in channels-last memory."""
        scale = images.new_tensor(self.std, dtype=torch.float32) * 255
        mean = images.new_tensor(self.mean, dtype=torch.float32) * 255
        return ((images.float() - mean) / scale).permute(0, 3, 1, 2)  # [B,H,W,3] -> [B,3,H,W]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return cls(input_size=values["input_size"], mean=tuple(values["mean"]), std=tuple(values["std"]))
