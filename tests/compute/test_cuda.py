"""Training on a GPU. The `meta` device, which has no values that could be waited for, stands in where there is none."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.optim import Adam

from onecycle import cli
from onecycle.compute.plan import Acceleration
from onecycle.core.config import BASELINE, FAST, Config
from onecycle.data import ImageSet
from onecycle.data.augment.batched import BatchedAugmentation
from onecycle.data.batches import Batches
from onecycle.data.preprocessing import Preprocessing
from onecycle.models import CustomResNet
from onecycle.run.build import assemble
from onecycle.storage.run_folder import RunFolder
from onecycle.train.loop import training_steps

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")


def test_a_training_step_reads_nothing_from_the_device(tiny: tuple[ImageSet, ImageSet]) -> None:
    preprocessing = Preprocessing.of(tiny[0].images)
    batches = Batches(
        tiny[0],
        preprocessing,
        batch_size=16,
        shuffle=True,
        augment_batch=BatchedAugmentation(32, [0, 0, 0]),
        device="meta",
    )
    model = CustomResNet().to("meta")
    steps = training_steps(
        model, Adam(model.parameters()), batches.epoch(0), lambda step: 1e-3, acceleration=Acceleration(device="meta")
    )
    outcomes = list(steps)
    assert [outcome.images for outcome in outcomes] == [16, 16, 16, 2]
    for outcome in outcomes:
        assert (outcome.loss.device.type, outcome.correct.device.type) == ("meta", "meta")
        with pytest.raises(RuntimeError):
            outcome.loss.item()  # so a look at a value would have been noticed


@contextmanager
def waiting_forbidden() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("recipe", [BASELINE, FAST], ids=["baseline", "fast"])
def test_an_epoch_on_a_gpu_never_waits_for_it(recipe: Config) -> None:
    config = replace(recipe, data="digits", device="cuda", augmentation="batched", batch_size=64)
    parts = assemble(config, Acceleration(device="cuda", precision="bfloat16", channels_last=True))
    steps = training_steps(
        parts.acceleration.prepare(parts.model),
        parts.optimizer,
        parts.train.epoch(0),
        lambda step: 1e-3,
        acceleration=parts.acceleration,
    )
    next(steps)  # the epoch's order and draws are sent, and algorithms are searched for
    with waiting_forbidden():
        rest = sum(1 for _ in steps)
    assert rest == len(parts.train) - 1


@needs_gpu
@pytest.mark.parametrize("augmentation", ["albumentations", "batched"])
def test_a_run_on_a_gpu_learns_the_digits(augmentation: str, tmp_path: Path) -> None:
    options = f"--data digits --device cuda --augmentation {augmentation} --epochs 3 --batch-size 64 --out {tmp_path}"
    assert cli.main(["train", *options.split()]) == 0
    result = RunFolder(next(tmp_path.iterdir())).read_result()
    assert result.test_accuracy > 0.8


@needs_gpu
def test_a_recipe_for_the_impatient_on_a_gpu_learns_the_digits(tmp_path: Path) -> None:
    options = f"--recipe fast --data digits --device cuda --batch-size 64 --out {tmp_path}"
    assert cli.main(["train", *options.split()]) == 0
    assert RunFolder(next(tmp_path.iterdir())).read_result().test_accuracy > 0.8
