"""Open image files, and convert images to the network's size.

This module does not import torch, so that processes that use it start quickly.
"""

import functools
import io
import os
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from onecycle.core.errors import InputError
from onecycle.data.color_profiles import ProfileError, profile_of, to_srgb, transform_of
from onecycle.data.decoding_cost import require_few_passes, require_few_values, require_small_parts

# The image formats that are read, by Pillow's names. Other formats are left out for safety. EPS needs an interpreter,
# which runs code from the file. IPTC and some other formats embed another image, and Pillow would open this image with
# any of its decoders. Decoders of rare formats are poorly maintained: a megabyte of JPEG 2000 may take minutes.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "PCX", "PNG", "PPM", "PSD", "QOI", "SGI", "TGA", "TIFF", "WEBP")
# Pillow's modules that read these formats. A JPEG with several images is an MPO.
_PLUGINS = ("Avif", "Bmp", "Gif", "Jpeg", "Mpo", "Pcx", "Png", "Ppm", "Psd", "Qoi", "Sgi", "Tga", "Tiff", "WebP")
HEIF = "HEIF"  # many phones save photos in this format; it is read if `pillow_heif` is installed
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
HEIF_ADVICE = "needs pillow-heif: run pip install 'onecycle[heic]'"
# The brand of a HEIF file is in its bytes 8 to 11. These are the common brands.
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

_DEEP = ("I", "I;16", "I;16B")  # modes with more than 8 bits per channel

# The operation for each EXIF orientation. `ImageOps.exif_transpose` would also write all EXIF data again.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

LARGEST_FILE = 2**26  # limit in bytes, because a file is read into memory as a whole; image files are far smaller
_STRIP_PIXELS = 2**22  # number of pixels that are converted at a time
MOST_PIXELS = 89_478_485  # Pillow warns of a decompression bomb above this number, and raises an error above twice it
MOST_WEBP_PIXELS = 60_000_000  # below MOST_PIXELS, because the WebP decoder needs 16 bytes of memory for each pixel
SMALLEST_SIDE = 2  # pixels; a smaller image is a tracking pixel or a placeholder


@functools.cache
def formats() -> tuple[str, ...]:
    """Pillow's names of the image formats that the installed packages can read."""
    for plugin in _PLUGINS:  # otherwise Pillow would import all of its plugins, which takes longer
        import_module(f"PIL.{plugin}ImagePlugin")
    if find_spec("pillow_heif") is None:
        return FORMATS
    import pillow_heif

    # One thread, because images are decoded in parallel. Thumbnails and depth images are not used.
    pillow_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)
    return (*FORMATS, HEIF)


@functools.cache
def suffixes() -> frozenset[str]:
    """The suffixes of supported image files, in lower case, with the dot."""
    read = {*formats(), "MPO"}  # Pillow registers no reader for MPO, because it opens MPO files as JPEG
    return frozenset(suffix for suffix, format in Image.EXTENSION.items() if format in read)


def has_image_suffix(name: str) -> bool:
    """Whether the file `name` has the suffix of a supported image format."""
    return os.path.splitext(name)[1].lower() in suffixes()  # faster than creating a Path


def open_image(
    content: bytes, where: str, *, most_pixels: int | None = None, only: tuple[str, ...] = ()
) -> Image.Image:
    """The image in the `content` of a file, fully loaded. `where` is the name of the file in messages.

    For an animation, this is the first frame. If `only` names formats, files of other formats are refused.

    Raises:
        InputError: when the content is empty, damaged or not an image, or when decoding it would take very long. Also
            when the image is smaller than 2×2 pixels, has float pixels, or has so many pixels that it may be a
            decompression bomb.
    """
    if not content:
        raise InputError(f"{where}: the file is empty; replace or remove it")
    most = most_pixels or MOST_PIXELS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings do not name the file, and real problems raise errors
            require_few_values(content)
            accepted = [name for name in formats() if name in (only or formats())]
            image = Image.open(io.BytesIO(content), formats=accepted)
            require_few_passes(content, image.format, image.size)
            if image.format == HEIF:
                require_small_parts(content, most_pixels or MOST_PIXELS)
            if most_pixels is None:
                _decode_smaller(image)
            if image.format == "WEBP":
                most = min(most, MOST_WEBP_PIXELS)
            _require_fewer(most, image)
            image.load()  # verify() would accept truncated files
            _require_fewer(most, image)  # loading a HEIF image may change its size
            if image.mode in ("P", "PA") and image.palette is None:
                raise ValueError("it has no palette")
            require_few_values(image.info.get("exif") or b"")
            _turn(image)  # only to find damaged EXIF tags before `to_square` does
    except UnidentifiedImageError as error:
        if content[4:8] == b"ftyp" and content[8:12] in _HEIF_BRANDS and HEIF not in formats():
            raise InputError(f"{where}: HEIC {HEIF_ADVICE}") from error
        raise InputError(f"{where}: not an image ({len(content):,} bytes); replace or remove it") from error
    except Image.DecompressionBombError as error:
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
    """If a JPEG has too many pixels, let the decoder divide its sides by 2, 4 or 8. Other formats do not change."""
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


