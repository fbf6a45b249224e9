"""Sprite sheets: many small images as one WebP image inside an HTML page."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLUMNS = 40
LARGEST_TILE = 64  # the side of a tile in pixels; larger images are scaled down
_QUALITIES = (95, 85, 70, 50, 30)
_HEAT_COLOR = (213, 94, 0)  # vermillion, as in the plots


@dataclass(frozen=True)
class Sheet:
    """A sprite sheet as a data URL: rows of `columns` square images, each `tile` pixels wide."""

    url: str
    columns: int
    tile: int

    def place(self, number: int) -> tuple[int, int]:
        """The column and row of the image `number`."""
        return number % self.columns, number // self.columns


def image_sheet(images: NDArray[np.uint8], *, most_bytes: int) -> Sheet:
    """A sheet of uint8 `images` `[N,S,S,3]`, in the best quality that fits into `most_bytes`.

    If no quality fits, the sheet has the lowest quality.
    """
    tile = min(images.shape[1], LARGEST_TILE)
    canvas, columns = _arranged([Image.fromarray(image).resize((tile, tile)) for image in images], tile, "RGB")
    content = b""
    for quality in _QUALITIES:
        content = _encoded(canvas, quality)
        if len(content) <= most_bytes:
            break
    return Sheet(_url(content), columns, tile)


def heatmap_sheet(heatmaps: NDArray[np.uint8], tile: int) -> Sheet:
    """A sheet of uint8 `heatmaps` `[N,h,w]`, smoothly enlarged. A higher value gives a more opaque color."""
    tiles = []
    for heatmap in heatmaps:
        alpha = Image.fromarray(heatmap).resize((tile, tile), Image.Resampling.BICUBIC)
        color = Image.new("RGBA", (tile, tile), _HEAT_COLOR)
        color.putalpha(alpha.point([value * 7 // 10 for value in range(256)]))
        tiles.append(color)
    canvas, columns = _arranged(tiles, tile, "RGBA")
    return Sheet(_url(_encoded(canvas, 50, alpha_quality=40)), columns, tile)


def _arranged(tiles: list[Image.Image], tile: int, mode: str) -> tuple[Image.Image, int]:
    columns = min(COLUMNS, len(tiles))
    canvas = Image.new(mode, (columns * tile, -(-len(tiles) // columns) * tile))
    for number, image in enumerate(tiles):
        canvas.paste(image, (number % columns * tile, number // columns * tile))
    return canvas, columns


def _encoded(canvas: Image.Image, quality: int, alpha_quality: int = 100) -> bytes:
    file = io.BytesIO()
    canvas.save(file, "WEBP", quality=quality, alpha_quality=alpha_quality, method=4)
    return file.getvalue()


def _url(content: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(content).decode()}"
