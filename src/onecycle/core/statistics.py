"""Statistics over runs: means with intervals, paired differences, and agreement image by image."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEWEST_FOR_INTERVAL = 5  # with fewer values, an estimate has no interval


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The mean of a value over seeds, with its uncertainty."""

    values: tuple[float, ...]  # in the order of the seeds
    mean: float
    std: float | None  # standard deviation of the values; None for a single value
    # Student's t interval of the mean; None for fewer than FEWEST_FOR_INTERVAL values
    interval_95: tuple[float, float] | None

    @property
    def significant(self) -> bool:
        """Whether the interval excludes zero. A mean difference is significant in this case."""
        return self.interval_95 is not None and not self.interval_95[0] <= 0 <= self.interval_95[1]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of `values`, with the 95 % interval of the mean (Student's t) if there are enough values.

    Raises:
        ValueError: when there are no values.
    """
    if not values:
        raise ValueError("there are no values")
    mean = statistics.fmean(values)
    std = statistics.stdev(values) if len(values) > 1 else None
    interval = None
    if std is not None and len(values) >= FEWEST_FOR_INTERVAL:
        from scipy.stats import t as student  # loaded here: it takes a second, and training does not need it

        half = float(student.ppf(0.975, len(values) - 1)) * std / len(values) ** 0.5
        interval = mean - half, mean + half
    return Estimate(values=tuple(values), mean=mean, std=std, interval_95=interval)


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate:
    """The mean difference of `ours` minus `theirs`, over the seeds that both have.

    Both arguments map seeds to values. Each difference compares two values of the same seed, so the effect of the seed
    cancels out.

    Raises:
        ValueError: when `ours` and `theirs` have no seed in common.
    """
    return estimate([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The number of images that all runs misclassify, and the number that only some runs misclassify."""

    images: int
    wrong_in_every_run: int
    wrong_in_some_runs: int  # images that some runs misclassify and others do not

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def agreement(correct: NDArray[np.bool_]) -> Agreement:
    """The agreement of several runs. `correct` is bool `[runs,N]` and tells which predictions are correct."""
    wrong = (~correct).sum(axis=0)
    runs = len(correct)
    return Agreement(
        images=correct.shape[1],
        wrong_in_every_run=int((wrong == runs).sum()),
        wrong_in_some_runs=int(((wrong > 0) & (wrong < runs)).sum()),
    )


def accuracy_by_class(correct: NDArray[np.bool_], labels: NDArray[np.int64]) -> dict[int, Estimate]:
    """The accuracy of each class, estimated over the runs. `correct` is bool `[runs,N]`, and `labels` is `[N]`."""
    return {int(label): estimate(correct[:, labels == label].mean(axis=1).tolist()) for label in np.unique(labels)}


def accuracy_interval(correct: int, images: int) -> tuple[float, float]:
    """The 95 % interval of the accuracy `correct / images`.

    The interval covers the uncertainty from the choice of images, but not from the seed.

    Source: Wilson 1927, "Probable Inference".
    """
    z = statistics.NormalDist().inv_cdf(0.975)
    accuracy = correct / images
    center = accuracy + z**2 / (2 * images)
    half = z * ((accuracy * (1 - accuracy) + z**2 / (4 * images)) / images) ** 0.5
    scale = 1 + z**2 / images
    low, high = (center - half) / scale, (center + half) / scale
    # If no image is correct, `low` must be exactly 0. If all are, `high` must be exactly 1. Rounding can change both.
    return (low if correct else 0.0), (high if correct < images else 1.0)


@dataclass(frozen=True, kw_only=True)
class DifferenceByImage:
    """The accuracy of our network minus that of the other network, on the same images, with its 95 % interval.

    Accuracies are fractions from 0 to 1.
    """

    mean: float
    interval_95: tuple[float, float]
    only_ours: int  # images that only our network gets right
    only_theirs: int
    p_value: float  # probability of a difference this large or larger if both networks are equally accurate

    @property
    def significant(self) -> bool:
        """Whether the interval excludes zero, which means a p-value below 0.05."""
        return not self.interval_95[0] <= 0 <= self.interval_95[1]


def difference_by_image(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> DifferenceByImage:
    """Compare two networks by McNemar's exact test. Both arguments, bool `[N]`, tell which predictions are correct.

    The test uses only the images that exactly one network gets right. The number of these images that our network gets
    right follows a binomial distribution. The Clopper-Pearson interval of our network's share of these images is
    converted to the interval of the difference.

    Source: McNemar 1947, "Note on the sampling error of the difference between correlated proportions".

    Raises:
        ValueError: when the lengths differ or are zero.
    """
    if ours.shape != theirs.shape or not len(ours):
        raise ValueError(f"{len(ours)} and {len(theirs)} images cannot be compared one by one")
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    differing, images = only_ours + only_theirs, len(ours)
    interval, p_value = (0.0, 0.0), 1.0
    if differing:
        from scipy.stats import binom, binomtest  # loaded here: it takes a second, and training does not need it

        share = binomtest(only_ours, differing).proportion_ci(0.95, method="exact")
        low, high = ((2 * float(end) - 1) * differing / images for end in (share.low, share.high))
        interval = low, high
        p_value = min(1.0, 2 * float(binom.cdf(min(only_ours, only_theirs), differing, 0.5)))
    return DifferenceByImage(
        mean=(only_ours - only_theirs) / images,
        interval_95=interval,
        only_ours=only_ours,
        only_theirs=only_theirs,
        p_value=p_value,
    )
