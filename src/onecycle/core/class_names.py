"""The rules for class names, wherever they come from: folders, records of a run, or a network."""

import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

# In lower case, not case-folded: "Maße" and "Masse" are two words.
_IGNORED: Mapping[str, Callable[[str], str]] = {
    "Unicode form": lambda name: unicodedata.normalize("NFC", name),
    "case": str.lower,
    "spaces": lambda name: " ".join(name.split()),
}


def require_class_names(names: Iterable[object]) -> tuple[str, ...]:
    """The class names `names`, after checking that they are one or more unique, printable, non-empty strings.

    Printable names have no control characters, which could change a terminal, and no marks that reverse text.

    Raises:
        ValueError: when they are not.
    """
    found: list[str] = []
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"the class name {repr(name)[:60]} is not text")
        if not name or not name.isprintable():
            raise ValueError(f"the class name {repr(name)[:60]} cannot be printed")
        found.append(name)
    if not found or len(set(found)) < len(found):
        raise ValueError(f"classes are {repr(found)[:200]}; they must be one or more unique names")
    return tuple(found)


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
