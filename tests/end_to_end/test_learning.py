"""Training reaches a high accuracy on a part of CIFAR-10, or on digits if the CIFAR-10 archive is missing."""

from pathlib import Path

import pytest

from onecycle import cli
from onecycle.storage.run_folder import RunFolder

SHARED = Path(__file__).resolve().parents[3] / "shared/cifar10/cifar-10-binary.tar.gz"
DATA = str(SHARED) if SHARED.is_file() else "digits"
CHANCE = 0.1


def trained(out: Path, *options: str) -> RunFolder:
    assert cli.main(["train", "--data", DATA, *options, "--out", str(out)]) == 0
    (path,) = out.iterdir()
    return RunFolder(path)


def test_a_narrow_network_learns(tmp_path: Path) -> None:
    narrow = ["--recipe", "quick", "--widths", "16", "32", "64"]
    run = trained(tmp_path, *narrow, "--limit", "5000", "--batch-size", "100", "--no-report")
    losses = [record.train_loss for record in run.read_history()]
    assert losses == sorted(losses, reverse=True)
    assert run.read_result().eval_accuracy > 0.55 > 5 * CHANCE


def test_the_specified_network_is_trained_from_data_to_a_report(tmp_path: Path) -> None:
    """Ten images in batches of five make two training steps, so that the test is short."""
    rates = ["--lr-min", "1e-5", "--lr-max", "1e-3"]
    run = trained(tmp_path, "--limit", "10", "--epochs", "1", "--batch-size", "5", *rates)
    assert run.read_result().parameters == 6_573_120
    assert run.report.exists()
    assert cli.main(["evaluate", "--run", str(run.path)]) == 0, "the result is the same to the last digit"


@pytest.mark.long
def test_the_specified_network_finds_its_rates_and_learns(tmp_path: Path) -> None:
    run = trained(tmp_path, "--limit", "2048", "--batch-size", "64", "--epochs", "3")
    result, history, curve = run.read_result(), run.read_history(), run.read_lr_curve()
    assert curve is not None and (result.lr_min, result.lr_max) == (curve.lr_min, curve.lr_max)
    assert 1e-6 <= result.lr_min < result.lr_max / 10 < 1e-2
    assert history[-1].train_loss < history[0].train_loss
    assert result.eval_accuracy > 0.35 > 3 * CHANCE
