"""Open, resize and normalize images: the same for training, evaluation and prediction."""

import functools
import io
import math
import os
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch.nn import functional

from onecycle.core.errors import InputError
from onecycle.data.decoding_cost import require_few_passes, require_few_values

# The image formats that are read, by Pillow's names. Others are left out for safety: EPS needs an interpreter, which
# runs code from the file; IPTC and others open what lies inside with any decoder; rare decoders get little care.
FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "PSD", "QOI", "SGI", "TGA", "TIFF"),
    "WEBP",
)

_DEEP = ("I", "I;16", "I;16B")  # modes with more than 8 bits per channel

# By EXIF orientation. `ImageOps.exif_transpose` would also write all EXIF data again.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

LARGEST_FILE = 2**26  # bytes, because a file is read as a whole; an image needs far less
MOST_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs; it warns, and refuses twice as many
SMALLEST_SIDE = 2  # pixels; a smaller image is a tracking pixel or a placeholder

# At most this many images and bytes are summed at a time, so that a memory-mapped set is never copied as a whole.
_SUMMED = 4096
_SUMMED_BYTES = 2**23


@functools.cache
def suffixes() -> frozenset[str]:
    """The suffixes of supported image files, in lower case, with the dot."""
    read = {*FORMATS, "MPO"}  # Pillow registers no reader for MPO, because it opens MPO files as JPEG
    return frozenset(suffix for suffix, format in Image.registered_extensions().items() if format in read)


def has_image_suffix(name: str) -> bool:
    """Whether the file `name` has the suffix of a supported image format."""
    return os.path.splitext(name)[1].lower() in suffixes()  # faster than creating a Path


