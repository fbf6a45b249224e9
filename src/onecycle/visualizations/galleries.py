"""Pictures of pictures: what the network got wrong, and what augmentation does."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from onecycle.records import Mistakes
from onecycle.visualizations.style import (
    BLUE,
    FONT_SIZE,
    GREY,
    INK,
    LINE_INCHES,
    TITLE_SIZE,
    VERMILLION,
    shorten,
    styled,
    text_inches,
)

_COLUMNS = 8
_SIDE = 1.12  # inches of an image
_GAP = 0.14
_EDGE = 0.25
_CAPTION_SIZE = 9.5


@styled
def incorrect_predictions(mistakes: Mistakes, *, count: int = 40) -> Figure:
    """The first `count` incorrect predictions: each image with its true and its predicted class and the probability.

    Raises:
        ValueError: if `count` is less than 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}; it must be at least 1")
    shown = min(count, len(mistakes.labels))
    if not shown:
        return _without_mistakes()
    caption = 3.3 * LINE_INCHES
    rows = -(-shown // _COLUMNS)
    top = 0.85
    figure = Figure(figsize=(max(_width(min(shown, _COLUMNS)), 5.5), top + rows * (_SIDE + caption + _GAP) + 0.1))
    _write(figure, _EDGE, 0.35, f"Incorrect predictions, most confident first: {shown} shown", TITLE_SIZE, bold=True)
    _write_key(figure)
    for i in range(shown):
        x = _EDGE + i % _COLUMNS * (_SIDE + _GAP)
        y = top + i // _COLUMNS * (_SIDE + caption + _GAP)
        predicted = int(mistakes.predictions[i])
        lines = (
            (mistakes.classes[int(mistakes.labels[i])], BLUE),
            (f"→ {mistakes.classes[predicted]}", VERMILLION),
            (f"{_percent(float(mistakes.probabilities[i, predicted]))} sure", GREY),
        )
        _show(figure, x, y, mistakes.images[i])
        for line, (text, color) in enumerate(lines, start=1):
            baseline = y + _SIDE + line * LINE_INCHES
            _write(figure, x, baseline, shorten(text, _SIDE, _CAPTION_SIZE), _CAPTION_SIZE, color)
    return figure


@styled
def augmentations(originals: NDArray[np.uint8], augmented: NDArray[np.uint8]) -> Figure:
    """Images in the upper row, below each what augmentation made of it: two uint8 `[N,H,W,3]`, N from 1 to 8.

    Raises:
        ValueError: if the two hold different numbers of images, or none, or more than 8.
    """
    if not 1 <= len(originals) == len(augmented) <= _COLUMNS:
        raise ValueError(
            f"there are {len(originals)} originals and {len(augmented)} augmented images; there must be as many, 1 to 8"
        )
    left, top = 1.15, 0.65
    width = max(_width(len(originals)) + left - _EDGE, 5)
    figure = Figure(figsize=(width, top + 2 * _SIDE + _GAP / 2 + _EDGE))
    _write(figure, _EDGE, 0.35, "Training images, and one augmentation of each", TITLE_SIZE, bold=True)
    for row, (name, images) in enumerate((("original", originals), ("augmented", augmented))):
        y = top + row * (_SIDE + _GAP / 2)
        _write(figure, left - 0.1, y + _SIDE / 2 + 0.05, name, FONT_SIZE, GREY, align="right")
        for i, image in enumerate(images):
            _show(figure, left + i * (_SIDE + _GAP), y, image)
    return figure


def _width(columns: int) -> float:
    return 2 * _EDGE + columns * _SIDE + (columns - 1) * _GAP


def _percent(share: float) -> str:
    """`share` in percent, with the decimals that tell confident mistakes apart; only certainty is 100 %."""
    return ">99.99 %" if 0.99995 <= share < 1 else f"{100 * share:.2f} %"


def _without_mistakes() -> Figure:
    figure = Figure(figsize=(_width(_COLUMNS), 1.1))
    # Notebooks show no figure that has no axes.
    figure.add_axes((0, 0, 1, 1)).set_axis_off()
    _write(figure, _EDGE, 0.35, "Incorrect predictions: none", TITLE_SIZE, bold=True)
    _write(figure, _EDGE, 0.7, "Every image that was evaluated got its true class.", FONT_SIZE, GREY)
    return figure


def _write_key(figure: Figure) -> None:
    x = _EDGE
    for text, color in (("true class", BLUE), ("→ predicted class", VERMILLION), ("its probability", GREY)):
        _write(figure, x, 0.63, text, FONT_SIZE, color)
        x += text_inches(text) + 0.12


def _write(
    figure: Figure,
    x: float,
    y: float,
    text: str,
    size: float,
    color: str = INK,
    *,
    bold: bool = False,
    align: str = "left",
) -> None:
    """Writes `text` with its baseline at `x`, `y` inches from the upper left corner."""
    width, height = figure.get_size_inches()
    weight = "bold" if bold else "normal"
    figure.text(x / width, 1 - y / height, text, fontsize=size, color=color, weight=weight, ha=align)


def _show(figure: Figure, x: float, y: float, image: NDArray[np.uint8]) -> None:
    """Shows `image` uint8 `[H,W,3]` with its upper left corner at `x`, `y` inches from the figure's."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes((x / width, 1 - (y + _SIDE) / height, _SIDE / width, _SIDE / height))
    axes.imshow(image, interpolation="nearest")
    axes.set_axis_off()
