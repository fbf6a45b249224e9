"""The whole of `make train`, in small: it finds its rates and learns."""

from pathlib import Path

from onecycle import cli
from onecycle.run_folder import RunFolder

SHARED = Path(__file__).resolve().parents[3] / "shared/cifar10/cifar-10-binary.tar.gz"


def test_a_short_run_finds_its_rates_and_learns(tmp_path: Path) -> None:
    """On a slice of CIFAR-10 where it is at hand, else on digits; chance is 10 %."""
    data = str(SHARED) if SHARED.is_file() else "digits"
    options = ["--limit", "2048", "--batch-size", "64", "--epochs", "3", "--out", str(tmp_path)]
    assert cli.main(["train", "--data", data, *options]) == 0
    folder = RunFolder(next(tmp_path.iterdir()))
    result, history, curve = folder.read_result(), folder.read_history(), folder.read_lr_curve()
    assert curve is not None and (result.lr_min, result.lr_max) == (curve.lr_min, curve.lr_max)
    assert 1e-6 <= result.lr_min < result.lr_max / 10 < 1e-2
    assert history[-1].train_loss < history[0].train_loss
    assert result.test_accuracy > 0.35
