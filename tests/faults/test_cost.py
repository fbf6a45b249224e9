"""What safety costs: saving the specified network's state, and looking whether its gradients are finite."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from onecycle.core.config import BASELINE
from onecycle.run.build import assemble
from onecycle.storage.checkpoint import save_state
from onecycle.train.loop import training_steps
from onecycle.train.nonfinite import all_finite

STEPS_AN_EPOCH = 98  # of 512 images, on CIFAR-10
SAVINGS_AN_EPOCH = 1  # an epoch takes less than five minutes


def seconds(work: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


@pytest.mark.long
def test_saving_and_checking_take_less_than_a_hundredth_of_an_epoch(
    cache_home: Path, tmp_path: Path, whole: bool, figures: dict[str, Any]
) -> None:
    times = 9 if whole else 3
    parts = assemble(replace(BASELINE, data="digits", batch_size=512, workers=0))
    running = parts.acceleration.prepare(parts.model)
    (batch,) = (next(iter(parts.train.epoch(0))),)
    steps = training_steps(
        running, parts.optimizer, [batch] * (times + 2), lambda step: 1e-4, acceleration=parts.acceleration
    )
    next(steps), next(steps)  # the first ones warm up
    step = seconds(lambda: next(steps), times)
    check = seconds(lambda: all_finite(torch.zeros(()), running), times)
    checkpoint, before = tmp_path / "checkpoint.safetensors", tmp_path / "before.safetensors"
    save = seconds(lambda: save_state(checkpoint, parts.model, parts.optimizer, {}, keep=before), times)
    figures["cost for the specified network"] = {
        "megabytes of a checkpoint": round(checkpoint.stat().st_size / 1e6, 1),
        "seconds to save": round(save, 3),
        "milliseconds of a step's check": round(1000 * check, 2),
        "seconds of a step of 512 images": round(step, 3),
        "part of an epoch's time": round(
            (SAVINGS_AN_EPOCH * save + STEPS_AN_EPOCH * check) / (STEPS_AN_EPOCH * step), 5
        ),
    }
    # A few times are no measurement: what is asserted is what is published.
    assert not whole or figures["cost for the specified network"]["part of an epoch's time"] < 0.01
