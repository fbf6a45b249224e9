"""The rules for class names from any source: folders, records of a run, or a network."""

import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

# Names are compared in lower case. Case folding would make "Maße" and "Masse" equal, but they are two words.
_IGNORED: Mapping[str, Callable[[str], str]] = {
    "Unicode form": lambda name: unicodedata.normalize("NFC", name),
    "case": str.lower,
    "spaces": lambda name: " ".join(name.split()),
}


def require_class_names(names: Iterable[object]) -> tuple[str, ...]:
    """The class names `names`, after checking that they are one or more unique, printable, non-empty strings.

    Printable names have no control characters and no marks that reverse text. Both could change what a terminal shows.

    Raises:
        ValueError: when the names break one of these rules.
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
    """Two names that look alike, and what they differ in, such as "case and spaces"."""

    names: tuple[str, str]
    difference: str


def find_alike(names: Iterable[str]) -> Alike | None:
    """Two names in `names` that differ but look alike, or None."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(_looks(name), name)
        if other != name:
            needed = [what for what in _IGNORED if _looks(name, but=what) != _looks(other, but=what)]
            return Alike((other, name), " and ".join(needed) or "Unicode form")
    return None


def _looks(name: str, but: str | None = None) -> str:
    """`name` after normalizing the features in `_IGNORED`. Names that look alike become equal.

    The feature `but` is not normalized.
    """
    for what, ignore in _IGNORED.items():
        if what != but:
            name = ignore(name)
    return name
