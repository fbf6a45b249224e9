"""Convert colors from the ICC profile of an image to sRGB. Without torch, so that processes start quickly."""

import functools
import io
from typing import Any

import numpy as np
from PIL import Image, ImageCms

MOST_BYTES = 2**22  # of a profile; those of cameras and screens have a few thousand
_LEVELS = 6  # of each channel, for the colors that tell whether a profile is sRGB
_SAME = 3  # difference in 8-bit levels; the profiles called sRGB differ by as much
_KEPT = 32  # transforms; the images of one device have the same profile


class ProfileError(ValueError):
    """A color profile that cannot be used."""


def profile_of(image: Image.Image) -> bytes | None:
    """The ICC profile of an image with RGB colors. None if it has no profile, or other colors."""
    profile: Any = image.info.get("icc_profile")
    return profile if profile and image.mode in ("RGB", "RGBA", "RGBX", "P", "PA") else None


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The RGB `image`, converted from `profile` to sRGB.

    It is returned as it is if its profile is sRGB, or cannot be used.
    """
    try:
        transform = profile and transform_of(profile)
    except ProfileError:
        return image
    return ImageCms.applyTransform(image, transform) or image if transform else image


@functools.lru_cache(_KEPT)
def transform_of(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """The transform from `profile` to sRGB. None if it is sRGB: then colors do not change.

    The many profiles called sRGB differ in their bytes and their names, so colors decide.

    Raises:
        ProfileError: when the profile is damaged, is larger than `MOST_BYTES`, or is not of RGB colors.
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
