"""Write ICC profiles of RGB colors. Source: ICC.1:2001-04, sections 6.1 (header), 6.5.3 (curves), 6.5.26 (XYZ)."""

import struct
from collections.abc import Callable, Sequence

import numpy as np

Primaries = Sequence[tuple[float, float, float]]

# XYZ of red, green and blue, adapted to the white point D50.
SRGB: Primaries = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
DISPLAY_P3: Primaries = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
ADOBE_RGB: Primaries = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
WHITE = (0.96420, 1.0, 0.82491)


def linear_of_srgb(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def linear_of_adobe(values: np.ndarray) -> np.ndarray:
    return values**2.19921875


def profile(
    primaries: Primaries, linear: Callable[[np.ndarray], np.ndarray] = linear_of_srgb, name: str = "made"
) -> bytes:
    curve = (65535 * linear(np.linspace(0, 1, 1024))).round().astype(">u2").tobytes()
    ascii_name = name.encode() + b"\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", len(ascii_name)) + ascii_name + bytes(78)
    tags = {
        b"desc": description,
        b"wtpt": _xyz(WHITE),
        **{letter + b"XYZ": _xyz(color) for letter, color in zip((b"r", b"g", b"b"), primaries, strict=True)},
        **{letter + b"TRC": b"curv\0\0\0\0" + struct.pack(">I", 1024) + curve for letter in (b"r", b"g", b"b")},
    }
    table, content = struct.pack(">I", len(tags)), b""
    begin = 128 + 4 + 12 * len(tags)
    for tag, value in tags.items():
        table += tag + struct.pack(">II", begin + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    size = begin + len(content)
    header = struct.pack(">I4sI4s4s4s12x4s28x", size, b"lcms", 0x02100000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    return header + struct.pack(">III", *(round(65536 * value) for value in WHITE)) + bytes(48) + table + content


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">iii", *(round(65536 * value) for value in values))
