"""Find class names that look alike: they differ only in Unicode form, case or spaces."""

import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

# In lower case, not case-folded: "Maße" and "Masse" are two words.
_IGNORED: Mapping[str, Callable[[str], str]] = {
    "Unicode form": lambda name: unicodedata.normalize("NFC", name),
    "case": str.lower,
    "spaces": lambda name: " ".join(name.split()),
}


class Alike(NamedTuple):
    """Two names that look alike, and the words for what they differ in."""

    names: tuple[str, str]
    difference: str


def find_alike(names: Iterable[str]) -> Alike | None:
    """Two of the different `names` that look alike, or None."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(_looks(name), name)
        if other != name:
            needed = [what for what in _IGNORED if _looks(name, but=what) != _looks(other, but=what)]
            return Alike((other, name), " and ".join(needed) or "Unicode form")
    return None


def _looks(name: str, but: str | None = None) -> str:
    """`name` without the differences that are hard to see, except for `but`."""
    for what, ignore in _IGNORED.items():
        if what != but:
            name = ignore(name)
    return name
