"""Many small images as one: a sheet in the WebP format, inside the page."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLUMNS = 40
LARGEST_TILE = 64  # pixels; larger images are made smaller
_QUALITIES = (95, 85, 70, 50, 30)
_HOT = (213, 94, 0)  # vermillion, as in the other pictures


@dataclass(frozen=True)
class Sheet:
    """Images in rows of `columns`, as an address that holds them. `tile` is an image's side in pixels."""

    address: str
    columns: int
    tile: int

    def place(self, number: int) -> tuple[int, int]:
        """Column and row of an image."""
        return number % self.columns, number // self.columns


def image_sheet(images: NDArray[np.uint8], *, most_bytes: int) -> Sheet:
    """`images` uint8 `[N,S,S,3]` in as good a quality as fits into `most_bytes`, or the worst that there is."""
    tile = min(images.shape[1], LARGEST_TILE)
    canvas, columns = _arranged([Image.fromarray(image).resize((tile, tile)) for image in images], tile, "RGB")
    content = b""
    for quality in _QUALITIES:
        content = _encoded(canvas, quality)
        if len(content) <= most_bytes:
            break
    return Sheet(_address(content), columns, tile)


def heat_sheet(heat: NDArray[np.uint8], tile: int) -> Sheet:
    """`heat` uint8 `[N,h,w]` as colour that is the less transparent the more heat there is, smoothly enlarged."""
    tiles = []
    for part in heat:
        alpha = Image.fromarray(part).resize((tile, tile), Image.Resampling.BICUBIC)
        colour = Image.new("RGBA", (tile, tile), _HOT)
        colour.putalpha(alpha.point([value * 7 // 10 for value in range(256)]))
        tiles.append(colour)
    canvas, columns = _arranged(tiles, tile, "RGBA")
    return Sheet(_address(_encoded(canvas, 50, alpha_quality=40)), columns, tile)


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


def _address(content: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(content).decode()}"
