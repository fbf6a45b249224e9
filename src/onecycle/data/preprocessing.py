"""Resize and normalize: the one preprocessing of training, evaluation and prediction."""

import functools
import io
import math
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

# EPS needs another program, which would run what is in the file; of the others Pillow only knows what they are.
_NOT_READ = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})

_DEEP = ("I", "I;16", "I;16B")  # modes of more than 8 bits a channel

LARGEST_FILE = 2**26  # bytes, read at once: far above what a picture needs
MOST_PIXELS = 89_478_485  # which Pillow, too, takes for the most that is no decompression bomb
SMALLEST_SIDE = 2  # pixels; what is smaller is a counter or a placeholder of some web page

# Images and bytes that are summed at once at most, so that a set that is mapped from a file is never copied.
_SUMMED = 4096
_SUMMED_BYTES = 2**23


@functools.cache
def formats() -> tuple[str, ...]:
    """The picture formats that are read, by Pillow's names: all that it reads by itself."""
    Image.init()
    return tuple(format for format in Image.ID if format not in _NOT_READ)


@functools.cache
def suffixes() -> frozenset[str]:
    """Those of the names of picture files, in small letters, with their dot."""
    read = formats()
    return frozenset(suffix for suffix, format in Image.registered_extensions().items() if format in read)


def open_picture(
    content: bytes, where: str, *, most_pixels: int | None = None, only: tuple[str, ...] = ()
) -> Image.Image:
    """The picture in the `content` of a file, wholly read; `where` is what messages call the file.

    Of an animation that is the first frame. `only` are the formats that are read, where not all are.

    Raises:
        InputError: when it is no picture, is empty, damaged or a single row of pixels, has pixels of no known range, or
            so many that it must be a trap.
    """
    if not content:
        raise InputError(f"{where}: the file is empty; replace or remove it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's name no file, and what it cannot read it raises
            image = Image.open(io.BytesIO(content), formats=only or formats())
            _require_fewer(most_pixels or MOST_PIXELS, image)
            image.load()  # verify() passes truncated files
            _require_fewer(most_pixels or MOST_PIXELS, image)  # an icon may be larger than its head says
            if _is_turned(image):
                ImageOps.exif_transpose(image)  # which reads more of the tags, and may fail
    except UnidentifiedImageError as error:
        raise InputError(f"{where}: not a picture ({len(content):,} bytes); replace or remove it") from error
    except Exception as error:  # Pillow's readers raise many kinds on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{where}: the picture cannot be read ({reason}); replace or remove it") from error
    if min(image.size) < SMALLEST_SIDE:
        width, height = image.size
        raise InputError(f"{where}: the picture has {width}×{height} pixels, which show nothing; replace or remove it")
    if image.mode == "F":
        raise InputError(f"{where}: the picture has fractions for pixels, whose range is not known; convert it")
    return image


def _require_fewer(most: int, image: Image.Image) -> None:
    width, height = image.size
    if width * height > most:
        raise ValueError(f"{width}×{height} pixels are more than {most:,}")


def _is_animated(image: Image.Image) -> bool:
    try:
        return int(getattr(image, "n_frames", 1)) > 1
    except Exception:  # a later frame is damaged, which nobody looks at
        return True


def _is_turned(image: Image.Image) -> bool:
    return image.getexif().get(ExifTags.Base.Orientation) in range(2, 9)


def to_square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """A picture of any size and mode as uint8 `[size, size, 3]`.

    The short side is resized to `size` with antialiasing, then the centre is cropped. A picture that already has the
    size keeps its pixels. Its orientation tag is obeyed; transparency is put on white.
    """
    if _is_turned(image):
        image = ImageOps.exif_transpose(image)
    if image.mode in _DEEP:
        # Pillow would clip these to 0..255; a picture of 16 bits a pixel is scaled, as every viewer does.
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
    """What `to_square` does to a picture beside resizing, and what is odd about the file `name` that it came from."""
    suffix, format = Path(name).suffix.lower(), "JPEG" if image.format == "MPO" else image.format
    found = {
        # A JPEG of several pictures is a camera's, with previews.
        "animated: the first frame is used": format != "JPEG" and _is_animated(image),
        "turned upright, as their EXIF tag says": _is_turned(image),
        "more than 8 bits a channel: scaled to 8": image.mode in _DEEP,
        "transparent: put on white": image.has_transparency_data,
        f"{image.mode}: converted to RGB": image.mode not in ("RGB", "RGBA", "LA", "PA", *_DEEP),
        "of another format than their name says": Image.registered_extensions().get(suffix) != format,
    }
    return tuple(words for words, holds in found.items() if holds)


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Images uint8 `[B,H,W,3]` as `[B,size,size,3]`, bilinear with antialiasing."""
    if images.shape[1:3] == (size, size):
        return images
    pixels = images.permute(0, 3, 1, 2)
    if images.device.type != "cpu":  # elsewhere PyTorch resizes only floats
        pixels = pixels.float()
    resized = functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1).round().to(torch.uint8)


@functools.cache
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """`values` on `device`, sent there only once: to send them for every batch would make a GPU wait."""
    return torch.tensor(values, dtype=dtype, device=device)


def channel_sums(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The sums over all pixels of `images` uint8 `[N,H,W,3]` of each channel's values, and of their squares: `[2,3]`.

    Whole numbers: exact, no float copy of the images, and a channel that never varies has a deviation of just 0.
    """
    sums = np.zeros((2, 3), np.int64)
    size = int(np.prod(images.shape[1:]))
    at_once = max(1, min(_SUMMED, _SUMMED_BYTES // max(size, 1)))
    for start in range(0, len(images), at_once):
        part = images[start : start + at_once].reshape(-1, size)  # [n, 3 H W]
        for row, values in enumerate((part, np.square(part, dtype=np.uint16))):
            sums[row] += values.sum(axis=0, dtype=np.int64).reshape(-1, 3).sum(axis=0)
    return sums


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
        return cls.of_sums(channel_sums(images), images=len(images), input_size=images.shape[1])

    @classmethod
    def of_sums(cls, sums: NDArray[np.int64], *, images: int, input_size: int) -> Self:
        """The same, from the `channel_sums` of so many images."""
        n = images * input_size**2
        totals = list(zip(*sums.tolist(), strict=True))
        mean = [total / (255 * n) for total, _ in totals]
        std = [math.sqrt(n * squares - total**2) / (255 * n) for total, squares in totals]
        return cls(
            input_size=input_size,
            mean=(mean[0], mean[1], mean[2]),
            # A channel that never varies is only centred.
            std=(std[0] or 1.0, std[1] or 1.0, std[2] or 1.0),
        )

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 `[B,H,W,3]` to float32 `[B,3,H,W]`, in channels-last memory."""
        mean = constant(self.mean, torch.float32, images.device) * 255
        scale = constant(self.std, torch.float32, images.device) * 255
        normalized = images.to(torch.float32, copy=True).sub_(mean).div_(scale)  # in place: a batch is large
        return normalized.permute(0, 3, 1, 2)  # [B,H,W,3] -> [B,3,H,W]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return cls(input_size=values["input_size"], mean=tuple(values["mean"]), std=tuple(values["std"]))
