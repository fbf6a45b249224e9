"""Convert colors from the ICC profile of an image to sRGB.

This module does not import torch, so that processes that use it start quickly.
"""

import functools
import io
from typing import Any

import numpy as np
from PIL import Image, ImageCms

MOST_BYTES = 2**22  # limit for the size of a profile; profiles of cameras and screens have a few thousand bytes
_LEVELS = 6  # levels of each channel in the test colors that show whether a profile is sRGB
# A profile counts as sRGB if it changes no test color by more than this many 8-bit levels. Profiles called sRGB change
# colors by up to this much.
_SAME = 3
_KEPT = 32  # transforms kept in memory; a few suffice, because all images of a camera have the same profile


class ProfileError(ValueError):
    """A color profile that cannot be used."""


def profile_of(image: Image.Image) -> bytes | None:
    """The ICC profile of an image with RGB colors. None if it has no profile or its colors are not RGB."""
    profile: Any = image.info.get("icc_profile")
    return profile if profile and image.mode in ("RGB", "RGBA", "RGBX", "P", "PA") else None


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The RGB `image`, converted from `profile` to sRGB.

    Returns `image` unchanged if `profile` is None, is sRGB or cannot be used.
    """
    try:
        transform = profile and transform_of(profile)
    except ProfileError:
        return image
    return ImageCms.applyTransform(image, transform) or image if transform else image


@functools.lru_cache(_KEPT)
def transform_of(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """The transform from `profile` to sRGB. None if `profile` is sRGB, because then colors do not change.

    Not all sRGB profiles have the same bytes or names. Therefore test colors are converted: if they hardly change,
    `profile` is sRGB.

    Raises:
        ProfileError: when the profile is damaged, is larger than `MOST_BYTES`, or is not for RGB colors.
    """
    if len(profile) > MOST_BYTES:
        raise ProfileError(f"it has {len(profile):,} bytes; the limit is {MOST_BYTES:,}")
    levels = np.linspace(0, 255, _LEVELS).round().astype(np.uint8)
    colors = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), "RGB", "RGB", intent)
        converted = ImageCms.applyTransform(Image.fromarray(colors), transform)
    except Exception as error:  # Pillow raises several kinds of errors
        raise ProfileError(" ".join(str(error).split()) or type(error).__name__) from error
    assert converted is not None
    difference = np.abs(np.asarray(converted).astype(int) - colors).max()
    return transform if difference > _SAME else None
