"""The learning-rate finder: one exponential sweep, and the pair of rates for the schedule, read off its curve."""

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

from onecycle.compute.plan import PLAIN, Acceleration
from onecycle.core.errors import InputError
from onecycle.data.batches import Batches
from onecycle.models import as_composite
from onecycle.storage.records import LRCurve
from onecycle.train.loop import training_steps
from onecycle.train.nonfinite import NonFiniteError
from onecycle.train.sharded_step import learning

SMOOTHING = 0.9  # weight of the past in the running mean of the loss
DIVERGENCE = 2.0  # the sweep ends when the smoothed loss exceeds this many times its minimum
FEWEST_POINTS = 10
SMALLEST_FALL = 0.05  # of the first loss; a curve that falls less is flat
ONSET = 0.10  # part of the fall after which learning has begun
PLATEAU = 0.95  # part of the fall after which it has slowed


def find_lr(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Batches,
    *,
    acceleration: Acceleration = PLAIN,
    start: float = 1e-6,
    end: float = 1.0,
    steps: int = 100,
    after_step: Callable[[int, float, float], None] = lambda step, lr, loss: None,
) -> LRCurve:
    """Sweep the learning rate from `start` to `end` in equal ratios, one training step each, and read off a pair.

    It trains copies of `model` and `optimizer` on `batches` from epoch 0 on; the originals, and every random state, are
    afterwards as before. The sweep ends early when the loss diverges or is not finite, and keeps what came before.

    Source: Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3.

    Raises:
        InputError: when the curve has too few points, or never falls.
    """
    # One call copies both, so that the copied optimizer holds the copied parameters.
    model, optimizer = copy.deepcopy((model, optimizer))
    running = acceleration.prepare(as_composite(model))
    lrs = np.geomspace(start, end, steps).tolist()
    losses: list[float] = []
    stopped = "completed"
    with _random_states_kept():
        endless = chain.from_iterable(batches.epoch(epoch) for epoch in count())
        sweep = training_steps(
            running,
            optimizer,
            endless,
            lrs.__getitem__,
            acceleration=acceleration,
            learn=learning(batches, acceleration),
        )
        try:
            for outcome in islice(sweep, steps):
                loss = float(outcome.loss)
                losses.append(loss)
                after_step(outcome.step, lrs[outcome.step], loss)
                smoothed = smooth(losses)
                if smoothed[-1] > DIVERGENCE * smoothed.min():
                    stopped = "diverged"
                    break
        except NonFiniteError:
            stopped = "not finite"
    return read_curve(lrs[: len(losses)], losses, stopped=stopped)


@contextmanager
def _random_states_kept() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.accelerator.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def read_curve(lrs: Sequence[float], losses: Sequence[float], *, stopped: str = "completed") -> LRCurve:
    """Smooth the `losses` of a sweep over ascending `lrs`, and read off the pair and the suggestions.

    The pair are the two ends of the stretch over which the network learns, in Smith's words where the curve starts to
    move and where it slows: `lr_min` is the rate at which the smoothed loss has come through `ONSET` of its whole fall,
    `lr_max` that at which it has come through `PLATEAU` of it. Without annihilation `lr_min` is also where training
    ends, so it must be a rate at which the network barely moves, and that is what the rule says. The smoothed loss lags
    behind the raw one by about ten steps of the sweep; both rules were chosen with that lag in them.

    Raises:
        InputError: when there are too few points, or the loss does not fall.
    """
    if len(losses) < FEWEST_POINTS:
        raise InputError(
            f"the LR finder's sweep has {len(losses)} points ({stopped}) and needs {FEWEST_POINTS}; "
            "give --lr-min and --lr-max, or look for what makes the loss grow at once"
        )
    smoothed = smooth(losses)
    lowest = int(smoothed.argmin())
    fall = smoothed[0] - smoothed[lowest]
    if fall <= SMALLEST_FALL * abs(smoothed[0]):
        raise InputError(
            f"the LR finder's loss did not fall by more than {SMALLEST_FALL:.0%}: it began at {smoothed[0]:.3f}, "
            f"and its lowest is {smoothed[lowest]:.3f}; give --lr-min and --lr-max, or look at the data and labels"
        )
    fallen = (smoothed[0] - smoothed) / fall  # the part of the fall that is done, 1 at the lowest point

    def rate_at(part: float) -> float:
        return float(lrs[int(np.argmax(fallen >= part))])

    # Beyond its lowest point the loss may fall again, from wherever it was thrown: nothing is read there.
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
    """Running mean float64 `[N]` of `losses` with exponential weights, each divided by the weight gathered so far.

    Without that correction the mean would start at zero instead of at the first loss. Source: Kingma & Ba 2015,
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
