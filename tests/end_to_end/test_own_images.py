"""Train a network on your own images in class folders, and predict the classes of new images."""

import json
from pathlib import Path

import numpy as np
import pytest
from networks import NARROW
from PIL import Image

from onecycle.cli import main
from onecycle.compute import autotune
from onecycle.storage.run_folder import RunFolder

COUNTS = {"blue": 24, "red": 60}
OPTIONS = "--epochs 3 --batch-size 16 --workers 0 --no-report --lr-min 1e-5 --lr-max 2e-3"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with images of many sizes. One class is reddish and the other is bluish."""
    folder, rng = tmp_path_factory.mktemp("own") / "photos", np.random.default_rng(0)
    for channel, (name, count) in zip((2, 0), COUNTS.items(), strict=True):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 128, (*rng.integers(40, 90, 2), 3), dtype=np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def test_a_network_learns_your_own_images_and_predicts_new_ones(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = f"{OPTIONS} --size 24 --class-weights --out {tmp_path}"
    assert main(["train", "--data", str(photos), *options.split()]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "There is no test set, so 20% of each class, 17 images, were drawn" in out
    assert "imbalanced" not in out
    folder = RunFolder(next(tmp_path.iterdir()))
    drawn = folder.read_json(folder.drawn_test_images)["test"]
    assert len(drawn) == 17 == folder.read_result().eval_images
    assert sum(name.startswith("red/") for name in drawn) == 12
    assert folder.read_result().eval_accuracy == 1
    assert main(["predict", "--run", str(folder.path), "--json", *(str(photos / name) for name in drawn)]) == 0
    for line, name in zip(capsys.readouterr().out.splitlines(), drawn, strict=True):
        assert json.loads(line)["predictions"][0]["class_name"] == name.split("/")[0]


def test_class_weights_are_suggested_when_the_classes_are_imbalanced(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--batch-size", "16", "--workers", "0", "--out", str(tmp_path)]
    assert main(["find-lr", *NARROW, "--data", str(photos), *options]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert (
        "The classes are imbalanced (19 to 48 training images each): use --class-weights to weight them equally" in out
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--batch-size 512", "67 training images are too few for batches of 512; use --batch-size 16, or add images"),
        ("--batch-size 67 --epochs 1", "67 images in batches of 67 make only 1 step, but one cycle needs at least 2; "),
        ("--recipe quick --size 64 --sizes 32 48", "--sizes is (32, 48); it must be sizes that end with --size; "),
        ("--recipe quick --size 8", "images of 8×8 are too small: the network halves them three times; "),
    ],
)
def test_values_that_do_not_fit_the_images_are_refused_before_plans_are_measured(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: str,
    message: str,
) -> None:
    monkeypatch.setattr(autotune, "choose", None)
    for command in ("train", "find-lr"):
        assert main([command, "--data", str(photos), "--out", str(tmp_path), *options.split()]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"onecycle: {message}")
    assert not list(tmp_path.iterdir())


def test_values_that_nobody_names_fit_the_images_and_are_recorded(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--recipe quick --widths 8 8 8 --size 16 --epochs 2 --no-report"
    assert main(["train", "--data", str(photos), *options.split(), "--out", str(tmp_path / "first")]) == 0
    line = (
        "The values of quick are for 50,000 images of 32 pixels; for 67 images of 16 pixels, this run uses "
        "--batch-size 34 instead of 1000, --sizes 12 14 16 instead of 24 28 32"
    )
    assert line in " ".join(capsys.readouterr().out.split())
    (run,) = map(RunFolder, (tmp_path / "first").iterdir())
    config = run.read_json(run.config)
    assert (config["batch_size"], config["epochs"], config["sizes"]) == (34, 2, [12, 14, 16])
    assert config["from_data"] == []
    assert main(["train", "--config", str(run.config), "--out", str(tmp_path / "again")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "so the result has the same bits" in out and "The values of quick" not in out
    (again,) = map(RunFolder, (tmp_path / "again").iterdir())
    assert again.weights.read_bytes() == run.weights.read_bytes()
