"""Train on an archive in CIFAR-100's official layout with the options of the command line."""

from pathlib import Path

import numpy as np
import pytest
from cifar100_files import archived, write_python

from onecycle.cli import main
from onecycle.storage.run_folder import RunFolder

OPTIONS = (
    "--recipe fast --coarse --widths 8 8 8 --sizes 32 --epochs 2 --batch-size 40 --limit 40 --workers 0 --no-report "
    "--lr-min 1e-4 --lr-max 2e-3"
)


def test_the_fast_recipe_trains_on_the_coarse_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    labels = {split: np.arange(count) % 100 for split, count in (("train", 200), ("test", 100))}
    images = {split: rng.integers(0, 256, (len(each), 32, 32, 3), np.uint8) for split, each in labels.items()}
    archive = archived(write_python(tmp_path / "cifar-100-python", images, labels))
    assert main(["train", "--data", str(archive), *OPTIONS.split(), "--out", str(tmp_path / "runs")]) == 0
    assert f"Data: CIFAR-100, python version, from {archive}, coarse" in " ".join(capsys.readouterr().out.split())
    run = RunFolder(next((tmp_path / "runs").iterdir()))
    assert run.path.name.startswith("fast-cifar100-")
    assert run.read_predictions().logits.shape == (40, 20)
    assert main(["evaluate", "--run", str(run.path)]) == 0  # the run records which labels it was trained on
