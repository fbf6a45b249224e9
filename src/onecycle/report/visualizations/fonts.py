"""Find installed fonts for letters that matplotlib's own font lacks, such as Chinese, Devanagari and emoji."""

from collections.abc import Set
from functools import cache

from matplotlib.font_manager import fontManager
from matplotlib.ft2font import FT2Font
from rich.console import Console

FONT = "DejaVu Sans"  # this font comes with matplotlib, so most plots are the same on every machine

_NO_CHARACTER = 0x10FFFF
_announced: set[str] = set()  # letters for which `fallbacks` has already printed a line on stderr


@cache
def fallbacks(letters: frozenset[str]) -> tuple[str, ...]:
    """A few families of installed fonts for the `letters` that `FONT` lacks.

    A letter that is in no installed font appears as a box in plots. If a call finds such letters that
    no earlier call found, it names at most 20 of them in one line on stderr.
    """
    own = FT2Font(fontManager.findfont(FONT))
    missing = {letter for letter in letters if letter.isprintable() and not own.get_char_index(ord(letter))}
    families: list[str] = []
    if missing:
        paths = {font.name: font.fname for font in fontManager.ttflist}
        # `max` takes the first of several equally good fonts. Sorting puts fonts without serifs first, and makes the
        # choice the same every time.
        drawn = {name: _drawn_by(paths[name], missing) for name in sorted(paths, key=lambda n: ("Sans" not in n, n))}
        while missing & drawn[best := max(drawn, key=lambda name: len(drawn[name] & missing))]:
            families.append(best)
            missing -= drawn[best]
    if new := sorted(missing - _announced):
        _announced.update(new)
        Console(stderr=True).print(
            f"plots show boxes for {''.join(new[:20])}{'…' if len(new) > 20 else ''}, because no installed font has "
            "these letters; install one that has them, for example a Noto font",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    return tuple(families)


def _drawn_by(path: str, letters: Set[str]) -> set[str]:
    """The subset of `letters` that the font at `path` has as outlines. Matplotlib cannot draw bitmap letters."""
    try:
        font = FT2Font(path)
        font.set_size(10, 72)
        if font.get_char_index(_NO_CHARACTER):
            return set()  # this font draws a box for every code point, so it is of no use
        return {letter for letter in letters if font.get_char_index(ord(letter)) and _has_outline(font, letter)}
    except (OSError, RuntimeError):  # FreeType cannot use this font
        return set()


def _has_outline(font: FT2Font, letter: str) -> bool:
    font.load_char(ord(letter))
    return len(font.get_path()[0]) > 0
