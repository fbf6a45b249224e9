"""Plots of the schedule and of the LR finder's sweep."""

import math
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from onecycle.report.visualizations.style import (
    BLUE,
    GREY,
    INK,
    LINE_INCHES,
    SMALL,
    VERMILLION,
    axes_inches,
    chart,
    show_epochs,
    styled,
    text_inches,
)
from onecycle.storage.records import LRCurve
from onecycle.train.scheduler import one_cycle

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_ENDINGS = {"completed": "sweep completed", "diverged": "sweep stopped: the loss diverged"}


# A run of at least `2 * _MOST_POINTS` steps is drawn without some of its steps. The curve looks the same, because it
# is straight before and after its peak.
_MOST_POINTS = 10_000


class _Mark(NamedTuple):
    text: str
    lr: float


@styled
def learning_rate_curve(
    *, lr_min: float, lr_max: float, total_steps: int, peak_step: int, steps_per_epoch: int
) -> Figure:
    """The learning rate at every step of the cycle, against epochs completed. The peak and the end are labeled.

    Raises:
        ValueError: if `peak_step` is not from 0 to `total_steps - 2`, or `steps_per_epoch` is less than 1.
    """
    if steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch is {steps_per_epoch}; it must be at least 1")
    every = max(1, total_steps // _MOST_POINTS)
    steps = sorted({*range(0, total_steps, every), peak_step, total_steps - 1})
    lrs = [
        one_cycle(step, total_steps=total_steps, peak_step=peak_step, lr_min=lr_min, lr_max=lr_max) for step in steps
    ]
    epochs = [(step + 1) / steps_per_epoch for step in steps]
    peak = (peak_step + 1) / steps_per_epoch
    ends_at = f"LR min {lrs[-1]:.3g}"
    figure, axes = chart(right=text_inches(ends_at, bold=True) + 0.25)
    show_epochs(axes, 0, epochs[-1])
    axes.set_ylim(0, 1.15 * lr_max)
    axes.plot([peak, peak], [0, lr_max], color=GREY, linewidth=1, linestyle=(0, (1, 2)))
    axes.plot(epochs, lrs, color=BLUE, linewidth=2, clip_on=False)
    axes.plot([peak], [lr_max], "o", color=VERMILLION, markersize=8)
    when = f"at the end of epoch {peak:g}" if peak == int(peak) else f"after {peak:.2f} epochs"
    shape = f"{lr_min:.3g} to {lr_max:.3g} and back"
    if peak_step == 0:
        when, shape = "at the first step", f"straight from {lr_max:.3g} to {lr_min:.3g}"
    on_the_left = peak > epochs[-1] / 2
    axes.annotate(
        f"LR max {lr_max:.3g} {when}",
        (peak, lr_max),
        xytext=(-8 if on_the_left else 8, 8),
        textcoords="offset points",
        ha="right" if on_the_left else "left",
        color=VERMILLION,
        weight="bold",
    )
    axes.annotate(
        ends_at,
        (epochs[-1], lrs[-1]),
        xytext=(10, 0),
        textcoords="offset points",
        va="center",
        color=BLUE,
        weight="bold",
        annotation_clip=False,
    )
    axes.set_title(f"Learning rate: {shape}")
    axes.set_xlabel("epochs completed")
    axes.set_ylabel("learning rate")
    return figure


@styled
def lr_finder_curve(curve: LRCurve) -> Figure:
    """The LR finder's sweep: loss against learning rate, with LR min, LR max and the other suggestions.

    The vertical axis covers the losses from the first step to the step with the minimum. If the loss diverges
    afterwards, the curve leaves the plot at the top.
    """
    lrs, raw, smoothed = (np.array(values, dtype=np.float64) for values in (curve.lrs, curve.losses, curve.smoothed))
    pair = [_Mark(f"LR min {curve.lr_min:.3g}", curve.lr_min), _Mark(f"LR max {curve.lr_max:.3g}", curve.lr_max)]
    others = [_Mark(f"{name} {lr:.3g}", lr) for name, lr in sorted(curve.suggestions.items(), key=lambda it: it[1])]
    low, high = _loss_range(raw, smoothed)

    figure, axes = chart(top=0.85)
    axes.set_xscale("log")
    axes.set_xlim(_lr_range(lrs, [*pair, *others], axes_inches(axes)[0]))
    # The label of each suggestion, except LR min and LR max, gets its own row below the curve.
    strip = LINE_INCHES * (len(others) + 1)
    row = LINE_INCHES * (high - low) / (axes_inches(axes)[1] - strip)
    axes.set_ylim(low, high)
    axes.set_yticks([loss for loss in axes.get_yticks() if low <= loss <= high])
    axes.set_ylim(low - row * (len(others) + 1), high)

    axes.axvspan(curve.lr_min, curve.lr_max, color=BLUE, alpha=0.08, linewidth=0)
    axes.plot(lrs, raw, color=BLUE, alpha=0.35, linewidth=1, label="each step")
    axes.plot(lrs, smoothed, color=BLUE, linewidth=2, label="smoothed")
    _mark_pair(axes, pair, _heights(pair, lrs, smoothed, high), high)
    _mark_others(axes, others, _heights(others, lrs, smoothed, high), row)

    _name_decades(axes)
    axes.set_title(f"LR finder: {curve.lr_min:.3g} to {curve.lr_max:.3g}", pad=30)
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1 + 30 / 72 / axes_inches(axes)[1]),
        ncols=2,
        borderpad=0,
        borderaxespad=0,
        handlelength=1.2,
        columnspacing=1,
        labelcolor=GREY,
    )
    axes.set_xlabel(f"learning rate, log scale ({_ENDINGS.get(curve.stopped, f'sweep stopped: {curve.stopped}')})")
    axes.set_ylabel("training loss")
    return figure


