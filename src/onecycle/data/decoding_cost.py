"""Refuse small files that take long to decode. A cheap look at their structure finds them."""

import re
import struct
from contextlib import suppress

# Limit for the values in the tables of a TIFF. Pillow needs microseconds and several hundred bytes for each value.
MOST_VALUES = 2**18
MOST_PASSES = 1_000  # limit for the number of passes over all pixels of an image
MOST_PASSED = 2_000_000_000  # limit for the pixels of all passes together; decoding that many takes about two seconds

# The marker that starts a JPEG segment. The excluded codes also occur in compressed data.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
# The box with width and height of an image in a HEIC file. Source: ISO/IEC 23008-12, section 6.5.3.
_EXTENTS = re.compile(rb"\0\0\0\x14ispe\0\0\0\0(....)(....)", re.DOTALL)
_SOS, _EOI = 0xDA, 0xD9
_TIFF = (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+")  # Pillow accepts all of these signatures
_BIG_TIFF = 43  # Pillow reads a file with this third byte as a BigTIFF
# Size of a value in bytes, by TIFF type. Pillow creates one object for each value of these types.
_VALUE_SIZES = {3: 2, 4: 4, 5: 8, 6: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}


def require_few_values(content: bytes) -> None:
    """Check the first table of a TIFF file, or of EXIF data, which have the same format. Accept other content.

    Raises:
        ValueError: when the table has too many values. Even a small file can have too many, because a value may need
            only one or two bytes.
    """
    tiff = content.removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0")
    if not tiff.startswith(_TIFF):
        return
    order = "<" if tiff.startswith(b"II") else ">"
    formats = ("8xQ", "Q", "HHQ8x") if tiff[2] == _BIG_TIFF else ("4xI", "H", "HHI4x")
    first, count, entry = (struct.Struct(order + format) for format in formats)
    values = 0
    with suppress(struct.error, OverflowError):  # if the table is truncated, Pillow uses the entries before the cut
        (position,) = first.unpack_from(tiff)
        (entries,) = count.unpack_from(tiff, position)
        for number in range(entries):
            _, kind, length = entry.unpack_from(tiff, position + count.size + number * entry.size)
            # Pillow unpacks values of the types in `_VALUE_SIZES`. It keeps other types as bytes, and ignores an entry
            # that claims to be larger than the file.
            is_unpacked = kind in _VALUE_SIZES and length * _VALUE_SIZES[kind] <= len(tiff)
            values += length if is_unpacked else 1
            if values > MOST_VALUES:
                raise ValueError(f"its tables have more than {MOST_VALUES:,} values")


def require_small_parts(content: bytes, most_pixels: int) -> None:
    """Check the size of every image in a HEIC file. The picture may be only a small part of a larger image in the file.

    Raises:
        ValueError: when an image has more than `most_pixels` pixels.
    """
    for width, height in _EXTENTS.findall(content):
        pixels = int.from_bytes(width, "big") * int.from_bytes(height, "big")
        if pixels > most_pixels:
            raise ValueError(f"a part of it has {pixels:,} pixels; the limit is {most_pixels:,}")


def require_few_passes(content: bytes, format: str | None, size: tuple[int, int]) -> None:
    """Check that a decoder passes over all pixels of an image of `size` (width, height) only a few times.

    Progressive JPEGs have about ten scans, and each passes over all pixels. A scan needs only a few bytes in the file.

    Raises:
        ValueError: when decoding would take too long.
    """
    pixels = size[0] * size[1]
    most = min(MOST_PASSES, max(MOST_PASSED // max(pixels, 1), 1))
    if format in ("JPEG", "MPO") and _has_more_scans(content, most):
        raise ValueError(f"it has more than {most:,} scans of {size[0]}×{size[1]} pixels")


def _has_more_scans(content: bytes, most: int) -> bool:
    """Whether the first JPEG image in `content` has more than `most` scans."""
    scans, position = 0, 2
    while (found := _MARKER.search(content, position)) and (marker := content[found.end() - 1]) != _EOI:
        scans += marker == _SOS
        if scans > most:
            return True
        position = found.end() + max(2, int.from_bytes(content[found.end() : found.end() + 2], "big"))
    return False
