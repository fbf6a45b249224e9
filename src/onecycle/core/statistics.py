"""What several runs say together: means with their intervals, paired differences, and where they agree."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, binomtest
from scipy.stats import t as student

FEWEST_FOR_INTERVAL = 5  # below that the values themselves say more


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds, and how sure it is."""

    values: tuple[float, ...]  # in the order of the seeds
    mean: float
    deviation: float | None  # standard deviation of a single value; None for one value alone
    interval_95: tuple[float, float] | None  # of the mean, by Student's t; None for fewer than FEWEST_FOR_INTERVAL

    @property
    def resolved(self) -> bool:
        """Whether zero lies outside of the interval: of a difference, whether it is one."""
        return self.interval_95 is not None and not self.interval_95[0] <= 0 <= self.interval_95[1]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of `values`, with the 95 % interval of the mean by Student's t where there are enough of them.

    Raises:
        ValueError: when there are no values.
    """
    if not values:
        raise ValueError("there is no mean of no values")
    mean = statistics.fmean(values)
    deviation = statistics.stdev(values) if len(values) > 1 else None
    interval = None
    if deviation is not None and len(values) >= FEWEST_FOR_INTERVAL:
        half = float(student.ppf(0.975, len(values) - 1)) * deviation / len(values) ** 0.5
        interval = mean - half, mean + half
    return Estimate(values=tuple(values), mean=mean, deviation=deviation, interval_95=interval)


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate:
    """Ours minus theirs, seed by seed, over the seeds that both have.

    Pairing takes out what a seed does to both alike.

    Raises:
        ValueError: when they have no seed in common.
    """
    return estimate([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """On which images the runs are wrong: counts of images."""

    images: int
    wrong_in_every_run: int
    wrong_in_some_runs: int  # and right in others

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def agreement(correct: NDArray[np.bool_]) -> Agreement:
    """What `correct` bool `[runs,N]` says of the N images."""
    wrong = (~correct).sum(axis=0)
    runs = len(correct)
    return Agreement(
        images=correct.shape[1],
        wrong_in_every_run=int((wrong == runs).sum()),
        wrong_in_some_runs=int(((wrong > 0) & (wrong < runs)).sum()),
    )


def accuracy_by_class(correct: NDArray[np.bool_], labels: NDArray[np.int64]) -> dict[int, Estimate]:
    """For each class that there is, the accuracy over the runs: `correct` is bool `[runs,N]`, `labels` are `[N]`."""
    return {int(label): estimate(correct[:, labels == label].mean(axis=1).tolist()) for label in np.unique(labels)}


def accuracy_interval(correct: int, images: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy that was measured on so many images: what other images might have shown.

    It knows nothing of other seeds. Source: Wilson 1927, "Probable Inference".
    """
    interval = binomtest(correct, images).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True, kw_only=True)
class DifferenceByImage:
    """How much more of the same images one network has right than another: a fraction, with its 95 % interval."""

    mean: float
    interval_95: tuple[float, float]
    only_ours: int  # images that only the one has right
    only_theirs: int
    p_value: float  # of seeing this or more where both are right equally often

    @property
    def resolved(self) -> bool:
        """Whether zero lies outside of the interval, which is when the p-value is below 0.05."""
        return not self.interval_95[0] <= 0 <= self.interval_95[1]


def difference_by_image(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> DifferenceByImage:
    """Of whether each image is right, bool `[N]`, in both networks: McNemar's exact test, and the interval that goes
    with it.

    Only images that one of the two has right tell them apart. The part of these that ours has right is a binomial
    share, with Clopper and Pearson's interval. Source: McNemar 1947, "Note on the sampling error of the difference
    between correlated proportions".

    Raises:
        ValueError: when they are not of the same images, or of none.
    """
    if ours.shape != theirs.shape or not len(ours):
        raise ValueError(f"{len(ours)} and {len(theirs)} images cannot be compared one by one")
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    differing, images = only_ours + only_theirs, len(ours)
    interval, p_value = (0.0, 0.0), 1.0
    if differing:
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
