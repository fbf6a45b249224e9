"""Whatever is wrong with the input: exit code 2, one line that says so, and nothing left behind."""

import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from onecycle.cli import main

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command line that must be refused, and returns the line that says why."""
    somewhere = tmp_path / "somewhere"
    somewhere.mkdir()
    monkeypatch.chdir(somewhere)  # without ./data and ./runs

    def refused(*arguments: str | Path) -> str:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert code == 2, captured
        assert captured.err.startswith("onecycle: ")
        assert captured.err.count("\n") == 1, captured.err
        assert "Traceback" not in captured.out + captured.err
        assert list(somewhere.iterdir()) == []
        return captured.err

    return refused


@pytest.fixture
def copied(image_folder: Path, tmp_path: Path) -> Path:
    """An image folder of one's own, to be damaged."""
    return Path(shutil.copytree(image_folder, tmp_path / "pictures"))


# Data


def test_a_path_that_is_not_there(refused: Refused) -> None:
    assert "no/such/place: no such file or folder" in refused("train", "--data", "no/such/place")


def test_an_empty_folder(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "the folder is empty" in refused("train", "--data", tmp_path / "empty")


def test_a_class_folder_without_images(refused: Refused, copied: Path) -> None:
    (copied / "train" / "ten").mkdir()
    (copied / "test" / "ten").mkdir()
    assert "class folder train/ten has no images" in refused("train", "--data", copied)


def test_a_single_class(refused: Refused, copied: Path) -> None:
    for split in ("train", "test"):
        for name in "012345678":
            shutil.rmtree(copied / split / name)
    assert "one class only, '9'" in refused("train", "--data", copied)


def test_different_classes_for_training_and_testing(refused: Refused, copied: Path) -> None:
    (copied / "test" / "9").rename(copied / "test" / "nine")
    assert "different classes" in refused("train", "--data", copied)


def test_a_truncated_jpeg(refused: Refused, copied: Path) -> None:
    path = copied / "train" / "3" / "digit.jpg"
    Image.new("RGB", (64, 64), "red").save(path)
    path.write_bytes(path.read_bytes()[:-50])
    assert "train/3/digit.jpg: the picture cannot be read" in refused("train", "--data", copied)


def test_a_text_file_named_jpeg(refused: Refused, copied: Path) -> None:
    (copied / "test" / "3" / "digit.jpg").write_text("this is no picture")
    assert "test/3/digit.jpg: not a picture" in refused("train", "--data", copied)


@pytest.mark.parametrize("keep", [0.5, 0.98])
def test_a_truncated_archive(refused: Refused, binary_archive: Path, tmp_path: Path, keep: float) -> None:
    content = binary_archive.read_bytes()
    cut = tmp_path / binary_archive.name
    cut.write_bytes(content[: int(keep * len(content))])
    assert f"{cut}: cannot be read to its end" in refused("train", "--data", cut)


class MakesAFolder:
    """Pickled, it makes a folder where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_a_python_archive_that_calls_something_else_which_is_not_called(
    refused: Refused, python_folder: Path, tmp_path: Path
) -> None:
    called = tmp_path / "called"
    evil = Path(shutil.copytree(python_folder, tmp_path / "cifar-10-batches-py"))
    harmful = pickle.dumps({b"labels": [], b"data": MakesAFolder(called)}, protocol=2)
    (evil / "data_batch_1").write_bytes(harmful)
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(evil, evil.name)
    for data in (archive, evil):
        assert "data_batch_1 wants to call" in refused("train", "--data", data)
        assert not called.exists()
    pickle.loads(harmful)  # it would have been
    assert called.is_dir()


@pytest.mark.parametrize("command", ["train", "find-lr"])
def test_no_network_for_the_download_names_the_ways_out(refused: Refused, command: str) -> None:
    line = refused(command)
    for way_out in ("cifar-10-binary.tar.gz", "--data PATH", "$ONECYCLE_DATA", "--data digits"):
        assert way_out in line


def test_data_named_by_the_environment_that_are_not_there(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ONECYCLE_DATA", str(tmp_path / "gone"))
    assert "$ONECYCLE_DATA" in refused("train")


@pytest.mark.parametrize("limit", [1, 9])
def test_a_limit_below_the_number_of_classes(refused: Refused, limit: int) -> None:
    line = refused("train", "--data", "digits", "--limit", f"{limit}")
    assert f"--limit is {limit}; for 10 classes" in line


def test_a_validation_set_that_leaves_nothing_to_train_on(refused: Refused) -> None:
    assert "--validation is 1442" in refused("train", "--data", "digits", "--validation", "1442")


def test_a_training_set_of_a_single_step(refused: Refused) -> None:
    line = refused("train", "--data", "digits", "--limit", "10", "--epochs", "1")
    assert "10 images in batches of 512 make 1 step in all" in line


# Options


@pytest.mark.parametrize("command", ["train", "find-lr"])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--epochs", "0"),
        ("--batch-size", "0"),
        ("--batch-size", "-3"),
        ("--limit", "0"),
        ("--lr-max", "0"),
        ("--lr-min", "-0.1"),
        ("--lr-max", "nan"),
        ("--lr-max", "inf"),
        ("--peak-fraction", "1"),
        ("--seed", "-1"),
        ("--workers", "-1"),
        ("--recipe", "cake"),
        ("--device", "abacus"),
        ("--precision", "float8"),
    ],
)
def test_a_value_that_is_not_allowed(refused: Refused, command: str, option: str, value: str) -> None:
    line = refused(command, "--data", "digits", option, value)
    assert option in line and value.lstrip("-") in line


def test_a_minimum_above_the_maximum(refused: Refused) -> None:
    assert "--lr-min is 0.2" in refused("train", "--data", "digits", "--lr-min", "0.2", "--lr-max", "0.1")


def test_a_device_that_this_machine_does_not_have(refused: Refused) -> None:
    absent = "mps" if torch.cuda.is_available() else "cuda"
    assert f"device {absent} is asked for" in refused("train", "--data", "digits", "--device", absent)


def test_an_out_that_cannot_be_written(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "runs"):
        line = refused("train", "--data", "digits", "--limit", "10", "--batch-size", "5", "--out", out)
        assert f"--out {out}" in line


def test_a_configuration_that_is_none(refused: Refused, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    assert str(config) in refused("train", "--config", config)
    for content in ("{", "[]", '{"epoch": 3}', '{"epochs": "three"}', '{"epochs": 0}'):
        config.write_text(content)
        refused("train", "--config", config)


# Runs


def test_resuming_where_nothing_is(refused: Refused, tmp_path: Path) -> None:
    assert "there is no run folder nowhere" in refused("train", "--resume", "nowhere")
    (tmp_path / "empty").mkdir()
    assert "is not a run folder" in refused("train", "--resume", tmp_path / "empty")


def test_evaluating_where_nothing_is(refused: Refused, tmp_path: Path) -> None:
    assert "there is no run folder nowhere" in refused("evaluate", "nowhere")
    (tmp_path / "empty").mkdir()
    assert "is not a run folder" in refused("evaluate", tmp_path / "empty")


def test_predicting_without_a_trained_network(refused: Refused, tmp_path: Path) -> None:
    picture = tmp_path / "red.png"
    Image.new("RGB", (32, 32), "red").save(picture)
    assert "there is no trained network in runs/; train one" in refused("predict", picture)
    assert "there is no run folder nowhere" in refused("predict", "--run", "nowhere", picture)


def test_rates_that_turn_out_the_wrong_way_round(refused: Refused) -> None:
    line = refused("train", "--data", "digits", "--limit", "10", "--batch-size", "5", "--lr-min", "0.9", "--out", ".")
    assert "give both --lr-min and --lr-max" in line
