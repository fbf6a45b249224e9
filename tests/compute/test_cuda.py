"""Training on a GPU. One test uses the `meta` device instead: its tensors have no values, so reading a value fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.optim import Adam

from onecycle import cli
from onecycle.compute.plan import ComputePlan
from onecycle.core.config import Config
from onecycle.core.recipes import BASELINE, FAST
from onecycle.data import ImageSet
from onecycle.data.augment.batched import BatchedAugmentation
from onecycle.data.augment.degradation import Degradation
from onecycle.data.batches import Batches
from onecycle.data.preprocessing import Preprocessing
from onecycle.models import CustomResNet
from onecycle.run.build import assemble
from onecycle.storage.run_folder import RunFolder
from onecycle.train.loop import training_steps

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")


@pytest.mark.parametrize("degrade", [None, Degradation(0.5)], ids=["as they are", "degraded"])
def test_a_training_step_reads_nothing_from_the_device(
    tiny: tuple[ImageSet, ImageSet], degrade: Degradation | None
) -> None:
    preprocessing = Preprocessing.of(tiny[0].images)
    batches = Batches(
        tiny[0],
        preprocessing,
        batch_size=16,
        shuffle=True,
        augment_batch=BatchedAugmentation(32, [0, 0, 0]),
        degrade=degrade,
        device="meta",
    )
    model = CustomResNet().to("meta")
    steps = training_steps(
        model, Adam(model.parameters()), batches.epoch(0), lambda step: 1e-3, plan=ComputePlan(device="meta")
    )
    results = [result for _, result in steps]
    assert [result.images for result in results] == [16, 16, 16, 2]
    for result in results:
        assert (result.loss.device.type, result.correct.device.type) == ("meta", "meta")
        with pytest.raises(RuntimeError):
            result.loss.item()  # reading a value fails, so it would also have failed in a step


@contextmanager
def waiting_forbidden() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize(
    "recipe", [BASELINE, FAST, replace(FAST, degraded=0.5)], ids=["baseline", "fast", "fast, degraded"]
)
def test_an_epoch_on_a_gpu_never_waits_for_it(recipe: Config) -> None:
    config = replace(recipe, data="digits", device="cuda", augmentation="batched", batch_size=64)
    experiment = assemble(config, ComputePlan(device="cuda", precision="bfloat16", channels_last=True))
    steps = training_steps(
        experiment.plan.prepare(experiment.model),
        experiment.optimizer,
        experiment.train.epoch(0),
        lambda step: 1e-3,
        plan=experiment.plan,
    )
    next(steps)  # the first step copies the image order and random draws to the GPU, and cuDNN tries its algorithms
    with waiting_forbidden():
        rest = sum(1 for _ in steps)
    assert rest == len(experiment.train) - 1


@needs_gpu
@pytest.mark.parametrize("augmentation", ["albumentations", "batched"])
def test_a_run_on_a_gpu_learns_the_digits(augmentation: str, tmp_path: Path) -> None:
    options = f"--data digits --device cuda --augmentation {augmentation} --epochs 3 --batch-size 64 --out {tmp_path}"
    assert cli.main(["train", *options.split()]) == 0
    result = RunFolder(next(tmp_path.iterdir())).read_result()
    assert result.eval_accuracy > 0.8


@needs_gpu
def test_the_fast_recipe_on_a_gpu_learns_the_digits(tmp_path: Path) -> None:
    options = f"--recipe fast --data digits --device cuda --batch-size 64 --out {tmp_path}"
    assert cli.main(["train", *options.split()]) == 0
    assert RunFolder(next(tmp_path.iterdir())).read_result().eval_accuracy > 0.8
