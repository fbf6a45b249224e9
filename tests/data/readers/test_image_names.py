import os
import tracemalloc

import numpy as np
import pytest

from onecycle.data import ImageSet
from onecycle.data.readers.image_names import ImageNames

_NAMES = ["cats/1.jpg", "hunde/süß.png", os.fsdecode(b"dogs/caf\xe9.png"), "line\nbreak.gif", "", "猫/🐈.webp"]


def test_names_of_any_characters_are_kept() -> None:
    names = ImageNames.of(_NAMES)
    assert list(names) == _NAMES and len(names) == 6
    assert (names[-1], names[1:3][1]) == (_NAMES[-1], _NAMES[2])
    assert list(ImageNames(names.to_array())) == _NAMES
    with pytest.raises(IndexError):
        names[6]


def test_a_subset_of_a_subset_has_the_chosen_names_in_the_given_order() -> None:
    names = ImageNames.of(_NAMES).subset(np.array([5, 0, 2, 2])).subset(np.array([3, 0]))
    assert list(names) == [_NAMES[2], _NAMES[5]]
    assert list(ImageNames(names.to_array())) == list(names)


def test_there_may_be_no_names() -> None:
    assert list(ImageNames.of([])) == []


def test_200_000_names_take_little_memory() -> None:
    tracemalloc.start()
    try:
        names = ImageNames.of(f"class {number % 100}/photograph {number:09}.jpg" for number in range(200_000))
        assert names.subset(np.arange(0, 200_000, 2))[1] == "class 2/photograph 000000002.jpg"
        assert tracemalloc.get_traced_memory()[1] < 2**24  # bytes; a list of these names takes 2**25
    finally:
        tracemalloc.stop()


def test_names_change_no_fingerprint_and_must_be_as_many_as_images() -> None:
    pixels, labels = np.zeros((2, 1, 1, 3), np.uint8), np.array([0, 1])
    named = ImageSet(pixels, labels, ("a", "b"), names=ImageNames.of(["x", "y"]))
    assert named.fingerprint == ImageSet(pixels, labels, ("a", "b")).fingerprint
    assert list(named.subset(np.array([1])).names or ()) == ["y"]
    with pytest.raises(ValueError, match="3 names, but 2 images"):
        ImageSet(pixels, labels, ("a", "b"), names=ImageNames.of("xyz"))
