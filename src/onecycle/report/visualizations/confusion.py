"""The confusion matrix."""

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from onecycle.core.formatting import percent
from onecycle.core.metrics import confusion_counts
from onecycle.report.visualizations.style import (
    GREY,
    INK,
    LINE_INCHES,
    SMALL,
    TITLE_SIZE,
    axes_inside,
    shorten,
    styled,
    text_inches,
)

_MOST_WITH_COUNTS = 20
_MOST_NAMES = 100  # with more classes, only every second, third, … class is labeled
_NAME_INCHES = 1.4
_SMALLEST_WIDTH = 6.5  # inches; the title does not fit into a narrower figure


@styled
def confusion_matrix(labels: NDArray[np.int64], predictions: NDArray[np.int64], classes: tuple[str, ...]) -> Figure:
    """A plot of how often each true class (a row) was predicted as each class (a column).

    The color of a matrix cell shows its share of the row. With up to 20 classes, each cell also shows its count.
    `labels` and `predictions` are int64 `[N]`, indices into `classes`.

    Raises:
        ValueError: if the lengths differ, or a value is not an index into `classes`.
    """
    counts = confusion_counts(labels, predictions, len(classes))  # [C,C]
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    n = len(classes)
    with_counts = n <= _MOST_WITH_COUNTS
    cell = float(np.clip(5.6 / n, 0.42 if with_counts else 0.08, 1.4))
    size = min(SMALL, 72 * 0.85 * cell)
    every = -(-n // _MOST_NAMES)
    names = [shorten(name, _NAME_INCHES, size) for name in classes[::every]]
    longest = max(text_inches(name, size) for name in names)
    upright = longest > 0.9 * cell

    left, right, top = longest + 0.6, 1.1, 0.85
    bottom = 0.5 + (longest if upright else LINE_INCHES)
    right += max(_SMALLEST_WIDTH - left - n * cell - right, 0)
    figure = Figure(figsize=(left + n * cell + right, top + n * cell + bottom))
    axes = axes_inside(figure, left=left, right=right, top=top, bottom=bottom)
    # A square-root color scale keeps rare confusions visible beside a diagonal near 100 %.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 100), aspect="auto", interpolation="nearest")
    axes.set_xticks(range(0, n, every), names, rotation=90 if upright else 0, fontsize=size)
    axes.set_yticks(range(0, n, every), names, fontsize=size)
    axes.tick_params(length=0, labelcolor=INK)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if with_counts:
        for row, column in np.ndindex(n, n):
            color = "white" if shares[row, column] > 35 else INK if counts[row, column] else "#AAAAAA"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=SMALL)

    width, height = figure.get_size_inches()
    bar = figure.add_axes(((left + n * cell + 0.2) / width, bottom / height, 0.16 / width, n * cell / height))
    figure.colorbar(image, cax=bar, ticks=[0, 1, 5, 20, 50, 100], format="%d %%", label="share of the true class")
    bar.tick_params(length=0)
    bar.spines[:].set_visible(False)
    _write_title(figure, counts, classes)
    return figure


def _write_title(figure: Figure, counts: NDArray[np.int64], classes: tuple[str, ...]) -> None:
    total, correct = int(counts.sum()), int(np.trace(counts))
    title = f"Confusion matrix: {correct:,} of {total:,} correct ({percent(correct / max(total, 1), 1, unit=' %')})"
    errors = counts - np.diag(np.diag(counts))
    row, column = np.unravel_index(np.argmax(errors), errors.shape)
    times = int(errors[row, column])
    if times:
        confusion = f"{shorten(classes[row], _NAME_INCHES)} predicted as {shorten(classes[column], _NAME_INCHES)}"
        subtitle = f"most frequent error: {confusion}, {times:,} {'time' if times == 1 else 'times'}"
    else:
        subtitle = "no errors"
    width, height = figure.get_size_inches()
    figure.text(0.2 / width, 1 - 0.32 / height, title, fontsize=TITLE_SIZE, weight="bold")
    figure.text(0.2 / width, 1 - 0.58 / height, subtitle, color=GREY)
