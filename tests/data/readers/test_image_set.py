import numpy as np
import pytest

from onecycle.data import ImageSet


def _images(n: int = 4) -> np.ndarray:
    return np.arange(n * 2 * 2 * 3, dtype=np.uint8).reshape(n, 2, 2, 3)


_LABELS = np.array([0, 1, 0, 1])


def test_equal_sets_have_equal_fingerprints_with_any_memory_layout() -> None:
    fortran = ImageSet(np.asfortranarray(_images()), _LABELS, ("a", "b"))
    assert ImageSet(_images(), _LABELS, ("a", "b")).fingerprint == fortran.fingerprint


@pytest.mark.parametrize(
    "other",
    [
        ImageSet(_images() + np.uint8(1), _LABELS, ("a", "b")),
        ImageSet(_images().reshape(4, 1, 4, 3), _LABELS, ("a", "b")),
        ImageSet(_images(), _LABELS[::-1], ("a", "b")),
        ImageSet(_images(), _LABELS, ("a", "c")),
        ImageSet(_images(), _LABELS, ("a", "b", "c")),
    ],
    ids=["pixels", "shape", "labels", "name", "one more class"],
)
def test_different_sets_have_different_fingerprints(other: ImageSet) -> None:
    assert ImageSet(_images(), _LABELS, ("a", "b")).fingerprint != other.fingerprint


def test_a_subset_has_the_chosen_images_in_the_given_order() -> None:
    subset = ImageSet(_images(), _LABELS, ("a", "b")).subset(np.array([3, 0]))
    assert len(subset) == 2
    assert (subset.images == _images()[[3, 0]]).all()
    assert subset.labels.tolist() == [1, 0]
    assert subset.classes == ("a", "b")


@pytest.mark.parametrize(
    ("images", "labels", "classes", "message"),
    [
        (_images().astype(float), _LABELS, ("a", "b"), "must be uint8"),
        (_images()[..., :1], _LABELS, ("a", "b"), r"must be uint8 \[N,H,W,3\]"),
        (_images(), _LABELS.astype(np.int32), ("a", "b"), "must be int64"),
        (_images(), _LABELS[:3], ("a", "b"), r"must be int64 \[4\]"),
        (_images(), _LABELS, ("a",), "labels run from 0 to 1; 1 classes allow 0 to 0"),
        (_images(), _LABELS - 1, ("a", "b"), "labels run from -1"),
        (_images(), _LABELS, ("a", "a"), "one or more unique names"),
    ],
)
def test_invalid_arrays_and_class_names_are_refused(images, labels, classes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageSet(images, labels, classes)
