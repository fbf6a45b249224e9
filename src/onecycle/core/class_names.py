"""The rule for class names, wherever they come from: folders, records of a run, or a network."""

from collections.abc import Iterable


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
