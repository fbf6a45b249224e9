from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from onecycle.core.class_names import require_class_names
from onecycle.core.validated import Between, Shape, validated


@dataclass(frozen=True)
class Part:
    name: str


@dataclass(frozen=True)
class Record:
    kind: Literal["a", "b"]
    count: Annotated[int, Between(1, 10)]
    pair: tuple[int, int]
    parts: tuple[Part, ...] = ()
    share: Annotated[float, Between(0, 1)] | None = None
    by_name: dict[str, float] | None = None


@dataclass(frozen=True)
class Arrays:
    images: Annotated[NDArray[np.uint8], Shape("N H W 3")]
    labels: Annotated[NDArray[np.int64], Shape("N")]


VALUES = {"kind": "a", "count": 3, "pair": [1, 2]}


def test_values_become_a_record() -> None:
    values = {**VALUES, "parts": [{"name": "x"}], "share": 1, "by_name": {"y": 0.5}}
    expected = Record(kind="a", count=3, pair=(1, 2), parts=(Part("x"),), share=1, by_name={"y": 0.5})
    assert validated(Record, values) == expected
    assert validated(Record, {**VALUES, "share": None}) == Record(kind="a", count=3, pair=(1, 2))
    assert type(validated(Record, values).share) is float


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "c"}, "kind is 'c'; it must be one of a, b"),
        ({"count": 11}, "count is 11; it must be from 1 to 10"),
        ({"count": True}, "count is True; it must be a whole number"),
        ({"count": 1.5}, "count is 1.5; it must be a whole number"),
        ({"pair": [1]}, "pair has 1 values; it must have 2"),
        ({"pair": "12"}, "pair is '12'; it must be a list"),
        ({"parts": ["x"]}, "it holds 'x'; it must hold an object"),
        ({"parts": [{"name": ["x"]}]}, "name is ['x']; it must be text"),
        ({"share": float("nan")}, "share is nan; it must be from 0 to 1"),
        ({"by_name": {"y": "z"}}, "by_name is 'z'; it must be a number"),
        ({"count": 2**63}, "count is 9223372036854775808; it must have at most 64 bits"),
        ({"by_name": {"y": -(10**400)}}, "by_name is -1000"),
        ({"\x1b": 0}, "the field "),
        ({"kind": "\u202e" * 100}, "kind is '"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as error:
        validated(Record, {**VALUES, **changes})
    assert str(error.value).startswith(message) and str(error.value).isprintable()
    assert len(str(error.value)) < 150


@pytest.mark.parametrize("values", [[], "text", None, {}, {"kind": "a"}])
def test_what_is_no_record_is_refused(values: object) -> None:
    with pytest.raises(ValueError, match="it must hold an object|the field 'count' is missing"):
        validated(Record, values)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3, np.int64), r"labels has the shape \[3\]; it must be \[2\]"),
        (np.zeros((2, 4, 4), np.uint8), np.zeros(2, np.int64), r"images has the shape .*; it must be \[N,H,W,3\]"),
        (np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, np.int64), r"it must be \[N,H,W,3\]"),
        (np.zeros((2, 4, 4, 3)), np.zeros(2, np.int64), "images is not an array of uint8"),
        ([1], np.zeros(2, np.int64), "images is not an array of uint8"),
    ],
)
def test_arrays_must_have_the_type_and_shape_of_the_record(images: object, labels: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validated(Arrays, {"images": images, "labels": labels})


@pytest.mark.parametrize("dtype", ["i4", ">i8", "u8", "f8"])
def test_arrays_of_another_size_or_byte_order_are_refused(dtype: str) -> None:
    with pytest.raises(ValueError, match="^labels is not an array of int64$"):
        validated(Arrays, {"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": np.zeros(2, dtype)})


def test_class_names_are_unique_printable_text() -> None:
    assert require_class_names(["Ä b", "猫"]) == ("Ä b", "猫")
    for names in ([], ["a", "a"], [""], ["a\n"], ["\x1b[31m"], ["\u202ea"], ["\u200f"], [1], [["a"]], [None]):
        with pytest.raises(ValueError, match="^(the class name .* (is not text|cannot be printed)|classes are )"):
            require_class_names(names)
