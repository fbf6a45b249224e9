"""The reliability diagram: accuracy against confidence."""

import numpy as np
from matplotlib.figure import Figure

from onecycle.core.metrics import Calibration
from onecycle.report.visualizations.style import BLUE, GREY, SMALL, VERMILLION, chart, styled

_NUMBER_HEIGHT = 10  # height of a number above a bar, including the space around it, in percentage points


@styled
def reliability_diagram(found: Calibration, before: Calibration | None = None) -> Figure:
    """A bar chart of the accuracy in each confidence bin, with the diagonal of perfect calibration.

    A line marks the mean confidence of each bin. A number above each bar is the number of images in the bin, such as
    950, 1.2k or 35k. `before` is the calibration before temperature scaling. Dots show its accuracies and mean
    confidences.
    """
    figure, axes = chart(top=0.75)
    bins = len(found.counts)
    edges = 100 * np.arange(bins) / bins
    filled = found.counts > 0
    axes.bar(
        edges[filled] + 50 / bins,
        100 * found.accuracies[filled],
        width=100 / bins * 0.92,
        color=BLUE,
        label="accuracy" if before else "accuracy of these images",
    )
    for left, confidence in zip(edges[filled], 100 * found.confidences[filled], strict=True):
        axes.plot([left, left + 100 / bins], [confidence] * 2, color=VERMILLION, linewidth=2.5)
    axes.plot([], [], color=VERMILLION, linewidth=2.5, label="mean confidence" if before else "their mean confidence")
    axes.plot([0, 100], [0, 100], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    dots = np.full(bins, np.nan)
    if before:
        dots = 100 * before.accuracies
        axes.plot(
            100 * before.confidences,
            dots,
            "o",
            color=GREY,
            markerfacecolor="#FFFFFF",
            markersize=5,
            clip_on=False,
            label="before temperature scaling",
        )
    for left, accuracy, count, dot in zip(
        edges[filled], 100 * found.accuracies[filled], found.counts[filled], dots[filled], strict=True
    ):
        top = max(accuracy, left + 100 / bins)
        if top - 2 < dot < top + _NUMBER_HEIGHT:
            top = dot + 1
        axes.annotate(
            _in_short(int(count)),
            (left + 50 / bins, top),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            color=GREY,
            fontsize=SMALL - 1,
        )
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 108)
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlabel("confidence: the probability of the predicted class (%)")
    axes.set_ylabel("accuracy (%)")
    change = f"{100 * before.error:.1f} → " if before else ""
    axes.set_title(f"Calibration: expected calibration error {change}{100 * found.error:.1f} points", pad=26)
    # The legend is above the axes, because bars can be anywhere inside them.
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3,
        columnspacing=1.2,
        handlelength=1.5,
        borderaxespad=0.3,
        borderpad=0,
        labelcolor=GREY,
    )
    return figure


def _in_short(count: int) -> str:
    """`count` in at most four characters, because a longer text would be wider than a bar."""
    for size, unit in ((10**6, "M"), (10**3, "k")):
        if count >= 0.9995 * size:
            return f"{count / size:.1f}{unit}" if count < 9.95 * size else f"{count / size:.0f}{unit}"
    return str(count)
