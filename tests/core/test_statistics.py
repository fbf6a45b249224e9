import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.stats import binomtest

from onecycle.core.statistics import (
    accuracy_by_class,
    accuracy_interval,
    agreement,
    difference_by_image,
    estimate,
    paired_difference,
)

accuracies = st.floats(0, 1)


@given(st.lists(accuracies, min_size=5, max_size=30))
def test_the_interval_is_that_of_students_t(values: list[float]) -> None:
    result = estimate(values)
    assert result.values == tuple(values)
    assert result.mean == pytest.approx(np.mean(values))
    assert result.std == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    assert result.interval_95 is not None
    if result.std and result.std > 1e-9:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
        assert result.interval_95 == pytest.approx((low, high))


def test_an_interval_contains_the_true_mean_in_95_percent_of_cases() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        interval = estimate(generator.normal(0.9, 0.002, size=5).tolist()).interval_95
        assert interval is not None
        hits += interval[0] <= 0.9 <= interval[1]
    assert hits / 2000 == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_few_values_have_no_interval_and_are_not_significant(count: int) -> None:
    result = estimate([0.9] * count)
    assert result.interval_95 is None
    assert not result.significant
    assert (result.std is None) == (count == 1)


def test_no_values_have_no_mean() -> None:
    with pytest.raises(ValueError, match="no values"):
        estimate([])


def test_differences_are_taken_seed_by_seed() -> None:
    ours = {0: 0.91, 1: 0.95, 2: 0.93, 3: 0.90, 4: 0.92, 9: 0.1}
    theirs = {seed: accuracy - 0.01 - 0.001 * (seed % 2) for seed, accuracy in ours.items() if seed != 9} | {7: 0.5}
    result = paired_difference(ours, theirs)
    assert result.values == pytest.approx((0.01, 0.011, 0.01, 0.011, 0.01))
    assert result.significant, "pairing by seed removes the spread of five points between seeds"


def test_a_difference_around_zero_is_not_significant() -> None:
    assert not estimate([-0.01, 0.01, 0.002, -0.003, 0.001]).significant


def test_images_wrong_in_every_run_are_counted_apart_from_those_wrong_in_some_runs() -> None:
    correct = np.array([[True, False, False, True], [True, False, True, True], [True, False, True, False]])
    assert agreement(correct).to_json() == {"images": 4, "wrong_in_every_run": 1, "wrong_in_some_runs": 2}


def test_images_that_a_single_run_gets_wrong_are_wrong_in_every_run() -> None:
    result = agreement(np.array([[True, False]]))
    assert (result.wrong_in_every_run, result.wrong_in_some_runs) == (1, 0)


def test_each_class_has_its_own_accuracy() -> None:
    correct = np.array([[True, True, False, True], [True, False, False, True]])
    found = accuracy_by_class(correct, np.array([0, 0, 2, 2]))
    assert {label: accuracy.values for label, accuracy in found.items()} == {0: (1.0, 0.5), 2: (0.5, 0.5)}


@given(st.integers(1, 500), st.data())
def test_the_interval_of_an_accuracy_contains_the_accuracy(images: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, images))
    low, high = accuracy_interval(correct, images)
    assert 0 <= low <= correct / images <= high <= 1


@given(st.integers(1, 20_000), st.data())
def test_the_interval_of_an_accuracy_is_wilsons(images: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, images))
    expected = binomtest(correct, images).proportion_ci(0.95, method="wilson")
    assert accuracy_interval(correct, images) == pytest.approx((expected.low, expected.high))


def test_two_networks_that_are_right_on_the_same_images_do_not_differ() -> None:
    right = np.array([True, False, True])
    found = difference_by_image(right, right)
    assert (found.mean, found.interval_95, found.p_value) == (0, (0, 0), 1)
    assert found.only_ours == found.only_theirs == 0


def test_a_difference_by_image_equals_the_paired_difference() -> None:
    generator = np.random.default_rng(0)
    ours, theirs = generator.random((2, 4000)) < np.array([[0.93], [0.90]])
    found = difference_by_image(ours, theirs)
    by_image = ours.astype(float) - theirs
    assert found.mean == pytest.approx(ours.mean() - theirs.mean())
    normal = stats.norm.interval(0.95, loc=by_image.mean(), scale=by_image.std() / 4000**0.5)
    assert found.interval_95 == pytest.approx(normal, abs=0.002), (
        "with many images the exact interval approaches the normal one"
    )
    assert (found.only_ours, found.only_theirs) == ((ours & ~theirs).sum(), (theirs & ~ours).sum())
    assert found.p_value < 0.05 and found.significant


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_interval_and_the_p_value_always_agree(only_ours: int, only_theirs: int) -> None:
    ours = np.array([True] * only_ours + [False] * only_theirs + [True] * 10)
    theirs = np.array([False] * only_ours + [True] * only_theirs + [True] * 10)
    found = difference_by_image(ours, theirs)
    assert found.significant == (found.p_value < 0.05)
    assert found.interval_95[0] <= found.mean <= found.interval_95[1]
    if only_ours + only_theirs:  # the distribution is symmetric, so scipy's two-sided p-value is twice one tail
        assert found.p_value == pytest.approx(stats.binomtest(only_ours, only_ours + only_theirs).pvalue)


def test_networks_on_different_images_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        difference_by_image(np.array([True]), np.array([True, False]))
    with pytest.raises(ValueError, match="cannot be compared"):
        difference_by_image(np.array([], bool), np.array([], bool))
