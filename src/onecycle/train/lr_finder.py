"""The learning-rate finder: one exponential sweep of the learning rate, and LR min and LR max from the loss curve."""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count, islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer

from onecycle.compute.plan import EAGER, ComputePlan
from onecycle.core.errors import InputError
from onecycle.data.batches import Batches
from onecycle.models import as_composite
from onecycle.storage.records import LRCurve
from onecycle.train.loop import make_train_step, training_steps
from onecycle.train.nonfinite import NonFiniteError

SMOOTHING = 0.9  # factor of the exponential moving average of the loss
DIVERGENCE = 2.0  # the sweep ends when the smoothed loss exceeds this many times its minimum
FEWEST_POINTS = 10
SMALLEST_FALL = 0.05  # relative to the first loss; a curve that falls less is flat
ONSET = 0.10  # fraction of the fall that marks the start of learning
PLATEAU = 0.95  # fraction of the fall that marks the end of learning


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

    The sweep trains copies of `model` and `optimizer` for `steps` steps on `batches`, from epoch 0 on. The originals
    and all random states stay unchanged. The sweep stops early when the loss diverges or is not finite. The curve then
    has fewer points.

    Source: Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3.

    Raises:
        InputError: when the curve has too few points, or falls too little.
    """
    # Copy both in one call, so that the copied optimizer holds the copied parameters.
    model, optimizer = copy.deepcopy((model, optimizer))
    prepared = plan.prepare(as_composite(model))
    lrs = np.geomspace(start, end, steps).tolist()
    losses: list[float] = []
    stopped = "completed"
    with _keep_random_states():
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
                losses.append(loss)
                after_step(step, lrs[step], loss)
                smoothed = smooth(losses)
                if smoothed[-1] > DIVERGENCE * smoothed.min():
                    stopped = "diverged"
                    break
        except NonFiniteError:
            stopped = "not finite"
    return read_curve(lrs[: len(losses)], losses, stopped=stopped)


@contextmanager
def _keep_random_states() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.accelerator.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def read_curve(lrs: Sequence[float], losses: Sequence[float], *, stopped: str = "completed") -> LRCurve:
    """Smooth the `losses` of a sweep over ascending `lrs`. Choose LR min, LR max and the other suggestions.

    The network learns between `lr_min` and `lr_max`. At `lr_min` the smoothed loss has fallen by the fraction `ONSET`
    of its total fall, and at `lr_max` by the fraction `PLATEAU`. The schedule has no annihilation phase: training ends
    at `lr_min`, so `lr_min` must be a rate at which the weights barely change. The smoothed loss lags about ten steps
    behind the raw loss. Both thresholds were chosen with this lag included.

    Raises:
        InputError: when there are too few points, or the loss falls too little.
    """
    if len(losses) < FEWEST_POINTS:
        raise InputError(
            f"the LR finder's sweep has {len(losses)} points ({stopped}) and needs {FEWEST_POINTS}; "
            "set --lr-min and --lr-max, or find out why the loss grows from the start"
        )
    smoothed = smooth(losses)
    lowest = int(smoothed.argmin())
    fall = smoothed[0] - smoothed[lowest]
    if fall <= SMALLEST_FALL * abs(smoothed[0]):
        raise InputError(
            f"the LR finder's loss did not fall by more than {SMALLEST_FALL:.0%}: it started at {smoothed[0]:.3f}, "
            f"and its minimum is {smoothed[lowest]:.3f}; set --lr-min and --lr-max, or check the data and labels"
        )
    fallen = (smoothed[0] - smoothed) / fall  # fraction of the fall, 1 at the minimum

    def rate_at(fraction: float) -> float:
        return float(lrs[int(np.argmax(fallen >= fraction))])

    # After its minimum the loss may jump and fall again, so the part after the minimum is ignored.
    descent = smoothed[: lowest + 1]
    slopes = np.gradient(descent, np.log(lrs[: lowest + 1]))
    return LRCurve(
        lrs=tuple(float(lr) for lr in lrs),
        losses=tuple(float(loss) for loss in losses),
        smoothed=tuple(smoothed.tolist()),
        suggestions={
            "steepest": float(lrs[int(slopes.argmin())]),
            "valley": float(lrs[_middle_of_longest_descent(descent)]),
            "minimum/10": float(lrs[lowest]) / 10,
        },
        lr_min=rate_at(ONSET),
        lr_max=rate_at(PLATEAU),
        stopped=stopped,
    )


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


def _middle_of_longest_descent(smoothed: NDArray[np.float64]) -> int:
    start, longest = 0, (0, 0)
    for index in range(1, len(smoothed)):
        if smoothed[index] >= smoothed[index - 1]:
            start = index
        longest = max(longest, (index - start, start))
    length, start = longest
    return start + length // 2