def to_square(image: Image.Image, size: int, where: str = "this image") -> NDArray[np.uint8]:
    """An image of any size and mode as uint8 `[size,size,3]`. `where` is the name of its file in messages.

    The short side is resized to `size` with antialiasing, then the center is cropped. An image that already has this
    size is not resized. The EXIF orientation is applied, and transparent pixels are blended with white. If
    every pixel is fully transparent and the hidden colors differ, transparency is ignored. If the ICC profile is not
    sRGB, the colors are converted to sRGB.

    Raises:
        InputError: when Pillow cannot convert the image.
    """
    try:
        profile = profile_of(image)
        if (turn := _turn(image)) is not None:
            image = image.transpose(turn)
        image = _to_rgb(image)
        if image.size != (size, size):
            image = ImageOps.fit(image, (size, size), method=Image.Resampling.BICUBIC)
        # Convert the colors after resizing. Converting all pixels of a photograph would take as long as decoding them.
        return np.asarray(to_srgb(image, profile))
    except (LookupError, OSError, TypeError, ValueError) as error:  # Pillow does not convert every mode to every other
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{where}: the image has the mode {image.mode}, which cannot be converted ({reason}); save it as RGB"
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    convert: Callable[[Image.Image], Image.Image] = _without_alpha
    if image.mode in _DEEP:
        extrema: Any = image.getextrema() if image.mode == "I" else (0, 65535)  # Pillow has no extrema of I;16B
        largest = 65535 if extrema[1] > 255 else 255
        convert = functools.partial(_deep_to_rgb, largest=largest)
    elif image.has_transparency_data and not _hides_all(image):
        convert = _blended_with_white
    if image.mode == "RGB" and convert is _without_alpha:
        return image
    rgb = Image.new("RGB", image.size)
    for box, part in _strips(image):
        rgb.paste(convert(part), box)
    return rgb


def _strips(image: Image.Image) -> Iterator[tuple[tuple[int, int, int, int], Image.Image]]:
    """Yield horizontal strips of `image`, each with its box (left, top, right, bottom).

    The strips are converted one by one, because some conversions need several times the memory of their input.
    """
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        box = 0, top, width, min(top + rows, height)
        yield box, image.crop(box)


def _deep_to_rgb(image: Image.Image, largest: int) -> Image.Image:
    # Pillow would clip 16-bit values to 0..255. Scale them to 8 bits instead, as image viewers do.
    values = np.array(image, dtype=np.float32) / largest * 255
    return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")


def _blended_with_white(image: Image.Image) -> Image.Image:
    rgba = _rgba(image)
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _without_alpha(image: Image.Image) -> Image.Image:
    return (_rgba(image) if image.has_transparency_data else image).convert("RGB")


def _rgba(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # gray with premultiplied alpha, which Pillow converts only to LA
        image = image.convert("LA")
    return image if image.mode == "RGBA" else image.convert("RGBA")


def _hides_all(image: Image.Image) -> bool:
    """Whether alpha is 0 everywhere, but the colors vary.

    Such an image is not meant to be invisible: a program that does not use alpha may write zeros.
    """
    lowest, highest = np.full(3, 255), np.zeros(3, int)
    for _, part in _strips(image):
        lows, highs = np.array(_rgba(part).getextrema()).T  # [4]
        if highs[3]:
            return False
        lowest, highest = np.minimum(lowest, lows[:3]), np.maximum(highest, highs[:3])
    return bool((lowest < highest).any())


def conversions(image: Image.Image, name: str) -> tuple[str, ...]:
    """Describe what `to_square` converts in `image`, except resizing. Also report a wrong file suffix of `name`.

    The crop to the center is reported if it removes more than half of the image.
    """
    expected = Image.EXTENSION.get(Path(name).suffix.lower())  # None for a row of a table, which has no suffix
    format = "JPEG" if image.format == "MPO" else image.format
    transparent = image.has_transparency_data and image.mode not in _DEEP
    hides_all = transparent and _hides_all(image)
    has_other_colors = has_damaged_profile = False
    try:
        profile = profile_of(image)
        has_other_colors = profile is not None and transform_of(profile) is not None
    except ProfileError:
        has_damaged_profile = True
    found = {
        # A JPEG or HEIC with several images is not animated: cameras add preview images.
        "animated: only the first frame is used": format not in ("JPEG", HEIF) and _is_animated(image),
        "rotated as their EXIF tag says": _turn(image) is not None,
        "more than twice as long as wide: only the center is used": max(image.size) > 2 * min(image.size),
        "more than 8 bits a channel: scaled to 8": image.mode in _DEEP,
        "transparent: blended with white": transparent and not hides_all,
        "transparent everywhere: transparency is ignored": hides_all,
        "with the colors of another profile: converted to sRGB": has_other_colors,
        "with a color profile that cannot be used: taken for sRGB": has_damaged_profile,
        f"{image.mode}: converted to RGB": image.mode not in ("RGB", "RGBA", "LA", "PA", *_DEEP),
        "in a different format than the suffix says": expected not in (None, format, image.format),
    }
    return tuple(words for words, holds in found.items() if holds)
