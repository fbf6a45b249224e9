"""The learning-rate finder. It raises the learning rate exponentially, and reads LR min and LR max from the losses."""

import copy
import math
from collections.abc import Callable, Sequence
from itertools import chain, count, islice

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer

from onecycle.compute.plan import EAGER, ComputePlan
from onecycle.core.errors import InputError
from onecycle.data.batches import Batches
from onecycle.storage.records import LRCurve
from onecycle.train.loop import make_train_step, prepare, require_optimized, training_steps
from onecycle.train.nonfinite import NonFiniteError
from onecycle.train.random_states import keep_random_states
from onecycle.train.single_images import require_trainable

SMOOTHING = 0.9  # factor of the exponential moving average of the loss
DIVERGENCE = 2.0  # the sweep ends when the smoothed loss exceeds this many times its minimum
FEWEST_POINTS = 10
# The sweep skips the last batch of an epoch if it has less than this fraction of the images of a full batch. The loss
# of such a small batch is noisy: its standard deviation is more than twice that of a full batch. It is also shifted,
# because batch norm computes its statistics from few images. The sweep could take such a loss for divergence, and end.
SMALLEST_SHARE = 0.25
START_POINTS = 5  # the loss at the start is estimated from this many losses
SMALLEST_FALL = 0.05  # relative to the loss at the start; a curve that falls less is flat
# If the loss falls by less than this many standard deviations of a batch's loss, the fall may be noise. Losses without
# a trend have a larger fall in about 1 of 100 sweeps. This holds for normal, uniform, log-normal and gamma
# distributed noise.
NOISE_FALL = 2.0
ONSET = 0.10  # at LR min, the smoothed loss has completed this fraction of its total decrease
PLATEAU = 0.95  # at LR max, the smoothed loss has completed this fraction of its total decrease


def find_lr(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Batches,
    *,
    plan: ComputePlan = EAGER,
    start: float = 1e-6,
    end: float = 1.0,
    steps: int = 100,
    after_step: Callable[[int, float, float], None] = lambda step, lr, loss: None,
) -> LRCurve:
    """Sweep the learning rate from `start` to `end` on a log scale. Choose LR min and LR max from the losses.

    The sweep trains copies of `model` and `optimizer` for `steps` steps on `batches_of_sweep(batches)`, from epoch 0
    on. The originals and all random states stay unchanged. The sweep stops early when the loss diverges or is not
    finite. The curve then has fewer points.

    Source: Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3.

    Raises:
        InputError: when the curve has too few points or falls too little, or when `batches` has a batch or shard with a
            single image on which `model` cannot be trained.
        ValueError: before the first step, when `optimizer` holds no trainable parameter of `model`, or when `model`
            does not give one logit for each class.
    """
    require_optimized(model, optimizer)
    require_trainable(model, batches)
    batches = batches_of_sweep(batches)
    # Copy both in one call, so that the copied optimizer holds the copied parameters.
    model, optimizer = copy.deepcopy((model, optimizer))
    prepared = prepare(model, batches, plan)
    lrs = np.geomspace(start, end, steps).tolist()
    losses: list[float] = []
    stopped = "completed"
    with keep_random_states():
        endless = chain.from_iterable(batches.epoch(epoch) for epoch in count())
        sweep = training_steps(
            prepared,
            optimizer,
            endless,
            lrs.__getitem__,
            plan=plan,
            train_step=make_train_step(batches, plan),
            group=batches.group,
        )
        try:
            for step, result in islice(sweep, steps):
                loss = float(result.loss)
                if not math.isfinite(loss):  # never true on a CPU, where `training_steps` raises an error
                    stopped = "not finite"
                    break
                losses.append(loss)
                after_step(step, lrs[step], loss)
                settled = smooth(losses)[START_POINTS - 1 :]  # averages of several losses
                if len(settled) and settled[-1] > DIVERGENCE * settled.min():
                    stopped = "diverged"
                    break
        except NonFiniteError:
            stopped = "not finite"
    return read_curve(lrs[: len(losses)], losses, stopped=stopped)


def batches_of_sweep(batches: Batches) -> Batches:
    """Leave out the last batch of each epoch if that batch is much smaller than the others."""
    last = len(batches) - 1
    return batches.without_last() if batches.size(last) < SMALLEST_SHARE * batches.size(0) else batches


