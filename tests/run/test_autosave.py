"""Tests of the margins that a run records. tests/faults has the tests of saving and resuming."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from onecycle.core.config import Config
from onecycle.core.metrics import margins_of
from onecycle.core.recipes import QUICK
from onecycle.run import experiment
from onecycle.storage.run_folder import RunFolder
from onecycle.train.loop import training_steps
from onecycle.train.train_step import StepResult

# There is no random augmentation, and the learning rate is too low to change a weight. So all epochs have the same
# logits.
CONSTANT = replace(
    QUICK,
    data="digits",
    limit=50,
    epochs=3,
    batch_size=16,
    widths=(8, 8, 8),
    sizes=(),
    padding=0,
    flip="alternating",
    lr_max=1e-30,
    lr_min=0.0,
    report=False,
)


def run_recording_margins(
    config: Config, out: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[RunFolder, dict[int, list[float]]]:
    """Run `config`. Returns the run folder, and a list of margins for each training image.

    The dictionary's key for an image is 1000 times the sum of its normalized pixels, rounded.
    """
    recorded: dict[int, list[float]] = {}
    original = training_steps

    def recording(prepared, optimizer, batches, *rest, **options):  # type: ignore[no-untyped-def]
        def recorded_batches():  # type: ignore[no-untyped-def]
            for batch in batches:
                seen.append(batch)
                yield batch

        seen: list = []
        logits_of_steps: list[torch.Tensor] = []
        handle = prepared.register_forward_hook(
            lambda module, inputs, logits: logits_of_steps.append(logits.detach().float())
        )
        for step, result in original(prepared, optimizer, recorded_batches(), *rest, **options):
            assert isinstance(result, StepResult)
            margins = margins_of(logits_of_steps[-1].numpy(), seen[-1].labels.numpy())
            for image, margin in zip(seen[-1].images, margins, strict=True):
                # The sum of its pixels identifies an image in all epochs, because a flip does not change the sum.
                recorded.setdefault(round(float(image.double().sum()) * 1000), []).append(float(margin))
            yield step, result
        handle.remove()

    with monkeypatch.context() as patch:
        patch.setattr("onecycle.train.loop.training_steps", recording)
        return experiment.run(config, Console(quiet=True), out / "run"), recorded


def test_each_training_image_has_the_mean_of_its_own_margins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, recorded = run_recording_margins(CONSTANT, tmp_path, monkeypatch)
    margins = run.read_arrays(run.training_margins)["margins"]
    assert margins.dtype == np.float32 and margins.shape == (50,)
    from onecycle.data.preprocessing import Preprocessing
    from onecycle.run.build import load_data

    train = load_data(CONSTANT).train
    images = Preprocessing.of(train.images).normalize(torch.from_numpy(train.images))
    for image, margin in zip(images, margins, strict=True):
        of_image = recorded[round(float(image.double().sum()) * 1000)]
        if len(of_image) == 3:  # one margin per epoch; longer lists mix images with equal keys
            assert margin == pytest.approx(np.mean(of_image), rel=1e-5, abs=1e-6)
    assert sum(len(of_image) == 3 for of_image in recorded.values()) > 40
