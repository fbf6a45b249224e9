"""Accuracy and loss by epoch."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from onecycle.core import formatting
from onecycle.report.visualizations.style import (
    BLUE,
    GREY,
    INK,
    LINE_INCHES,
    PALETTE,
    SMALL,
    VERMILLION,
    axes_inches,
    chart,
    shorten,
    show_epochs,
    spread,
    styled,
    text_inches,
)
from onecycle.storage.records import History

_NAME_INCHES = 2.0  # maximum width of a run's name
_BEST_GAP = 0.07  # inches between the line of the best epoch and its label


class _Line(NamedTuple):
    values: NDArray[np.float64]  # [E], one per epoch
    label: str  # text at the right end of the line
    color: str


@styled
def accuracy_curves(
    history: History, *, evaluated_on: str = "test", reference: tuple[str, float] | None = None
) -> Figure:
    """Training and evaluation accuracy by epoch, in percent.

    Labels at the ends of the lines show the last values. The best epoch is marked. If the best epoch is better than the
    last, a note says that the best epoch is not the result. `evaluated_on` is the name of the evaluated split.
    `reference` is the name and the value (a fraction) of an accuracy that is drawn as a horizontal line.

    Raises:
        ValueError: if `history` is empty.
    """
    _check(history)
    train = 100 * np.array([record.train_accuracy for record in history])
    evaluated = 100 * np.array([record.eval_accuracy for record in history])
    level = None if reference is None else 100 * reference[1]
    figure, axes = _draw(
        history,
        _Line(train, f"train {train[-1]:.1f} %", VERMILLION),
        _Line(evaluated, f"{evaluated_on} {evaluated[-1]:.1f} %", BLUE),
        limits=_limits(np.array([*train, *evaluated, *([] if level is None else [level])]), smallest=10, top=101),
        highest_tick=100,
    )
    axes.set_title(f"Accuracy by epoch: {evaluated[-1]:.1f} % at the last ({evaluated_on})")
    axes.set_ylabel("accuracy (%)")
    if reference is not None and level is not None:
        axes.axhline(level, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            f"{reference[0]}: {level:.4g} %",
            (0, level),
            xycoords=axes.get_yaxis_transform(),
            xytext=(4, 3),
            textcoords="offset points",
            color=GREY,
            fontsize=SMALL,
        )
    _mark_best(axes, history, evaluated)
    return figure


@styled
def loss_curves(
    history: History, *, evaluated_on: str = "test", label_smoothing: float = 0.0, class_weights: bool = False
) -> Figure:
    """Training and evaluation loss (means over samples) by epoch. `evaluated_on` is the name of the evaluated split.

    With `label_smoothing` or `class_weights`, the criterion of training differs from that of evaluation. The plot says
    so.

    Raises:
        ValueError: if `history` is empty.
    """
    _check(history)
    train = np.array([record.train_loss for record in history])
    evaluated = np.array([record.eval_loss for record in history])
    figure, axes = _draw(
        history,
        _Line(train, f"train {formatting.loss(train[-1])}", VERMILLION),
        _Line(evaluated, f"{evaluated_on} {formatting.loss(evaluated[-1])}", BLUE),
        limits=_limits(np.array([*train, *evaluated]), smallest=0.1, top=np.inf),
    )
    smoothed = f"labels smoothed by {label_smoothing:g}" if label_smoothing else None
    criterion = " and ".join(filter(None, [smoothed, "weighted classes" if class_weights else None]))
    title = f"Loss by epoch: {formatting.loss(evaluated[-1])} at the last ({evaluated_on})"
    axes.set_title(title, pad=20 if criterion else None)
    axes.set_ylabel("loss (mean over samples)")
    if criterion:
        axes.annotate(
            f"Not comparable: training has {criterion}.",
            (0, 1),
            xycoords="axes fraction",
            xytext=(0, 6),
            textcoords="offset points",
            color=GREY,
            fontsize=SMALL,
        )
    return figure


@styled
def compared_accuracies(histories: Mapping[str, History], *, evaluated_on: str = "test") -> Figure:
    """The evaluation accuracy of several runs by epoch, in percent. Each line is labeled with the name of its run.

    Raises:
        ValueError: if there are no runs or more than 6, or a run has no epoch.
    """
    if not 1 <= len(histories) <= len(PALETTE):
        raise ValueError(f"there are {len(histories)} runs; there must be from 1 to {len(PALETTE)}")
    for history in histories.values():
        _check(history)
    lines = [
        _Line(100 * np.array([record.eval_accuracy for record in history]), shorten(name, _NAME_INCHES), color)
        for (name, history), color in zip(histories.items(), PALETTE, strict=False)
    ]
    longest = max(histories.values(), key=len)
    values = np.concatenate([line.values for line in lines])
    figure, axes = _draw(longest, *lines, limits=_limits(values, smallest=10, top=101), highest_tick=100)
    axes.set_title(f"Accuracy by epoch ({evaluated_on})")
    axes.set_ylabel("accuracy (%)")
    return figure


def _check(history: History) -> None:
    if not history:
        raise ValueError("the history is empty; there must be at least one epoch to draw")


def _limits(values: NDArray[np.float64], *, smallest: float, top: float) -> tuple[float, float]:
    """The limits of the vertical axis: the range of the finite `values` with a margin, cut off at `top`."""
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, smallest)
    margin = 0.08 * max(high - low, smallest)
    # Leave more space below, for the label of the best epoch.
    return low - 1.5 * margin, min(high + margin, top)


def _draw(
    history: History, *lines: _Line, limits: tuple[float, float], highest_tick: float = np.inf
) -> tuple[Figure, Axes]:
    widest = max(text_inches(line.label, bold=True) for line in lines)
    figure, axes = chart(right=widest + 0.25)
    epochs = [record.epoch for record in history]
    show_epochs(axes, epochs[0], epochs[-1])
    axes.set_ylim(limits)
    # The margins may reach values that cannot occur, such as more than 100 %.
    axes.set_yticks([tick for tick in axes.get_yticks() if max(limits[0], 0) <= tick <= min(limits[1], highest_tick)])
    axes.set_ylim(limits)
    for line in lines:
        along = epochs[: len(line.values)]
        axes.plot(along, line.values, color=line.color, linewidth=2, clip_on=False)
        axes.plot(along[-1:], line.values[-1:], "o", color=line.color, markersize=5, clip_on=False)
    # An infinite or NaN loss has no place on the axis, so its label is at the top.
    ends = [float(line.values[-1]) if np.isfinite(line.values[-1]) else limits[1] for line in lines]
    unit = (limits[1] - limits[0]) / axes_inches(axes)[1]
    for line, y in zip(lines, spread(ends, LINE_INCHES * unit), strict=True):
        axes.annotate(
            line.label,
            (1, y),
            xycoords=axes.get_yaxis_transform(),
            xytext=(10, 0),
            textcoords="offset points",
            va="center",
            color=line.color,
            weight="bold",
            annotation_clip=False,
        )
    return figure, axes


def _mark_best(axes: Axes, history: History, evaluated: NDArray[np.float64]) -> None:
    best = int(np.argmax(evaluated))
    epoch, value = history[best].epoch, evaluated[best]
    bottom = axes.get_ylim()[0]
    axes.plot([epoch, epoch], [bottom, value], color=GREY, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
    axes.plot([epoch], [value], "o", markersize=9, markerfacecolor="none", markeredgecolor=INK, clip_on=False)
    if best == len(history) - 1:
        text = f"best epoch: {epoch}, the last"
    else:
        text = f"best epoch: {epoch}, {value:.1f} %{'' if value == evaluated[-1] else ' (not the result)'}"
    (first, last), width = axes.get_xlim(), axes_inches(axes)[0]
    begins = (epoch - first) / (last - first) * width + _BEST_GAP
    needed = text_inches(text, SMALL)
    # The label is to the right of the line. If it does not fit there, it is to the left. If it fits on neither side, it
    # is across the line.
    if begins + needed > width:
        begins = max(begins - 2 * _BEST_GAP - needed, _BEST_GAP)
    axes.annotate(
        text,
        (begins / width, 0),
        xycoords="axes fraction",
        xytext=(0, 6),
        textcoords="offset points",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        color=GREY,
        fontsize=SMALL,
    )
