"""Train a network on your own images in class folders, and predict the classes of new images."""

import json
from pathlib import Path

import numpy as np
import pytest
from networks import NARROW
from PIL import Image

from onecycle.cli import main
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


def test_too_few_images_for_the_batch_size_are_reported_in_one_line(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--data", str(photos), "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == ("onecycle: 67 training images are too few for batches of 512; use --batch-size 16, or add images")
    assert not list(tmp_path.iterdir())


def test_sizes_that_do_not_end_with_the_size_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--recipe", "quick", "--size", "64"]) == 2
    assert (
        "--sizes is (24, 28, 32); it must be sizes that end with --size; use --sizes 64, or several"
        in capsys.readouterr().err
    )
