"""The common style of all plots: palette, sizes and text fitting. The same data always gives the same file."""

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import ParamSpec

import numpy as np
from matplotlib import rcParams, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from matplotlib.ticker import MaxNLocator

from onecycle.core.files import replacing
from onecycle.report.visualizations.fonts import FONT, fallbacks

# These two colors are from Okabe & Ito, "Color Universal Design". People with any kind of color vision can tell them
# apart.
BLUE, VERMILLION = "#0072B2", "#D55E00"
PALETTE = (BLUE, VERMILLION, "#00785A", "#9C3F7D", "#7D5A00", "#51606E")  # for lines and labels on a white background
INK, GREY, LIGHT = "#222222", "#666666", "#E4E4E4"

FONT_SIZE, SMALL, TITLE_SIZE = 10.0, 9.0, 11.0
LINE_INCHES = 0.18  # the height of a line of text at FONT_SIZE
DPI = 150  # makes a chart 900 pixels wide; a README shows it at this width

_STYLE = {
    "figure.dpi": DPI,
    "font.family": FONT,
    "font.size": FONT_SIZE,
    "text.color": INK,
    "text.parse_math": False,  # a class name may contain a $
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
    """Decorator: draw in this style. If the font lacks letters of the plot, draw it again with fonts that have them."""

    @wraps(draw)
    def drawn(*args: _P.args, **kwargs: _P.kwargs) -> Figure:
        with _in_style():
            figure = draw(*args, **kwargs)
            letters = frozenset("".join(text.get_text() for text in figure.findobj(Text)))
        if families := fallbacks(letters):
            with _in_style({"font.family": [FONT, *families]}):
                figure = draw(*args, **kwargs)
        return figure

    return drawn


@contextmanager
def _in_style(changes: Mapping[str, object] | None = None) -> Iterator[None]:
    """Inside the block, matplotlib has this style with `changes`. The user's settings are left unchanged."""
    log = logging.getLogger("matplotlib.font_manager")
    level = log.level
    with style.context({**_STYLE, **(changes or {})}, after_reset=True), warnings.catch_warnings():
        # Hide both warnings. `fallbacks` already names missing letters. Matplotlib before 3.11 warns about scripts that
        # it draws without joining the letters.
        warnings.filterwarnings("ignore", "Glyph .* missing from font|Matplotlib currently does not support")
        log.setLevel(logging.ERROR)  # hide the note that a fallback font has no bold style; its normal style will do
        try:
            yield
        finally:
            log.setLevel(level)


def save_png(figure: Figure, path: Path) -> None:
    """Save a figure. Equal figures give equal files: no date or version is written."""
    with replacing(path) as temporary, _in_style():
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})


def to_svg(figure: Figure) -> str:
    """A figure as SVG. Its text stays text instead of becoming paths. Equal figures give equal SVG."""
    file = io.StringIO()
    with _in_style({"svg.fonttype": "none", "svg.hashsalt": "onecycle"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def axes_inside(figure: Figure, *, left: float, right: float, top: float, bottom: float) -> Axes:
    """Axes that fill the figure except for margins in inches."""
    width, height = figure.get_size_inches()
    return figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    )


def chart(*, right: float = 0.3, top: float = 0.5) -> tuple[Figure, Axes]:
    """A figure of 6 by 4 inches with axes for a line plot. `right` and `top` are margins in inches.

    The figure is narrow, so that its text stays readable when it fills the width of a phone's screen.
    """
    figure = Figure(figsize=(6, 4))
    axes = axes_inside(figure, left=0.8, right=right, top=top, bottom=0.6)
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))  # steps of 2.5 would need one more digit
    axes.grid(axis="y")
    return figure, axes


def show_epochs(axes: Axes, first: float, last: float) -> None:
    """Make the horizontal axis show epochs from `first` to `last`, with ticks at round numbers and at both ends."""
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
    """The width of one line of `text` in inches."""
    font = FontProperties(family=rcParams["font.family"], weight="bold" if bold else "normal", size=size)
    points = text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]
    return float(points) / 72


def shorten(text: str, inches: float, size: float = FONT_SIZE) -> str:
    """`text` on one line that is at most `inches` wide.

    An ellipsis replaces the middle of a text that is too long, because names often differ at the end.
    """
    text = " ".join(text.split())
    shortened, kept = text, len(text)
    while kept > 2 and text_inches(shortened, size) > inches:
        kept -= 1
        shortened = text[: (kept + 1) // 2].rstrip() + "…" + text[-(kept // 2) :].lstrip()
    return shortened


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """`positions`, moved as little as possible so that any two are at least `gap` apart. Keeps their order."""
    groups: list[list[int]] = []
    centers: list[float] = []
    for i in np.argsort(positions, kind="stable").tolist():
        groups.append([i])
        centers.append(float(positions[i]))
        while len(groups) > 1 and centers[-1] - centers[-2] < gap * (len(groups[-1]) + len(groups[-2])) / 2:
            upper, lower = groups.pop(), groups.pop()
            del centers[-2:]
            groups.append(lower + upper)
            centers.append(float(np.mean([positions[j] for j in groups[-1]])))
    moved = list(positions)
    for group, center in zip(groups, centers, strict=True):
        for place, i in enumerate(group):
            moved[i] = center + gap * (place - (len(group) - 1) / 2)
    return moved