def open_image(
    content: bytes, where: str, *, most_pixels: int | None = None, only: tuple[str, ...] = ()
) -> Image.Image:
    """The image in the `content` of a file, fully loaded. `where` is the name of the file in messages.

    For an animation, this is the first frame. `only` restricts the accepted formats.

    Raises:
        InputError: when the content is empty, damaged or not an image, is smaller than 2×2 pixels, has float pixels,
            has so many pixels that it may be a decompression bomb, or would take very long to decode.
    """
    if not content:
        raise InputError(f"{where}: the file is empty; replace or remove it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings do not name the file, and real problems raise errors
            require_few_values(content)
            image = Image.open(io.BytesIO(content), formats=only or FORMATS)
            require_few_passes(content, image.format, image.size)
            if most_pixels is None:
                _decode_smaller(image)
            _require_fewer(most_pixels or MOST_PIXELS, image)
            image.load()  # verify() would accept truncated files
            _require_fewer(most_pixels or MOST_PIXELS, image)  # an icon may be larger than its header says
            require_few_values(image.info.get("exif") or b"")
            _turn(image)  # only to find damaged EXIF tags before `to_square` does
    except UnidentifiedImageError as error:
        raise InputError(f"{where}: not an image ({len(content):,} bytes); replace or remove it") from error
    except Image.DecompressionBombError as error:
        most = most_pixels or MOST_PIXELS
        raise InputError(f"{where}: {error}; the limit is {most:,} pixels; make the image smaller") from error
    except Exception as error:  # Pillow raises many kinds of errors for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{where}: the image cannot be read ({reason}); replace or remove it") from error
    if min(image.size) < SMALLEST_SIDE:
        width, height = image.size
        raise InputError(f"{where}: the image has only {width}×{height} pixels; replace or remove it")
    if image.mode == "F":
        raise InputError(f"{where}: the image has float pixels, whose range is unknown; convert them to integers")
    return image


def _decode_smaller(image: Image.Image) -> None:
    """Let the decoder divide the sides of a JPEG with too many pixels by 2, 4 or 8. Other formats stay as they are."""
    width, height = image.size
    factor = 1
    while width * height > MOST_PIXELS * factor**2:
        factor *= 2
    if factor > 1:
        image.draft(None, (width // factor, height // factor))


def _require_fewer(most: int, image: Image.Image) -> None:
    width, height = image.size
    if width * height > most:
        raise Image.DecompressionBombError(f"the image has {width}×{height} pixels")


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))  # `n_frames` would go through all frames
    except Exception:  # a later frame is damaged, but only the first frame is used
        return True


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The operation that the EXIF orientation of `image` asks for, if any."""
    orientation: Any = image.getexif().get(ExifTags.Base.Orientation)  # damaged EXIF data may give any type
    return _TURNS.get(orientation)


def to_square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """An image of any size and mode as uint8 `[size,size,3]`.

    The short side is resized to `size` with antialiasing, then the center is cropped. An image that already has this
    size keeps its pixels. The EXIF orientation is applied, and transparent pixels are blended with white.
    """
    if (turn := _turn(image)) is not None:
        image = image.transpose(turn)
    if image.mode in _DEEP:
        # Pillow would clip 16-bit values to 0..255. Scale them to 8 bits instead, as image viewers do.
        values = np.asarray(image, dtype=np.float32)
        largest = 65535 if image.mode.startswith("I;16") or values.max() > 255 else 255
        image = Image.fromarray((values / largest * 255).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    image = image if image.mode == "RGB" else image.convert("RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), method=Image.Resampling.BICUBIC)
    return np.asarray(image)


def conversions(image: Image.Image, name: str) -> tuple[str, ...]:
    """Describe what `to_square` converts in `image`, except resizing. Also report a wrong file suffix of `name`."""
    expected = Image.registered_extensions().get(Path(name).suffix.lower())
    format = "JPEG" if image.format == "MPO" else image.format
    found = {
        # A JPEG with several images is not animated: cameras add preview images.
        "animated: only the first frame is used": format != "JPEG" and _is_animated(image),
        "rotated as their EXIF tag says": _turn(image) is not None,
        "more than 8 bits a channel: scaled to 8": image.mode in _DEEP,
        "transparent: blended with white": image.has_transparency_data,
        f"{image.mode}: converted to RGB": image.mode not in ("RGB", "RGBA", "LA", "PA", *_DEEP),
        "in a different format than the suffix says": expected not in (format, image.format),
    }
    return tuple(words for words, holds in found.items() if holds)


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
    if (sums != sums[:, :1]).any():  # usual for images with colors, so their pixels are not read
        return False
    at_once = max(1, min(_SUMMED, _SUMMED_BYTES // max(images[:1].size, 1)))
    parts = (images[start : start + at_once] for start in range(0, len(images), at_once))
    return all((part == part[..., :1]).all() for part in parts)


def to_gray(pixels: torch.Tensor) -> torch.Tensor:
    """Convert float32 `pixels` `[B,H,W,3]` with integer values 0..255 to gray, as Pillow does. Gray pixels stay equal.

    The weights are those of ITU-R BT.601 in 65536ths. Float32 represents all sums exactly.
    """
    red, green, blue = pixels.unbind(dim=-1)
    gray = ((19595 * red + 38470 * green + 7471 * blue + 32768) / 65536).floor()  # [B,H,W]
    return gray.unsqueeze(-1).repeat(1, 1, 1, 3)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Turns pixels into the network's input. It is saved with the weights.

    `mean` and `std` are the mean and standard deviation of each channel of the training set, on the scale 0..1. `gray`
    says that all training images are gray. Other images are then converted to gray.
    """

    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    gray: bool = False

    @classmethod
    def of(cls, images: NDArray[np.uint8]) -> Self:
        """The preprocessing that normalizes each channel of `images`, uint8 `[N,S,S,3]`, to mean 0 and std 1."""
        sums = channel_sums(images)
        return cls.of_sums(sums, images=len(images), input_size=images.shape[1], gray=are_gray(images, sums))

    @classmethod
    def of_sums(cls, sums: NDArray[np.int64], *, images: int, input_size: int, gray: bool) -> Self:
        """Like `of`, but from `sums`, the `channel_sums` of a set with `images` images, and whether they are `gray`."""
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
        return cls(
            input_size=values["input_size"],
            mean=tuple(values["mean"]),
            std=tuple(values["std"]),
            gray=bool(values.get("gray", False)),  # files from before this field are not about gray images
        )
