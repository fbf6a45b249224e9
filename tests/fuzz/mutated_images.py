"""Images of many formats by real writers, and mutations by the structure of each format."""

import io
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from mutations import Draw, mutated_bytes
from PIL import Image

_PIXELS = np.random.default_rng(0).integers(0, 256, (40, 48, 4), dtype=np.uint8)
_FRAMES = [Image.fromarray(np.roll(_PIXELS, turn, axis=0)) for turn in range(3)]
_ROTATED = Image.Exif()
_ROTATED[0x0112] = 6
_ROTATED[0x010E] = "described " * 20


def encoded(mode: str, format: str, **options: Any) -> bytes:
    """An image of noise."""
    buffer = io.BytesIO()
    _FRAMES[0].convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


_ANIMATED = {"save_all": True, "append_images": _FRAMES[1:]}
_IMAGES = [
    *(encoded("RGB", format) for format in ("BMP", "DIB", "PCX", "PPM", "QOI", "SGI", "TGA")),
    *(encoded(mode, "JPEG", exif=_ROTATED) for mode in ("RGB", "L", "CMYK")),
    encoded("RGB", "JPEG", progressive=True, icc_profile=b"profile" * 50),
    *(encoded(mode, "PNG", exif=_ROTATED) for mode in ("RGBA", "RGB", "P", "LA", "1", "I;16")),
    encoded("P", "PNG", transparency=3),
    encoded("RGBA", "PNG", **_ANIMATED),
    encoded("P", "GIF", transparency=3),
    encoded("RGB", "GIF", **_ANIMATED),
    *(encoded("RGBA", "WEBP", lossless=lossless, exif=_ROTATED) for lossless in (True, False)),
    encoded("RGBA", "WEBP", **_ANIMATED),
    encoded("RGBA", "AVIF", exif=_ROTATED.tobytes()),
    *(encoded("RGB", "TIFF", compression=name) for name in ("raw", "tiff_lzw", "tiff_deflate", "jpeg", "packbits")),
    *(encoded(mode, "TIFF", exif=_ROTATED) for mode in ("1", "P", "CMYK", "I;16", "RGBA")),
    encoded("RGB", "TIFF", big_tiff=True),
    encoded("RGB", "TIFF", tiffinfo={322: 16, 323: 16}),
    b"8BPS\0\1" + bytes(6) + struct.pack("!HIIHHIIIH", 3, 8, 8, 8, 3, 0, 0, 0, 0) + bytes(3 * 64),  # PSD
]


def _parts(content: bytes) -> tuple[list[bytes], Callable[[list[bytes]], bytes]]:
    """The parts of an image by the structure of its format, and a function that joins parts with right sizes."""
    if content.startswith(b"\x89PNG"):
        parts, position = [], 8
        while position < len(content):
            (length,) = struct.unpack_from("!I", content, position)
            parts.append(content[position + 4 : position + 8 + length])
            position += 12 + length
        return (
            parts,
            lambda parts: (
                content[:8]
                + b"".join(
                    struct.pack("!I", max(0, len(part) - 4)) + part + struct.pack("!I", zlib.crc32(part))
                    for part in parts
                )
            ),
        )
    if content.startswith(b"RIFF"):
        parts, position = [], 12
        while position < len(content):
            (length,) = struct.unpack_from("<I", content, position + 4)
            parts.append(content[position : position + 4] + content[position + 8 : position + 8 + length])
            position += 8 + length + length % 2
        return parts, lambda parts: _riff(parts)
    if content.startswith(b"\xff\xd8"):
        return re.split(rb"(?=\xff[\xc0-\xfe])", content), b"".join
    return [content[start : start + 12] for start in range(0, len(content), 12)], b"".join  # a TIFF has entries of 12


def _riff(parts: list[bytes]) -> bytes:
    chunks = (
        part[:4] + struct.pack("<I", len(part) - 4) + part[4:] + b"\0" * (len(part) % 2)
        for part in parts
        if len(part) > 3
    )
    content = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(content)) + content


_WORDS = [0, 1, 2, 7, 0xFF, 0x7FFF, 0xFFFF, 9000, 30000, 2**24, 2**31 - 1, 2**31, 2**32 - 1]


def mutated_image(draw: Draw) -> bytes:
    """An image with parts that are changed, missing, repeated, swapped, or of another image."""
    content = _IMAGES[draw(st.integers(0, len(_IMAGES) - 1))]
    parts, joined = _parts(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(parts) - 1)))
        match draw(st.sampled_from(["number", "number", "bytes", "drop", "repeat", "swap", "other"])):
            case _ if not parts:
                break
            case "number":
                start = draw(st.integers(0, max(0, len(parts[place]) - 1)))
                number = draw(st.sampled_from(_WORDS) | st.integers(0, 2**32 - 1))
                width = draw(st.sampled_from([1, 2, 4]))
                order = draw(st.sampled_from(["little", "big"]))
                part = bytearray(parts[place])
                part[start : start + width] = (number % 256**width).to_bytes(width, order)
                parts[place] = bytes(part)
            case "bytes":
                parts[place] = mutated_bytes(draw, parts[place])
            case "drop":
                del parts[place]
            case "repeat":
                parts[place : place + 1] = [parts[place]] * draw(st.sampled_from([2, 20, 3000]))
            case "swap":
                other = draw(st.integers(0, len(parts) - 1))
                parts[place], parts[other] = parts[other], parts[place]
            case "other":
                others = _parts(_IMAGES[draw(st.integers(0, len(_IMAGES) - 1))])[0]
                parts.insert(place, others[draw(st.integers(0, len(others) - 1))])
    content = joined(parts)
    return mutated_bytes(draw, content) if draw(st.integers(0, 3)) == 0 else content
