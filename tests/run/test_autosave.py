"""What a run measures as it goes; that it is saved and goes on is tested by tests/faults."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from onecycle.core.config import QUICK, Config
from onecycle.core.metrics import margins_of
from onecycle.run import experiment
from onecycle.storage.run_folder import RunFolder
from onecycle.train.loop import StepOutcome, training_steps

# Nothing is drawn for an image, and the rate is too low to change a weight: every epoch sees the same logits.
STILL = replace(
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


def run_noting_logits(
    config: Config, out: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[RunFolder, dict[int, list[float]]]:
    """A run, and every margin that each training image had in it, by the pixels that the network was shown."""
    seen: dict[int, list[float]] = {}
    original = training_steps

    def noting(running, optimizer, batches, *rest, **options):  # type: ignore[no-untyped-def]
        def noted():  # type: ignore[no-untyped-def]
            for batch in batches:
                last.append(batch)
                yield batch

        last: list = []
        handle = running.register_forward_hook(lambda module, inputs, logits: shown.append(logits.detach().float()))
        shown: list[torch.Tensor] = []
        for outcome in original(running, optimizer, noted(), *rest, **options):
            assert isinstance(outcome, StepOutcome)
            margins = margins_of(shown[-1].numpy(), last[-1].labels.numpy())
            for image, margin in zip(last[-1].images, margins, strict=True):
                # Flipped in every other epoch: what does not change is the sum.
                seen.setdefault(round(float(image.double().sum()) * 1000), []).append(float(margin))
            yield outcome
        handle.remove()

    with monkeypatch.context() as patch:
        patch.setattr("onecycle.train.loop.training_steps", noting)
        return experiment.run(config, Console(quiet=True), out / "run"), seen


def test_each_training_image_has_the_mean_of_its_own_margins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, seen = run_noting_logits(STILL, tmp_path, monkeypatch)
    margins = run.read_arrays(run.training_margins)["margins"]
    assert margins.dtype == np.float32 and margins.shape == (50,)
    from onecycle.data.preprocessing import Preprocessing
    from onecycle.run.build import load_data

    train = load_data(STILL).train
    images = Preprocessing.of(train.images).normalize(torch.from_numpy(train.images))
    for image, margin in zip(images, margins, strict=True):
        mine = seen[round(float(image.double().sum()) * 1000)]
        if len(mine) == 3:  # else two images have one sum
            assert margin == pytest.approx(np.mean(mine), rel=1e-5, abs=1e-6)
    assert sum(len(mine) == 3 for mine in seen.values()) > 40
