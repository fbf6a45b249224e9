"""Images whose pixels encode their own coordinates, so that a test can find out what an augmentation did."""

from typing import NamedTuple

import numpy as np

SIZE, PADDING, CUTOUT = 32, 4, 8
FILL = (255, 254, 253)
MANY = 2000


class Drawn(NamedTuple):
    """The random draws for one image: the crop's corner in the padded image, the flip, and the cutout's corner."""

    top: int
    left: int
    flipped: bool
    cutout_top: int
    cutout_left: int


def map_of(size: int = SIZE) -> np.ndarray:
    """A uint8 image `[size,size,3]`. Red is the row, green is the column, and blue differs from the cutout's."""
    rows, columns = np.mgrid[:size, :size].astype(np.uint8)
    return np.stack([rows, columns, np.full_like(rows, 77)], axis=-1)


def by_hand(image: np.ndarray, drawn: Drawn) -> np.ndarray:
    """`image` after the steps of the augmentation: reflection padding, crop, flip and cutout."""
    size = len(image)
    padded = np.pad(image, ((PADDING, PADDING), (PADDING, PADDING), (0, 0)), mode="reflect")
    augmented = padded[drawn.top : drawn.top + size, drawn.left : drawn.left + size]
    augmented = (augmented[:, ::-1] if drawn.flipped else augmented).copy()
    augmented[drawn.cutout_top : drawn.cutout_top + CUTOUT, drawn.cutout_left : drawn.cutout_left + CUTOUT] = FILL
    return augmented


def read(augmented: np.ndarray, size: int = SIZE) -> Drawn:
    """The draws that turned `map_of(size)` into `augmented`. Asserts that `by_hand` makes the same image from them."""
    in_cutout = (augmented == FILL).all(axis=-1)
    cutout_rows, cutout_columns = (np.flatnonzero(in_cutout.any(axis=axis)) for axis in (1, 0))
    # Find two neighboring pixels that never come from the padding and that the cutout does not cover.
    row = column = PADDING
    if in_cutout[row, column : column + 2].any():
        row = size - PADDING - 1
    if in_cutout[row, column : column + 2].any():
        column = size - PADDING - 2
    (source_row, source_column, _), (_, next_column, _) = augmented[row, column : column + 2].astype(int)
    flipped = bool(next_column < source_column)
    drawn = Drawn(
        top=int(source_row) - row + PADDING,
        left=int(source_column) - (size - 1 - column if flipped else column) + PADDING,
        flipped=flipped,
        cutout_top=int(cutout_rows[0]),
        cutout_left=int(cutout_columns[0]),
    )
    assert (augmented == by_hand(map_of(size), drawn)).all()
    assert in_cutout.sum() == CUTOUT * CUTOUT
    return drawn


def chi_square(values: np.ndarray, cells: int) -> float:
    """How far the distribution of `values`, from 0 to `cells - 1`, is from a uniform one.

    Returns the chi-square statistic, minus its mean, divided by its standard deviation.
    """
    counts = np.bincount(values, minlength=cells)
    assert len(counts) == cells
    expected = len(values) / cells
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return (statistic - (cells - 1)) / np.sqrt(2 * (cells - 1))
