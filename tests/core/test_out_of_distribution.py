import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import logsumexp

from onecycle.core.out_of_distribution import energy_scores_of, energy_threshold_of, require_energy_threshold


@given(arrays(np.float32, (5, 3), elements=st.floats(-(2.0**90), 2.0**90, width=32)))
def test_the_energy_score_is_the_logsumexp_of_the_logits(logits: np.ndarray) -> None:
    np.testing.assert_allclose(energy_scores_of(logits), logsumexp(logits.astype(np.float64), axis=1), atol=1e-12)


@pytest.mark.parametrize("images", [20, 21, 39, 100, 999, 10_000])
def test_the_threshold_keeps_at_least_95_percent_of_the_images_and_hardly_more(images: int) -> None:
    logits = np.random.default_rng(images).normal(size=(images, 10)).astype(np.float32)
    threshold = energy_threshold_of(logits)
    assert threshold is not None
    kept = int((energy_scores_of(logits) >= threshold).sum())
    assert 0.95 * images <= kept <= 0.95 * images + 1.05


def test_equal_scores_are_all_kept() -> None:
    logits = np.zeros((30, 2), np.float32)
    assert energy_threshold_of(logits) == energy_scores_of(logits)[0]


def test_few_images_give_no_threshold() -> None:
    assert energy_threshold_of(np.zeros((19, 2), np.float32)) is None


def test_a_threshold_is_a_number_or_none() -> None:
    assert [require_energy_threshold(value) for value in (None, 3, -2.5)] == [None, 3.0, -2.5]
    for wrong in ("3", True, [3.0], float("nan"), float("inf"), 10**400):
        with pytest.raises(ValueError, match="the energy threshold is .*; it must be a number"):
            require_energy_threshold(wrong)
