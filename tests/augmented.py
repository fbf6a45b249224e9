"""Images in which every pixel tells where it came from, so that what an augmentation did can be read off them."""

from typing import NamedTuple

import numpy as np

SIZE, PADDING, HOLE = 32, 4, 8
FILL = (255, 254, 253)
MANY = 2000


class Drawn(NamedTuple):
    """What was drawn for an image: the corner of the crop in the padded image, the flip, the corner of the hole."""

    top: int
    left: int
    flipped: bool
    hole_top: int
    hole_left: int


def map_of(size: int = SIZE) -> np.ndarray:
    """An image uint8 `[size,size,3]` whose pixels are their own (row, column), with a blue that no hole has."""
    rows, columns = np.mgrid[:size, :size].astype(np.uint8)
    return np.stack([rows, columns, np.full_like(rows, 77)], axis=-1)


def by_hand(image: np.ndarray, drawn: Drawn) -> np.ndarray:
    """`image` padded by reflection, cropped, flipped and holed step by step."""
    size = len(image)
    padded = np.pad(image, ((PADDING, PADDING), (PADDING, PADDING), (0, 0)), mode="reflect")
    made = padded[drawn.top : drawn.top + size, drawn.left : drawn.left + size]
    made = (made[:, ::-1] if drawn.flipped else made).copy()
    made[drawn.hole_top : drawn.hole_top + HOLE, drawn.hole_left : drawn.hole_left + HOLE] = FILL
    return made


def read(augmented: np.ndarray, size: int = SIZE) -> Drawn:
    """The drawn values, checked: padding, crop, flip and hole with just these values give the very same image."""
    in_hole = (augmented == FILL).all(axis=-1)
    hole_rows, hole_columns = (np.flatnonzero(in_hole.any(axis=axis)) for axis in (1, 0))
    # Two neighbours that no offset moves in from the border and this hole does not cover.
    row = column = PADDING
    if in_hole[row, column : column + 2].any():
        row = size - PADDING - 1
    if in_hole[row, column : column + 2].any():
        column = size - PADDING - 2
    (source_row, source_column, _), (_, next_column, _) = augmented[row, column : column + 2].astype(int)
    flipped = bool(next_column < source_column)
    drawn = Drawn(
        top=int(source_row) - row + PADDING,
        left=int(source_column) - (size - 1 - column if flipped else column) + PADDING,
        flipped=flipped,
        hole_top=int(hole_rows[0]),
        hole_left=int(hole_columns[0]),
    )
    assert (augmented == by_hand(map_of(size), drawn)).all()
    assert in_hole.sum() == HOLE * HOLE
    return drawn


def chi_square(values: np.ndarray, cells: int) -> float:
    """How far the counts of `values` in 0..cells-1 are from equal, in deviations of what chance gives."""
    counts = np.bincount(values, minlength=cells)
    assert len(counts) == cells
    expected = len(values) / cells
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return (statistic - (cells - 1)) / np.sqrt(2 * (cells - 1))