def read_curve(lrs: Sequence[float], losses: Sequence[float], *, stopped: str = "completed") -> LRCurve:
    """Smooth the `losses` of a sweep over ascending `lrs`. Choose LR min, LR max and the other suggestions.

    The network learns between `lr_min` and `lr_max`. At `lr_min` the smoothed loss has completed the fraction `ONSET`
    of its total decrease. From `lr_min` on, the smoothed loss does not rise above this level again before its minimum.
    At `lr_max` the smoothed loss has completed the fraction `PLATEAU`. Both rates are after the first tenth of the
    sweep.

    The schedule has no annihilation phase: training ends at `lr_min`, so `lr_min` must be a rate at which the weights
    barely change. The smoothed loss lags about ten steps behind the raw loss. Both thresholds were chosen with this lag
    included.

    Raises:
        InputError: when there are too few points, or the loss is flat, or noise could explain its fall.
    """
    if len(losses) < FEWEST_POINTS:
        raise InputError(
            f"the LR finder's sweep has {len(losses)} points ({stopped}) and needs {FEWEST_POINTS}; "
            "set --lr-min and --lr-max, or find out why the loss grows from the start"
        )
    smoothed = smooth(losses)
    first = max(START_POINTS, len(losses) // 10)  # before this step, the smoothed loss averages only a few losses
    lowest = first + int(smoothed[first:].argmin())
    start = _loss_at_start(losses[:START_POINTS], smoothed[lowest])
    fall = start - smoothed[lowest]
    if fall <= SMALLEST_FALL * abs(start):
        raise InputError(
            f"the LR finder's loss did not fall by more than {SMALLEST_FALL:.0%}: it started at {start:.3f}, "
            f"and its minimum is {smoothed[lowest]:.3f}; set --lr-min and --lr-max, or check the data and labels"
        )
    if fall <= NOISE_FALL * (noise := _noise(losses[: max(lowest + 1, FEWEST_POINTS)])):
        raise InputError(
            f"the LR finder's loss did not fall by more than noise explains: it fell by {fall:.3f}, and the standard "
            f"deviation of a batch's loss is {noise:.3f}; use a larger --batch-size, or set --lr-min and --lr-max"
        )
    # After its minimum the loss may jump and fall again, so the part after the minimum is ignored.
    fallen = (start - smoothed[: lowest + 1]) / fall  # the fall so far, as a fraction of the total fall
    # Take the last crossing of the threshold, because noise may cause earlier ones.
    onset = int(np.flatnonzero(fallen < ONSET).max(initial=first - 1)) + 1
    slopes = np.gradient(smoothed[: lowest + 1], np.log(lrs[: lowest + 1]))
    return LRCurve(
        lrs=tuple(float(lr) for lr in lrs),
        losses=tuple(float(loss) for loss in losses),
        smoothed=tuple(smoothed.tolist()),
        suggestions={
            "steepest": float(lrs[first + int(slopes[first:].argmin())]),
            "valley": float(lrs[first + _valley(smoothed[first : lowest + 1])]),
            "minimum/10": float(lrs[lowest]) / 10,
        },
        lr_min=float(lrs[onset]),
        lr_max=float(lrs[onset + int(np.argmax(fallen[onset:] >= PLATEAU))]),
        stopped=stopped,
    )


def _loss_at_start(losses: Sequence[float], lowest: float) -> float:
    """Estimate the loss before the network learns. Uses the sweep's first `losses` and its `lowest` smoothed loss.

    The first loss is from a single batch. The median of several losses is more certain, but some of them may already
    have fallen. The result is therefore the first loss, clamped to median ± margin. The margin is `ONSET` / 2 times the
    distance between the median and `lowest`.
    """
    median = float(np.median(losses))
    margin = ONSET / 2 * abs(median - lowest)
    return min(max(losses[0], median - margin), median + margin)


def _noise(losses: Sequence[float]) -> float:
    """The standard deviation of independent noise in `losses`. Second differences remove the trend in the losses."""
    return float(np.sqrt(np.mean(np.diff(losses, 2) ** 2) / 6))


def smooth(losses: Sequence[float]) -> NDArray[np.float64]:
    """The exponential moving average of `losses` with bias correction, float64 `[N]`.

    Without the correction the average would start near zero instead of at the first loss. Source: Kingma & Ba 2015,
    "Adam", section 3.
    """
    mean, means = 0.0, []
    for step, loss in enumerate(losses, start=1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        means.append(mean / (1 - SMOOTHING**step))
    return np.array(means)


def _valley(smoothed: NDArray[np.float64]) -> int:
    """The index of the middle of the longest valley, which is the longest decreasing subsequence of `smoothed` `[N]`.

    As in fastai, the subsequence may skip points, but the middle does not account for them: it is about half the
    subsequence's length before its end.
    Source: `valley` in `fastai.callback.schedule`.
    """
    lengths = np.ones(len(smoothed), np.int64)  # length of the longest decreasing subsequence that ends at each point
    for index in range(1, len(smoothed)):
        lengths[index] = 1 + lengths[:index][smoothed[:index] > smoothed[index]].max(initial=0)
    end = int(lengths.argmax())
    length = int(lengths[end])
    return end - length + length // 3 + length // 6
