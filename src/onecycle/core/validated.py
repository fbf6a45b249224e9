"""Validate the values in a file against the type hints of a record. A record is a dataclass.

A run folder or a network may come from someone else, so its values cannot be trusted. Each record therefore states its
types, bounds and array shapes in its type hints, and only `validated` turns values into a record.
"""

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from onecycle.core.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Between:
    """The lowest and the highest allowed value of a number. NaN is never allowed."""

    low: float
    high: float


@dataclass(frozen=True)
class Shape:
    """The shape of an array, such as "M H W 3". In one record, sides with the same letter have the same size."""

    sides: str


Count = Annotated[int, Between(0, 2**53)]
AtLeastOne = Annotated[int, Between(1, 2**53)]
Fraction = Annotated[float, Between(0, 1)]


def validated(record: type[T], values: object) -> T:
    """Create an instance of the dataclass `record` from `values`. Lists become tuples.

    `values` maps the names of the fields to JSON values or arrays.

    Raises:
        ValueError: when a field is missing or unknown, or when the type, size or shape of a value
            differs from the type hint of its field.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"it holds {_shortened(values)}; it must hold an object")
    hints = typing.get_type_hints(record, include_extras=True)
    required = {
        field.name
        for field in fields(record)  # type: ignore[arg-type]
        if field.default is MISSING and field.default_factory is MISSING
    }
    if wrong := sorted(map(str, values.keys() - hints.keys())):
        raise ValueError(f"the field {_shortened(wrong[0])} is unknown")
    if wrong := sorted(required - values.keys()):
        raise ValueError(f"the field {wrong[0]!r} is missing")
    sizes: dict[str, int] = {}
    return record(**{name: _converted(value, hints[name], name, sizes) for name, value in values.items()})


def fits(value: object, hint: Any) -> bool:
    """Whether `value` has the type `hint`. An int is also allowed where the hint is `float`."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if isinstance(hint, types.UnionType):
        return any(fits(value, part) for part in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(fits(part, get_args(hint)[0]) for part in value)
    if hint is bool:
        return isinstance(value, bool)
    return isinstance(value, int | float if hint is float else hint) and not isinstance(value, bool)


def has_64_bits(value: object) -> bool:
    """Whether the int `value` fits into int64; true for other types. Ints in JSON have any number of digits."""
    return not isinstance(value, int) or -(2**63) <= value < 2**63


def in_words(hint: Any) -> str:
    """The values that `fits` allows for `hint`, in words."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(get_args(hint))
    if isinstance(hint, types.UnionType):
        return in_words(get_args(hint)[0])
    if get_origin(hint) is tuple:
        return "whole numbers" if get_args(hint)[0] is int else f"a list, and each part {in_words(get_args(hint)[0])}"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}[hint]


def _converted(value: Any, hint: Any, where: str, sizes: dict[str, int]) -> Any:
    """Check `value` against `hint`, and convert it to that type. `sizes` stores the size for each letter of a shape."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        value = _converted(value, parts[0], where, sizes)
        for rule in hint.__metadata__:
            if isinstance(rule, Shape):
                _require_shape(value, rule, where, sizes)
            elif not rule.low <= value <= rule.high:
                raise ValueError(f"{where} is {_shortened(value)}; it must be from {rule.low} to {rule.high}")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and types.NoneType in parts:
            return None
        return _converted(value, parts[0], where, sizes)
    if origin is tuple and isinstance(value, list | tuple):
        of_all = len(parts) == 2 and parts[1] is ...
        if not of_all and len(value) != len(parts):
            raise ValueError(f"{where} has {len(value)} values; it must have {len(parts)}")
        hints = [parts[0]] * len(value) if of_all else parts
        return tuple(_converted(part, hint, where, sizes) for part, hint in zip(value, hints, strict=True))
    if origin is dict and isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {name: _converted(part, parts[1], where, sizes) for name, part in value.items()}
    if getattr(origin, "__name__", "") == "ndarray":
        return _array(value, parts[1], where)
    if isinstance(hint, type) and is_dataclass(hint):
        return validated(hint, value)
    if hint is Any:
        return value
    if origin in (tuple, dict) or not fits(value, hint):
        allowed = {tuple: "a list", dict: "an object"}.get(origin) or in_words(hint)
        raise ValueError(f"{where} is {_shortened(value)}; it must be {allowed}")
    if not has_64_bits(value):
        raise ValueError(f"{where} is {_shortened(value)}; it must have at most 64 bits")
    return float(value) if hint is float else value


def _array(value: Any, dtype: Any, where: str) -> Any:
    import numpy as np  # imported late, because it would delay the start of every command

    expected = np.dtype(get_args(dtype)[0])
    if not isinstance(value, np.ndarray) or value.dtype != expected:
        raise ValueError(f"{where} is not an array of {expected}")
    if expected.kind == "f" and not np.isfinite(value).all():
        raise ValueError(f"{where} has values that are not finite")
    return value


def _require_shape(value: Any, shape: Shape, where: str, sizes: dict[str, int]) -> None:
    sides = shape.sides.split()
    expected = [int(side) if side.isdigit() else sizes.get(side) for side in sides]
    if len(sides) != value.ndim or any(
        want not in (None, have) for want, have in zip(expected, value.shape, strict=True)
    ):
        wanted = ",".join(side if size is None else str(size) for side, size in zip(sides, expected, strict=True))
        raise ValueError(f"{where} has the shape {list(value.shape)}; it must be [{wanted}]")
    sizes.update(zip(sides, value.shape, strict=True))


def _shortened(value: object) -> str:
    text = repr(value)  # `repr` escapes characters that cannot be printed
    return text if len(text) <= 60 else f"{text[:60]}…"


# Groups are neither compared nor printed, and creating methods for that would delay the start of every command.
@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class OptionGroup:
    """Base class of the option groups. It checks that every value has the type of its field."""

    def __post_init__(self) -> None:
        for field, hint in typing.get_type_hints(type(self)).items():
            value = getattr(self, field)
            if not fits(value, hint):
                self._require(field, False, in_words(hint))
            self._require(field, has_64_bits(value), "a number of at most 64 bits")
            self._require(field, _can_be_in_path(str(value)), "without characters that a path cannot have")

    def _require(self, field: str, holds: bool, allowed: str) -> None:
        if not holds:
            option = "--" + field.replace("_", "-")
            raise InputError(f"{option} is {getattr(self, field)!r}; it must be {allowed}")

    def _require_at_most(self, most: int, *names: str) -> None:
        for field in names:
            value = getattr(self, field)
            values = value if isinstance(value, tuple) else (value,)
            self._require(field, all(each <= most for each in values), f"at most {most:,}")

    def _require_positive(self, *names: str) -> None:
        for field in names:
            self._require(field, getattr(self, field) >= 1, "at least 1")


def _can_be_in_path(text: str) -> bool:
    try:
        return b"\0" not in text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # JSON allows half of a surrogate pair, but UTF-8 does not
        return False
