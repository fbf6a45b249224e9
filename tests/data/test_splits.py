import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onecycle.core.errors import InputError
from onecycle.data import ImageSet
from onecycle.data.splits import limit_images, split_validation, stratified

label_lists = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(lambda labels: np.array(labels, np.int64))
seeds = st.integers(0, 2**32)


def _set_of(labels: np.ndarray, classes: int = 5) -> ImageSet:
    """Images whose first pixel is their own index modulo 256."""
    images = np.zeros((len(labels), 1, 1, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels)) % 256
    return ImageSet(images, labels, tuple("abcdefghij"[:classes]))


@given(label_lists, st.data(), seeds)
def test_a_stratified_sample_has_its_size_and_each_class_is_within_one_of_its_share(labels, data, seed) -> None:
    size = data.draw(st.integers(0, len(labels)))
    chosen = stratified(labels, size, seed=seed)
    assert len(chosen) == size
    assert (np.diff(chosen) > 0).all()  # strictly ascending, so there are no duplicates
    exact = np.bincount(labels, minlength=5) * size / len(labels)
    counts = np.bincount(labels[chosen], minlength=5)
    assert (np.abs(counts - exact) < 1).all()


@given(st.integers(1, 6), st.integers(1, 12), st.data(), seeds)
def test_classes_of_a_balanced_set_differ_by_at_most_one(classes, each, data, seed) -> None:
    labels = np.repeat(np.arange(classes), each)
    counts = np.bincount(
        labels[stratified(labels, data.draw(st.integers(0, len(labels))), seed=seed)], minlength=classes
    )
    assert counts.max() - counts.min() <= 1


@given(label_lists, st.data(), seeds)
def test_the_same_seed_chooses_the_same_images(labels, data, seed) -> None:
    size = data.draw(st.integers(0, len(labels)))
    assert (stratified(labels, size, seed=seed) == stratified(labels, size, seed=seed)).all()


def test_another_seed_chooses_other_images() -> None:
    labels = np.repeat(np.arange(5), 40)
    assert (stratified(labels, 50, seed=0) != stratified(labels, 50, seed=1)).any()


def test_the_largest_remainders_are_rounded_up_first() -> None:
    labels = np.repeat([0, 1, 2], [6, 3, 1])
    # The exact shares are 3, 1.5 and 0.5.
    assert np.bincount(labels[stratified(labels, 5, seed=0)], minlength=3).tolist() == [3, 2, 0]


@given(st.integers(0, 200), seeds)
def test_training_and_validation_sets_are_disjoint_and_hold_all_images(size, seed) -> None:
    whole = _set_of(np.arange(210) % 5)
    train, validation = split_validation(whole, max(size, 5), seed=seed)
    parts = [part.images[:, 0, 0, 0].tolist() for part in (train, validation)]
    assert len(parts[1]) == max(size, 5)
    assert sorted(parts[0] + parts[1]) == list(range(210))
    assert (train.labels == np.array(parts[0]) % 5).all()
    assert (validation.labels == np.array(parts[1]) % 5).all()


class_counts = st.lists(st.integers(2, 60), min_size=2, max_size=5)


@given(class_counts, st.data(), seeds)
def test_training_and_validation_sets_both_have_every_class(counts, data, seed) -> None:
    whole = _set_of(np.repeat(np.arange(len(counts)), counts), classes=len(counts))
    size = data.draw(st.integers(len(counts), len(whole) - len(counts)))
    for part in split_validation(whole, size, seed=seed):
        assert np.bincount(part.labels, minlength=len(counts)).min() >= 1


@given(st.lists(st.integers(1, 60), min_size=2, max_size=5), st.data(), seeds)
def test_a_limit_keeps_every_class(counts, data, seed) -> None:
    whole = _set_of(np.repeat(np.arange(len(counts)), counts), classes=len(counts))
    kept = limit_images(whole, data.draw(st.integers(len(counts), len(whole))), seed=seed)
    assert np.bincount(kept.labels, minlength=len(counts)).min() >= 1


@given(class_counts, st.data(), seeds)
def test_counts_differ_from_the_proportions_only_where_a_class_would_be_left_out(counts, data, seed) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    size = data.draw(st.integers(len(counts), len(labels) - len(counts)))
    plain = np.bincount(labels[stratified(labels, size, seed=seed)], minlength=len(counts))
    bounded = np.bincount(labels[stratified(labels, size, seed=seed, keep=1, leave=1)], minlength=len(counts))
    assert ((bounded >= 1) & (bounded <= np.array(counts) - 1)).all() and bounded.sum() == size
    if (plain >= 1).all() and (plain <= np.array(counts) - 1).all():
        assert (bounded == plain).all()


def test_rare_classes_stay_in_a_validation_split_and_under_a_limit() -> None:
    train, validation = split_validation(_set_of(np.repeat([0, 1], [1000, 2]), classes=2), 900, seed=0)
    assert [np.bincount(part.labels).tolist() for part in (train, validation)] == [[101, 1], [899, 1]]
    kept = limit_images(_set_of(np.repeat([0, 1], [1000, 3]), classes=2), 100, seed=0)
    assert np.bincount(kept.labels).tolist() == [99, 1]


def test_a_validation_split_of_a_class_with_one_image_is_refused() -> None:
    with pytest.raises(InputError, match="^--validation needs two images of each class, but there is only one of b; "):
        split_validation(_set_of(np.repeat([0, 1], [1000, 1]), classes=2), 900, seed=0)


@pytest.mark.parametrize("size", [-1, 4, 46, 50, 51])
def test_a_validation_size_that_leaves_a_class_out_of_either_set_is_refused(size: int) -> None:
    with pytest.raises(InputError, match=f"^--validation is {size}; .* it must be from 5 to 45"):
        split_validation(_set_of(np.arange(50) % 5), size, seed=0)


@pytest.mark.parametrize("size", [-3, 0, 4])
def test_a_limit_below_the_number_of_classes_is_refused(size: int) -> None:
    with pytest.raises(InputError, match=f"^--limit is {size}; it must be at least 5, the number of classes$"):
        limit_images(_set_of(np.arange(50) % 5), size, seed=0)


@pytest.mark.parametrize("size", [50, 51, 10**9])
def test_a_limit_of_the_set_size_or_more_keeps_the_whole_set(size: int) -> None:
    whole = _set_of(np.arange(50) % 5)
    assert limit_images(whole, size, seed=0).fingerprint == whole.fingerprint


@pytest.mark.parametrize("size", [5, 23, 49])
def test_a_limit_keeps_its_number_of_images_balanced_by_class(size: int) -> None:
    kept = limit_images(_set_of(np.arange(50) % 5), size, seed=0)
    assert len(kept) == size
    assert np.ptp(np.bincount(kept.labels, minlength=5)) <= 1


def test_a_limit_keeps_the_order_of_the_set() -> None:
    kept = limit_images(_set_of(np.arange(50) % 5), 20, seed=3)
    assert (np.diff(kept.images[:, 0, 0, 0].astype(int)) > 0).all()


def test_a_sample_larger_than_the_set_raises_a_value_error() -> None:
    with pytest.raises(ValueError, match="size is 4; it must be from 0 to 3"):
        stratified(np.array([0, 1, 2]), 4, seed=0)
