"""Image grids: incorrect predictions, heatmaps, label issues, near-duplicates and augmentations."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from onecycle.core.formatting import percent
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
from onecycle.storage.records import Misclassified

_COLUMNS = 8
_SIDE = 1.12  # side of an image in inches
_GAP = 0.14
_EDGE = 0.25
_LEFT, _TOP = 1.15, 0.65  # position of the first image in inches, if rows have names
_CAPTION_SIZE = 9.5


@styled
def incorrect_predictions(misclassified: Misclassified, *, count: int = 40) -> Figure:
    """The first `count` incorrect predictions: each image with its true class, predicted class and probability.

    Raises:
        ValueError: if `count` is less than 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}; it must be at least 1")
    visible = min(count, len(misclassified.labels))
    if not visible:
        return _no_incorrect_predictions()
    caption = 3.3 * LINE_INCHES
    rows = -(-visible // _COLUMNS)
    top = 0.85
    figure = Figure(figsize=(max(_width(min(visible, _COLUMNS)), 5.5), top + rows * (_SIDE + caption + _GAP) + 0.1))
    _write(figure, _EDGE, 0.35, f"Incorrect predictions, most confident first: {visible} shown", TITLE_SIZE, bold=True)
    _write_key(figure)
    for i in range(visible):
        x = _EDGE + i % _COLUMNS * (_SIDE + _GAP)
        y = top + i // _COLUMNS * (_SIDE + caption + _GAP)
        predicted = int(misclassified.predictions[i])
        lines = (
            (misclassified.classes[int(misclassified.labels[i])], BLUE),
            (f"→ {misclassified.classes[predicted]}", VERMILLION),
            (percent(float(misclassified.probabilities[i, predicted]), unit=" %"), GREY),
        )
        _show(figure, x, y, misclassified.images[i])
        for line, (text, color) in enumerate(lines, start=1):
            baseline = y + _SIDE + line * LINE_INCHES
            _write(figure, x, baseline, shorten(text, _SIDE, _CAPTION_SIZE), _CAPTION_SIZE, color)
    return figure


@styled
def augmentations(originals: NDArray[np.uint8], augmented: NDArray[np.uint8]) -> Figure:
    """Original images in the upper row, and their augmented copies below.

    Both arrays are uint8 `[N,H,W,3]`, with N from 1 to 8.

    Raises:
        ValueError: if the arrays have different numbers of images, no images, or more than 8.
    """
    if not 1 <= len(originals) == len(augmented) <= _COLUMNS:
        raise ValueError(
            f"there are {len(originals)} original and {len(augmented)} augmented images; give the same number, 1 to 8"
        )
    return _rows("Training images, and one augmentation of each", {"original": originals, "augmented": augmented})


@styled
def grad_cam_overlays(images: NDArray[np.uint8], heatmaps: NDArray[np.uint8]) -> Figure:
    """Images in the upper row, and the same images covered by their Grad-CAM heatmaps in the lower row.

    `images` are uint8 `[N,H,W,3]`, and `heatmaps` are uint8 `[N,h,w]` as in an `Interpretation`. The first 8 images are
    shown. Heatmaps are for the predicted class, and are vermillion.

    Raises:
        ValueError: if the numbers of images and heatmaps differ, or are 0.
    """
    if not len(images) == len(heatmaps) > 0:
        raise ValueError(
            f"there are {len(images)} images and {len(heatmaps)} heatmaps; the numbers must be equal and not 0"
        )
    return _rows(
        "Incorrect predictions, and what supported them (Grad-CAM)",
        {
            "image": images[:_COLUMNS],
            "heatmap": [overlaid(*pair) for pair in zip(images, heatmaps, strict=True)][:_COLUMNS],
        },
    )


@styled
def near_duplicates(
    pairs: NDArray[np.uint8], similarities: NDArray[np.float32], *, evaluated_on: str = "test"
) -> Figure:
    """Evaluated images in the upper row, and the most similar training image below each. Shows the first 8 pairs.

    `pairs` are uint8 `[N,2,H,W,3]`, and `similarities` are float32 `[N]`, as in an `Interpretation`.

    Raises:
        ValueError: if there are no pairs, or fewer similarities than pairs.
    """
    if not 0 < len(pairs) <= len(similarities):
        raise ValueError(
            f"there are {len(pairs)} pairs and {len(similarities)} similarities; give at least one pair, and a "
            "similarity for each pair"
        )
    pairs = pairs[:_COLUMNS]
    title = f"Most similar: {similarities[0]:.1%} to {similarities[len(pairs) - 1]:.1%}".replace("%", " %")
    return _rows(title, {evaluated_on: pairs[:, 0], "training": pairs[:, 1]})


@styled
def label_issues(
    images: NDArray[np.uint8], labels: NDArray[np.int64], predictions: NDArray[np.int64], classes: tuple[str, ...]
) -> Figure:
    """Images that may have a wrong label, each with its label and the class that the network prefers.

    `images` are uint8 `[N,H,W,3]`. `labels` and `predictions` are int64 `[N]` or longer. The first 8 images are shown.

    Raises:
        ValueError: if there are no images.
    """
    if not len(images):
        raise ValueError("there are no images")
    visible = images[:_COLUMNS]
    figure = _rows("Labels that may be wrong", {"image": visible}, below=2.3 * LINE_INCHES)
    for i in range(len(visible)):
        x = _LEFT + i * (_SIDE + _GAP)
        for line, (text, color) in enumerate(
            ((classes[labels[i]], BLUE), (f"→ {classes[predictions[i]]}", VERMILLION)), start=1
        ):
            y = _TOP + _SIDE + line * LINE_INCHES
            _write(figure, x, y, shorten(text, _SIDE, _CAPTION_SIZE), _CAPTION_SIZE, color)
    return figure


def overlaid(image: NDArray[np.uint8], heatmap: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`image` (uint8 `[H,W,3]`), covered by `heatmap` (uint8 `[h,w]`) in vermillion. Higher values are more opaque."""
    height, width = image.shape[:2]
    smooth = np.asarray(Image.fromarray(heatmap).resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)
    share = 0.7 * smooth[..., None] / 255
    mixed: NDArray[np.uint8] = (
        ((1 - share) * image + share * 255 * np.array(to_rgb(VERMILLION))).round().astype(np.uint8)
    )
    return mixed


def _rows(
    title: str, rows: Mapping[str, Sequence[NDArray[np.uint8]] | NDArray[np.uint8]], *, below: float = 0
) -> Figure:
    """A figure with one row of images for each name in `rows`. `below` is extra space in inches under the last row."""
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


def _no_incorrect_predictions() -> Figure:
    figure = Figure(figsize=(_width(_COLUMNS), 1.1))
    _canvas(figure)  # notebooks do not show figures without axes
    _write(figure, _EDGE, 0.35, "Incorrect predictions: none", TITLE_SIZE, bold=True)
    _write(figure, _EDGE, 0.7, "Every evaluated image was classified correctly.", FONT_SIZE, GREY)
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
    """Write `text` with its baseline at the point (`x`, `y`), in inches from the upper left corner of the figure."""
    width, height = figure.get_size_inches()
    weight = "bold" if bold else "normal"
    figure.text(x / width, 1 - y / height, text, fontsize=size, color=color, weight=weight, ha=align)


def _show(figure: Figure, x: float, y: float, image: NDArray[np.uint8]) -> None:
    """Show a uint8 `image` `[S,S,3]`, `x` inches from the left edge and `y` inches from the top edge of the figure."""
    corners = (x, x + _SIDE, y + _SIDE, y)  # left, right, bottom, top
    _canvas(figure).imshow(image, interpolation="nearest", extent=corners, aspect="auto")


def _canvas(figure: Figure) -> Axes:
    """Axes in inches that cover the whole figure. All images share these axes, because creating axes is slow."""
    if figure.axes:
        return figure.axes[0]
    width, height = figure.get_size_inches()
    canvas = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    canvas.set_axis_off()
    return canvas
