"""Pictures of pictures: what the network got wrong, and what augmentation does."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from onecycle.report.visualizations.style import (
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
from onecycle.storage.records import Mistakes

_COLUMNS = 8
_SIDE = 1.12  # inches of an image
_GAP = 0.14
_EDGE = 0.25
_LEFT, _TOP = 1.15, 0.65  # of the first image in rows that have names
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
    return _rows("Training images, and one augmentation of each", {"original": originals, "augmented": augmented})


@styled
def grad_cam_overlays(images: NDArray[np.uint8], heat: NDArray[np.uint8]) -> Figure:
    """Images, and below each in vermillion what spoke for its predicted class.

    `images` are uint8 `[N,H,W,3]`, `heat` uint8 `[N,h,w]` as an `Interpretation` has it; the first 8 are shown.

    Raises:
        ValueError: if the two hold different numbers of images, or none.
    """
    if not len(images) == len(heat) > 0:
        raise ValueError(f"there are {len(images)} images and {len(heat)} maps; there must be as many, and some")
    return _rows(
        "Incorrect predictions, and what spoke for them (Grad-CAM)",
        {
            "image": images[:_COLUMNS],
            "looked at": [overlaid(*pair) for pair in zip(images, heat, strict=True)][:_COLUMNS],
        },
    )


@styled
def most_alike_pairs(
    pairs: NDArray[np.uint8], similarities: NDArray[np.float32], *, evaluated_on: str = "test"
) -> Figure:
    """Evaluated images, and below each the training image that is most like it; the first 8 are shown.

    `pairs` are uint8 `[N,2,H,W,3]`, `similarities` float32 `[N]`, as an `Interpretation` has them.

    Raises:
        ValueError: if there are no pairs, or fewer similarities.
    """
    if not 0 < len(pairs) <= len(similarities):
        raise ValueError(f"there are {len(pairs)} pairs and {len(similarities)} similarities; each needs one")
    pairs = pairs[:_COLUMNS]
    title = f"Most alike: {similarities[0]:.1%} to {similarities[len(pairs) - 1]:.1%}".replace("%", " %")
    return _rows(title, {evaluated_on: pairs[:, 0], "training": pairs[:, 1]})


@styled
def suspected_labels(
    images: NDArray[np.uint8], labels: NDArray[np.int64], guesses: NDArray[np.int64], classes: tuple[str, ...]
) -> Figure:
    """Images that may have a wrong label, each with the label and the class that the network would give it.

    `images` are uint8 `[N,H,W,3]`, `labels` and `guesses` int64 `[N]` or longer; the first 8 are shown.

    Raises:
        ValueError: if there are no images.
    """
    if not len(images):
        raise ValueError("there are no images")
    shown = images[:_COLUMNS]
    figure = _rows("Labels that may be wrong", {"image": shown}, below=2.3 * LINE_INCHES)
    for i in range(len(shown)):
        x = _LEFT + i * (_SIDE + _GAP)
        for line, (text, color) in enumerate(
            ((classes[labels[i]], BLUE), (f"→ {classes[guesses[i]]}", VERMILLION)), start=1
        ):
            y = _TOP + _SIDE + line * LINE_INCHES
            _write(figure, x, y, shorten(text, _SIDE, _CAPTION_SIZE), _CAPTION_SIZE, color)
    return figure


def overlaid(image: NDArray[np.uint8], heat: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`image` uint8 `[H,W,3]` with `heat` uint8 `[h,w]` in vermillion over it, the stronger the more there is."""
    height, width = image.shape[:2]
    smooth = np.asarray(Image.fromarray(heat).resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)
    share = 0.7 * smooth[..., None] / 255
    mixed: NDArray[np.uint8] = (
        ((1 - share) * image + share * 255 * np.array(to_rgb(VERMILLION))).round().astype(np.uint8)
    )
    return mixed


def _rows(
    title: str, rows: Mapping[str, Sequence[NDArray[np.uint8]] | NDArray[np.uint8]], *, below: float = 0
) -> Figure:
    """A row of images under each other for every name; `below` is room in inches under the last."""
    columns = max(len(images) for images in rows.values())
    width = max(_width(columns) + _LEFT - _EDGE, 5)
    figure = Figure(figsize=(width, _TOP + len(rows) * (_SIDE + _GAP / 2) - _GAP / 2 + below + _EDGE))
    _write(figure, _EDGE, 0.35, title, TITLE_SIZE, bold=True)
    for row, (name, images) in enumerate(rows.items()):
        y = _TOP + row * (_SIDE + _GAP / 2)
        _write(figure, _LEFT - 0.1, y + _SIDE / 2 + 0.05, name, FONT_SIZE, GREY, align="right")
        for i, image in enumerate(images):
            _show(figure, _LEFT + i * (_SIDE + _GAP), y, image)
    return figure


def _width(columns: int) -> float:
    return 2 * _EDGE + columns * _SIDE + (columns - 1) * _GAP


def _percent(share: float) -> str:
    """`share` in percent, with the decimals that tell confident mistakes apart; only certainty is 100 %."""
    return ">99.99 %" if 0.99995 <= share < 1 else f"{100 * share:.2f} %"


def _without_mistakes() -> Figure:
    figure = Figure(figsize=(_width(_COLUMNS), 1.1))
    _canvas(figure)  # notebooks show no figure that has no axes
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
    """Show a square `image` (uint8 `[S,S,3]`), its upper left corner `x`, `y` inches from the figure's."""
    corners = (x, x + _SIDE, y + _SIDE, y)  # left, right, bottom, top
    _canvas(figure).imshow(image, interpolation="nearest", extent=corners, aspect="auto")


def _canvas(figure: Figure) -> Axes:
    """Axes in inches over the whole figure, without lines. All images share them: axes cost more time than images."""
    if figure.axes:
        return figure.axes[0]
    width, height = figure.get_size_inches()
    canvas = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    canvas.set_axis_off()
    return canvas