def _loss_range(raw: NDArray[np.float64], smoothed: NDArray[np.float64]) -> tuple[float, float]:
    finite = np.isfinite(raw) & np.isfinite(smoothed)
    raw, smoothed = raw[finite], smoothed[finite]
    if not smoothed.size:
        return 0.0, 1.0
    until = int(np.argmin(smoothed)) + 1
    low = min(float(smoothed.min()), float(np.percentile(raw[:until], 2)))
    high = max(float(smoothed[:until].max()), float(np.percentile(raw[:until], 98)))
    # If the loss only rises, its minimum is at the first step. The plot then shows the start of the rise.
    span = max(high - low, 0.05 * abs(high), 1e-6)
    return low - 0.05 * span, high + 0.25 * span


def _lr_range(lrs: NDArray[np.float64], marks: list[_Mark], inches: float) -> tuple[float, float]:
    """The limits of a learning-rate axis `inches` wide, with space for a label to the right of every mark."""
    every = [*lrs, *(mark.lr for mark in marks)]
    first, last = float(np.log(min(every))), float(np.log(max(every)))
    for mark in marks:
        share = (text_inches(mark.text, bold=True) + 0.1) / inches
        last = max(last, (float(np.log(mark.lr)) - first * share) / (1 - share))
    return float(np.exp(first)), float(np.exp(last))


def _name_decades(axes: Axes) -> None:
    """Put ticks at the powers of ten of a log axis, or at its ends if it has fewer than two powers of ten."""
    first, last = (float(lr) for lr in np.log10(axes.get_xlim()))
    decades = range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1)
    if len(decades) < 2:
        axes.set_xticks([10**first, 10**last], [f"{10**first:.3g}", f"{10**last:.3g}"])
    else:
        axes.set_xticks([10.0**decade for decade in decades], ["10" + str(d).translate(_SUPERSCRIPTS) for d in decades])
    axes.xaxis.set_minor_formatter(NullFormatter())


def _heights(marks: list[_Mark], lrs: NDArray[np.float64], smoothed: NDArray[np.float64], high: float) -> list[float]:
    """The smoothed loss at each mark, interpolated and limited to the upper edge of the plot."""
    finite = np.isfinite(smoothed)
    if not finite.any():
        return [high] * len(marks)
    at = np.log([mark.lr for mark in marks])
    return [min(float(loss), high) for loss in np.interp(at, np.log(lrs[finite]), smoothed[finite])]


def _mark_pair(axes: Axes, pair: list[_Mark], losses: list[float], high: float) -> None:
    """Mark LR min and LR max with a line from the curve up to a label above the axes."""
    width = axes_inches(axes)[0]
    gap = 0.04 / width
    first, last = np.log(axes.get_xlim())
    places = [(float(np.log(mark.lr)) - first) / (last - first) for mark in pair]
    # The label of LR min ends where the label of LR max starts, or further left. Near the left edge, both labels move
    # to the right.
    ends = max(places[0], text_inches(pair[0].text, bold=True) / width + gap)
    begins = max(places[1], ends)
    for mark, loss, x, align in zip(pair, losses, (ends - gap, begins + gap), ("right", "left"), strict=True):
        axes.plot([mark.lr, mark.lr], [loss, high], color=VERMILLION, linewidth=1.5)
        axes.plot([mark.lr], [loss], "o", color=VERMILLION, markersize=9, clip_on=False, zorder=4)
        axes.text(x, 1.02, mark.text, transform=axes.transAxes, ha=align, va="bottom", color=VERMILLION, weight="bold")


def _mark_others(axes: Axes, marks: list[_Mark], losses: list[float], row: float) -> None:
    """Mark each suggestion other than LR min and LR max with a line from the curve down to a label in its own row.

    `marks` are in ascending order. The lowest rate has the lowest row, so that no line crosses a label.
    """
    for place, (mark, loss) in enumerate(zip(marks, losses, strict=True)):
        y = axes.get_ylim()[0] + row * (place + 0.6)
        axes.plot([mark.lr, mark.lr], [y, loss], color=GREY, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
        axes.plot([mark.lr], [loss], "o", markersize=5, color="white", markeredgecolor=INK, clip_on=False, zorder=5)
        axes.annotate(
            mark.text,
            (mark.lr, y),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=INK,
            fontsize=SMALL,
        )
