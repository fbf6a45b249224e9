"""The cost of saving checkpoints of the custom ResNet, and of checking that its gradients are finite."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from onecycle.core.recipes import BASELINE
from onecycle.run.build import assemble
from onecycle.storage.checkpoint import save_checkpoint
from onecycle.train.loop import training_steps
from onecycle.train.nonfinite import all_finite

STEPS_PER_EPOCH = 98  # batches of 512 images, on CIFAR-10
CHECKPOINTS_PER_EPOCH = 1  # saved at the end of the epoch; only epochs of more than five minutes save others


def seconds(work: Callable[[], object], times: int) -> float:
    """The median duration of `times` calls."""
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
    experiment = assemble(replace(BASELINE, data="digits", batch_size=512, workers=0))
    model, optimizer, plan = experiment.model, experiment.optimizer, experiment.plan
    prepared = plan.prepare(model)
    batch = next(iter(experiment.train.epoch(0)))
    steps = training_steps(prepared, optimizer, [batch] * (times + 2), lambda step: 1e-4, plan=plan)
    next(steps), next(steps)  # warm up
    step = seconds(lambda: next(steps), times)
    check = seconds(lambda: all_finite(torch.zeros(()), prepared), times)
    checkpoint, before = tmp_path / "checkpoint.safetensors", tmp_path / "before.safetensors"
    save = seconds(lambda: save_checkpoint(checkpoint, model, optimizer, {}, keep=before), times)
    figures["cost for the specified network"] = {
        "megabytes of a checkpoint": round(checkpoint.stat().st_size / 1e6, 1),
        "seconds to save": round(save, 3),
        "milliseconds of a step's check": round(1000 * check, 2),
        "seconds of a step of 512 images": round(step, 3),
        "part of an epoch's time": round(
            (CHECKPOINTS_PER_EPOCH * save + STEPS_PER_EPOCH * check) / (STEPS_PER_EPOCH * step), 5
        ),
    }
    # Check this only with --whole, because otherwise the measurement has too few repetitions to be reliable.
    assert not whole or figures["cost for the specified network"]["part of an epoch's time"] < 0.01
