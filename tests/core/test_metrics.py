import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from onecycle.core.metrics import (
    CALIBRATION_BINS,
    calibration,
    class_metrics,
    confusion_counts,
    margins_of,
    misclassified_by_confidence,
    probabilities_of,
)

logits_of_3 = arrays.arrays(np.float32, st.tuples(st.integers(1, 30), st.just(3)), elements=st.floats(-9, 9, width=32))


@given(logits_of_3, st.integers(0, 2**32 - 1))
def test_counts_and_class_metrics_equal_those_of_scikit_learn(logits: np.ndarray, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 3, len(logits))
    predictions = logits.argmax(axis=1)
    counts = confusion_counts(labels, predictions, 3)
    assert np.array_equal(counts, confusion_matrix(labels, predictions, labels=range(3)))
    theirs = precision_recall_fscore_support(labels, predictions, labels=range(3), zero_division=np.nan)
    for found, precision, recall, f1, images in zip(class_metrics(counts), *theirs, strict=True):
        assert found.images == images
        for ours, value in ((found.precision, precision), (found.recall, recall), (found.f1, f1)):
            assert (ours is None and np.isnan(value)) or ours == pytest.approx(value)


@given(logits_of_3, st.integers(0, 2**32 - 1))
def test_margins_are_negative_exactly_for_incorrect_predictions(logits: np.ndarray, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 3, len(logits))
    margins = margins_of(logits, labels)
    wrong = logits.argmax(axis=1) != labels
    assert (margins[wrong] <= 0).all() and (margins[~wrong] >= 0).all()


def test_a_margin_is_the_distance_to_the_largest_other_logit() -> None:
    logits = np.array([[3, 1, 2], [3, 1, 2]], np.float32)
    assert margins_of(logits, np.array([0, 1])).tolist() == [1, -2]


@given(logits_of_3)
def test_probabilities_sum_to_one_in_the_order_of_the_logits(logits: np.ndarray) -> None:
    probabilities = probabilities_of(logits)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(len(logits)))
    likeliest = probabilities[np.arange(len(logits)), logits.argmax(axis=1)]
    assert np.array_equal(likeliest, probabilities.max(axis=1)), "logits that hardly differ may get equal probabilities"


@given(logits_of_3, st.floats(0.01, 100))
def test_no_temperature_changes_the_order_of_the_classes(logits: np.ndarray, temperature: float) -> None:
    probabilities = probabilities_of(logits, temperature)
    likeliest = probabilities[np.arange(len(logits)), logits.argmax(axis=1)]
    assert np.array_equal(likeliest, probabilities.max(axis=1))


def test_a_high_temperature_does_not_make_neighboring_logits_equally_likely() -> None:
    for logit in np.geomspace(0.01, 50, 30, dtype=np.float32):
        above = np.nextafter(logit, np.float32(100))
        assert probabilities_of(np.array([[logit, above]]), 100.0).argmax() == 1


def test_misclassified_images_are_sorted_by_confidence() -> None:
    logits = np.array([[0, 1], [0, 9], [5, 0], [0, 4]], np.float32)
    assert misclassified_by_confidence(logits, np.array([0, 0, 0, 0])).tolist() == [1, 3, 0]
    assert misclassified_by_confidence(logits, np.array([1, 1, 0, 1])).tolist() == []


def test_a_calibrated_network_has_no_calibration_error() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.5, 1, 200_000)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    labels = (generator.random(len(confidence)) >= confidence).astype(np.int64)
    assert calibration(probabilities, labels).error == pytest.approx(0, abs=0.005)


def test_a_network_that_is_always_certain_has_its_error_rate_as_calibration_error() -> None:
    found = calibration(np.array([[1.0, 0.0]] * 10), np.array([0] * 7 + [1] * 3))
    assert found.error == pytest.approx(0.3)
    assert found.counts.tolist() == [0] * (CALIBRATION_BINS - 1) + [10]
    assert np.isnan(found.accuracies[0]) and found.accuracies[-1] == pytest.approx(0.7)


def test_labels_that_do_not_fit_the_predictions_or_the_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="there are 2 labels and 1 predictions"):
        confusion_counts(np.array([0, 1]), np.array([0]), 2)
    with pytest.raises(ValueError, match="predictions run from 0 to 2; 2 classes allow 0 to 1"):
        confusion_counts(np.array([0, 1]), np.array([0, 2]), 2)


def test_calibration_needs_predictions() -> None:
    with pytest.raises(ValueError, match="no predictions"):
        calibration(np.empty((0, 2)), np.empty(0, np.int64))
