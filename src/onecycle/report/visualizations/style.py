"""One look for every picture: palette, sizes, text that fits, and files that are equal for equal records."""

import io
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import ParamSpec

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from onecycle.core.files import replacing

# Okabe & Ito's palette, "Color Universal Design": told apart with every kind of colour vision.
BLUE, VERMILLION = "#0072B2", "#D55E00"
PALETTE = (BLUE, VERMILLION, "#00785A", "#9C3F7D", "#7D5A00", "#51606E")  # lines and their names, on white
INK, GREY, LIGHT = "#222222", "#666666", "#E4E4E4"

FONT_SIZE, SMALL, TITLE_SIZE = 10.0, 9.0, 12.0
LINE_INCHES = 0.18  # the height of a line of text at FONT_SIZE
DPI = 150  # 8 inches are 1200 pixels: sharp where a README shows 900

_FONT = "DejaVu Sans"
_STYLE = {
    "figure.dpi": DPI,
    "font.family": _FONT,  # comes with matplotlib, so a picture is the same on every machine
    "font.size": FONT_SIZE,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$5"
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.titlesize": TITLE_SIZE,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": LIGHT,
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
}


_P = ParamSpec("_P")


def styled(draw: Callable[_P, Figure]) -> Callable[_P, Figure]:
    """Draws in this project's style whatever the user's settings are, and leaves those as they were."""

    @wraps(draw)
    def drawn(*args: _P.args, **kwargs: _P.kwargs) -> Figure:
        with style.context(_STYLE, after_reset=True):
            return draw(*args, **kwargs)

    return drawn


def save_png(figure: Figure, path: Path) -> None:
    """Writes a picture whole or not at all. Equal figures give equal files: no date and no version is written."""
    with replacing(path) as temporary, style.context(_STYLE, after_reset=True):
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})


def to_svg(figure: Figure) -> str:
    """A figure as SVG whose text stays text. Equal figures give equal texts."""
    file = io.StringIO()
    with style.context({**_STYLE, "svg.fonttype": "none", "svg.hashsalt": "onecycle"}, after_reset=True):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def axes_inside(figure: Figure, *, left: float, right: float, top: float, bottom: float) -> Axes:
    """Axes that fill the figure but for these margins, in inches."""
    width, height = figure.get_size_inches()
    return figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    )


def chart(*, right: float = 0.3, top: float = 0.5) -> tuple[Figure, Axes]:
    """A figure of 8 by 4.5 inches with axes for lines. `right` and `top` are margins in inches."""
    figure = Figure(figsize=(8, 4.5))
    axes = axes_inside(figure, left=0.9, right=right, top=top, bottom=0.6)
    axes.grid(axis="y")
    return figure, axes


def show_epochs(axes: Axes, first: float, last: float) -> None:
    """An epoch axis from `first` to `last`, with both ends among its round ticks."""
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10**6) if (last - first) / s <= 8)
    between = [float(e) for e in range(0, int(last) + 1, step) if first + step / 2 < e < last - step / 2]
    axes.set_xticks([first, *between, last] if last > first else [first])
    axes.set_xlim((first, last) if last > first else (first - 0.5, last + 0.5))
    axes.xaxis.set_major_formatter(lambda epoch, _: f"{round(epoch, 2):g}")
    axes.set_xlabel("epoch")


def axes_inches(axes: Axes) -> tuple[float, float]:
    """Width and height of `axes` in inches."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    width, height = figure.get_size_inches()
    box = axes.get_position()
    return float(box.width * width), float(box.height * height)


def text_inches(text: str, size: float = FONT_SIZE, *, bold: bool = False) -> float:
    """How wide one line of `text` is, in inches."""
    font = FontProperties(family=_FONT, weight="bold" if bold else "normal", size=size)
    points = text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]
    return float(points) / 72


def shorten(text: str, inches: float, size: float = FONT_SIZE) -> str:
    """`text` on one line of at most `inches`: an ellipsis takes the place of its middle, since names often end in what
    tells them apart."""
    text = " ".join(text.split())
    shown, kept = text, len(text)
    while kept > 2 and text_inches(shown, size) > inches:
        kept -= 1
        shown = text[: (kept + 1) // 2].rstrip() + "…" + text[-(kept // 2) :].lstrip()
    return shown


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """`positions`, moved as little as need be so that any two are `gap` or more apart; their order stays."""
    groups: list[list[int]] = []
    centres: list[float] = []
    for i in np.argsort(positions, kind="stable").tolist():
        groups.append([i])
        centres.append(float(positions[i]))
        while len(groups) > 1 and centres[-1] - centres[-2] < gap * (len(groups[-1]) + len(groups[-2])) / 2:
            upper, lower = groups.pop(), groups.pop()
            del centres[-2:]
            groups.append(lower + upper)
            centres.append(float(np.mean([positions[j] for j in groups[-1]])))
    moved = list(positions)
    for group, centre in zip(groups, centres, strict=True):
        for place, i in enumerate(group):
            moved[i] = centre + gap * (place - (len(group) - 1) / 2)
    return moved
