"""Folders of small random images."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_images(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Write `counts[name]` images of different sizes to `folder/<name>/` for each class. Returns `folder`."""
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (20 + number, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02}.png")
    return folder
