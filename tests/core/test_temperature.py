import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onecycle.core.metrics import calibration, log_loss, probabilities_of
from onecycle.core.temperature import HIGHEST, LOWEST, fit_temperature, require_temperature


def drawn(images: int, classes: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits `[images,classes]`, and labels drawn from their probabilities at `temperature`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (images, classes)).astype(np.float32)
    probabilities = probabilities_of(logits, temperature)
    labels = (probabilities.cumsum(axis=1) > rng.random((images, 1))).argmax(axis=1)
    return logits, labels


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 1.6, 5.0])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_the_temperature_of_the_labels_is_found(classes: int, temperature: float) -> None:
    assert fit_temperature(*drawn(8000, classes, temperature)) == pytest.approx(temperature, rel=0.08)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_fitted_temperature_calibrates_other_images(temperature: float) -> None:
    fitted = fit_temperature(*drawn(5000, 10, temperature))
    logits, labels = drawn(10_000, 10, temperature, seed=1)
    before, after = probabilities_of(logits), probabilities_of(logits, fitted)
    assert calibration(before, labels).error > 0.05 > 0.015 > calibration(after, labels).error
    assert log_loss(after, labels) < log_loss(before, labels)


def test_no_other_temperature_makes_the_labels_more_likely() -> None:
    logits, labels = drawn(5000, 10, 1.7)
    fitted = fit_temperature(logits, labels)
    least = log_loss(probabilities_of(logits, fitted), labels)
    for temperature in np.geomspace(LOWEST, HIGHEST, 50):
        assert log_loss(probabilities_of(logits, temperature), labels) >= least - 1e-4


@pytest.mark.parametrize("images", [1, 2, 20, 1000])
def test_correct_predictions_alone_do_not_make_the_network_certain(images: int) -> None:
    logits = np.tile(np.array([[9, 0, 0]], np.float32), (images, 1))
    confidence = probabilities_of(logits, fit_temperature(logits, np.zeros(images, np.int64))).max()
    assert confidence == pytest.approx((images + 1) / (images + 2), abs=1e-3)


def test_a_network_that_knows_nothing_gets_the_highest_temperature() -> None:
    logits, _ = drawn(2000, 10, 1.0)
    labels = np.random.default_rng(2).integers(0, 10, 2000)
    assert fit_temperature(logits, labels) > 10
    assert fit_temperature(logits, logits.argmin(axis=1)) == pytest.approx(HIGHEST, rel=1e-3)


@pytest.mark.parametrize("classes", [1, 5])
def test_equal_logits_have_the_temperature_1(classes: int) -> None:
    assert fit_temperature(np.full((7, classes), 3, np.float32), np.zeros(7, np.int64)) == 1


@settings(max_examples=50)
@given(st.integers(1, 6), st.integers(1, 5), st.floats(1e-30, 1e30), st.integers(0, 99))
def test_any_finite_logits_have_a_temperature_within_the_bounds(
    images: int, classes: int, scale: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = (scale * rng.normal(size=(images, classes))).astype(np.float32)
    temperature = fit_temperature(logits, rng.integers(0, classes, images))
    assert LOWEST <= temperature <= HIGHEST and require_temperature(temperature) == temperature


def test_no_images_have_no_temperature() -> None:
    with pytest.raises(ValueError, match="there are no predictions"):
        fit_temperature(np.empty((0, 2), np.float32), np.empty(0, np.int64))


@pytest.mark.parametrize("value", [0, -1, 101, 0.009, float("nan"), float("inf"), True, "1", None, [1.0], 10**400])
def test_other_values_are_no_temperature(value: object) -> None:
    with pytest.raises(ValueError, match="the temperature is .*; it must be a number from 0.01 to 100.0"):
        require_temperature(value)
