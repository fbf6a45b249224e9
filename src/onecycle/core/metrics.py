"""Metrics of one network's predictions: margins, confusion counts, per-class metrics and calibration."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CALIBRATION_BINS = 15  # as in Guo et al. 2017


def probabilities_of(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float64]:
    """The softmax of `logits / temperature`, for logits `[N,C]`.

    The most likely class is the same at every temperature. Only float64 ensures this: in float32, two close
    probabilities could become equal.
    """
    exponentials = np.exp((logits.astype(np.float64) - logits.max(axis=1, keepdims=True)) / temperature)
    shares: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return shares


def margins_of(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """For each image, the logit of its label minus the largest other logit.

    The result is float32 `[N]`. A margin is negative if the prediction is incorrect.
    """
    rows = np.arange(len(labels))
    others = logits.copy()
    others[rows, labels] = -np.inf
    margins: NDArray[np.float32] = logits[rows, labels] - others.max(axis=1)
    return margins


def misclassified_by_confidence(
    logits: NDArray[np.float32], labels: NDArray[np.int64], temperature: float = 1.0
) -> NDArray[np.int64]:
    """The indices of the misclassified images. The image with the most confident prediction comes first.

    `logits` are `[N,C]`, and `labels` are `[N]`.
    """
    wrong = np.flatnonzero(logits.argmax(axis=1) != labels)
    return wrong[np.argsort(-probabilities_of(logits[wrong], temperature).max(axis=1), kind="stable")]


def confusion_counts(labels: NDArray[np.int64], predictions: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """The confusion matrix, int64 `[C,C]`: how often each true class (row) was predicted as each class (column).

    Raises:
        ValueError: if the lengths differ, or a value is not the index of a class.
    """
    if labels.shape != predictions.shape:
        raise ValueError(
            f"there are {len(labels)} labels and {len(predictions)} predictions; the numbers must be equal"
        )
    for name, values in (("labels", labels), ("predictions", predictions)):
        if values.size and not 0 <= values.min() <= values.max() < classes:
            raise ValueError(
                f"{name} run from {values.min()} to {values.max()}; {classes} classes allow 0 to {classes - 1}"
            )
    return np.bincount(labels * classes + predictions, minlength=classes**2).reshape(classes, classes)


@dataclass(frozen=True, kw_only=True)
class ClassMetrics:
    """The metrics of one class.

    Precision is None if the class was never predicted. Recall is None if the class has no images. F1 is None if both
    are None.
    """

    images: int
    correct: int
    predicted: int  # how often the class was predicted
    precision: float | None
    recall: float | None
    f1: float | None


def class_metrics(counts: NDArray[np.int64]) -> list[ClassMetrics]:
    """The metrics of each class, from the counts `[C,C]` of `confusion_counts`."""
    return [
        ClassMetrics(
            images=images,
            correct=correct,
            predicted=predicted,
            precision=_ratio(correct, predicted),
            recall=_ratio(correct, images),
            f1=_ratio(2 * correct, images + predicted),
        )
        for images, correct, predicted in zip(
            counts.sum(axis=1).tolist(), np.diag(counts).tolist(), counts.sum(axis=0).tolist(), strict=True
        )
    ]


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def log_loss(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The mean of -log(p) over the images, where p is the predicted probability of the image's label.

    `probabilities` are `[N,C]`, and `labels` are `[N]`.
    """
    of_labels = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(of_labels, np.finfo(np.float64).tiny)).mean())


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The mean confidence and the accuracy in each bin. Both are NaN in empty bins.

    The bins divide the confidences from 0 to 1 into intervals of equal width.
    """

    counts: NDArray[np.int64]  # [bins]
    confidences: NDArray[np.float64]  # [bins]
    accuracies: NDArray[np.float64]  # [bins]
    error: float  # expected calibration error: mean of |confidence - accuracy|, weighted by counts


def calibration(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> Calibration:
    """The calibration of top-1 predictions, from probabilities `[N,C]` and labels `[N]`.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2.

    Raises:
        ValueError: when there are no images.
    """
    if not len(labels):
        raise ValueError("there are no predictions")
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    # As in Guo et al. 2017, a bin includes its upper edge and excludes its lower edge.
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    with np.errstate(invalid="ignore"):
        confidences = np.bincount(bins, confidence, CALIBRATION_BINS) / counts
        accuracies = np.bincount(bins, correct, CALIBRATION_BINS) / counts
    error = float(np.nansum(counts * np.abs(confidences - accuracies)) / counts.sum())
    return Calibration(counts=counts, confidences=confidences, accuracies=accuracies, error=error)
