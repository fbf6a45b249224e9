"""Every kind of bad input gives exit code 2 and one line that says what is wrong, and leaves no files behind."""

import io
import os
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import FINDABLE
from PIL import Image
from safetensors.torch import save_file

from onecycle.cli import main

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """A function that runs a command line and requires a one-line error. It returns the error."""
    folder = tmp_path / "working-folder"
    folder.mkdir()
    monkeypatch.chdir(folder)  # the folder has no data/ and no runs/

    def refused(*arguments: str | Path) -> str:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert code == 2, captured
        assert captured.err.startswith("onecycle: ")
        assert captured.err.count("\n") == 1, captured.err
        assert "Traceback" not in captured.out + captured.err
        assert list(folder.iterdir()) == []
        return captured.err

    return refused


@pytest.fixture
def copied(image_folder: Path, tmp_path: Path) -> Path:
    """A copy of the image folder, which a test can damage."""
    return Path(shutil.copytree(image_folder, tmp_path / "images"))


# Data


def test_a_missing_path_is_refused(refused: Refused) -> None:
    assert "no/such/place: no such file or folder; check the path" in refused("train", "--data", "no/such/place")


def test_an_empty_folder_is_refused(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "the folder is empty; give" in refused("train", "--data", tmp_path / "empty")


def test_a_class_folder_without_images_is_refused(refused: Refused, copied: Path) -> None:
    (copied / "train" / "ten").mkdir()
    (copied / "test" / "ten").mkdir()
    assert "class folder train/ten has no images" in refused("train", "--data", copied)


def test_a_single_class_is_refused(refused: Refused, copied: Path) -> None:
    for split in ("train", "test"):
        for name in "012345678":
            shutil.rmtree(copied / split / name)
    assert "there is only one class, '9'; a classifier needs at least two" in refused("train", "--data", copied)


def test_different_classes_in_train_and_test_are_refused(refused: Refused, copied: Path) -> None:
    (copied / "test" / "9").rename(copied / "test" / "nine")
    assert "train/ and test/ have different classes: " in refused("train", "--data", copied)


def test_a_truncated_jpeg_is_refused(refused: Refused, copied: Path) -> None:
    path = copied / "train" / "3" / "digit.jpg"
    Image.new("RGB", (64, 64), "red").save(path)
    path.write_bytes(path.read_bytes()[:-50])
    assert "train/3/digit.jpg: the image cannot be read" in refused("train", "--data", copied)


def test_a_text_file_with_the_suffix_of_a_jpeg_is_refused(refused: Refused, copied: Path) -> None:
    (copied / "test" / "3" / "digit.jpg").write_text("not an image")
    assert "test/3/digit.jpg: not an image" in refused("train", "--data", copied)


@pytest.mark.parametrize("keep", [0.5, 0.98])
def test_a_truncated_archive_is_refused(refused: Refused, binary_archive: Path, tmp_path: Path, keep: float) -> None:
    content = binary_archive.read_bytes()
    cut = tmp_path / binary_archive.name
    cut.write_bytes(content[: int(keep * len(content))])
    assert f"{cut}: cannot be read to its end" in refused("train", "--data", cut)


class MakesAFolder:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_that_asks_for_a_call_is_refused_and_nothing_is_called(
    refused: Refused, python_folder: Path, tmp_path: Path
) -> None:
    called = tmp_path / "called"
    unpacked = Path(shutil.copytree(python_folder, tmp_path / "cifar-10-batches-py"))
    harmful = pickle.dumps({b"labels": [], b"data": MakesAFolder(called)}, protocol=2)
    (unpacked / "data_batch_1").write_bytes(harmful)
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(unpacked, unpacked.name)
    for data in (archive, unpacked):
        assert "data_batch_1 asks to call" in refused("train", "--data", data)
        assert not called.exists()
    pickle.loads(harmful)  # check that loading the pickle would have made the call
    assert called.is_dir()


@pytest.mark.parametrize("command", ["train", "find-lr"])
def test_without_a_network_for_the_download_the_error_names_the_alternatives(refused: Refused, command: str) -> None:
    line = refused(command)
    for alternative in ("cifar-10-binary.tar.gz", "with --data or", "$ONECYCLE_DATA", "--data digits"):
        assert alternative in line


def test_a_missing_path_in_the_environment_variable_is_refused(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ONECYCLE_DATA", str(tmp_path / "gone"))
    assert f"$ONECYCLE_DATA: {tmp_path}/gone: no such file or folder" in refused("train")


@pytest.mark.parametrize("limit", [1, 9])
def test_a_limit_below_the_number_of_classes_is_refused(refused: Refused, limit: int) -> None:
    line = refused("train", "--data", "digits", "--limit", f"{limit}")
    assert f"--limit is {limit}; it must be at least 10, the number of classes" in line


def test_a_validation_set_that_leaves_no_training_images_is_refused(refused: Refused) -> None:
    assert "--validation is 1442" in refused("train", "--data", "digits", "--validation", "1442")


def test_a_run_of_a_single_step_is_refused(refused: Refused) -> None:
    line = refused("train", "--data", "digits", "--limit", "10", "--batch-size", "10", "--epochs", "1")
    assert "10 images in batches of 10 make only 1 step" in line


def test_a_training_set_of_less_than_a_batch(refused: Refused) -> None:
    line = refused("train", "--data", "digits", "--limit", "10", "--batch-size", "512")
    assert "10 training images are too few for batches of 512; use --batch-size 2, or add images" in line


# Images


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
UNUSABLE: dict[str, tuple[bytes, str]] = {
    "empty.png": (b"", "the file is empty"),
    "text.png": (b"not an image", "not an image (12 bytes)"),
    "page.jpg": (b"<!DOCTYPE html><title>404</title>", "not an image"),
    "drawing.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    "archive.png": (b"PK\x03\x04" + bytes(26), "not an image"),
    "cut.jpg": (encoded(NOISE, "JPEG")[:-200], "the image cannot be read (image file is truncated"),
    "cut.png": (encoded(NOISE, "PNG")[:-200], "the image cannot be read"),
    "cut.gif": (encoded(NOISE, "GIF")[:-200], "the image cannot be read"),
    "cut.webp": (encoded(NOISE, "WEBP", lossless=True)[:-200], "the image cannot be read"),
    "cut.tiff": (encoded(NOISE, "TIFF")[:-200], "the image cannot be read"),
    "cut.bmp": (encoded(NOISE, "BMP")[:-200], "the image cannot be read"),
    "tags.png": (encoded(NOISE, "PNG", exif=b"no tags"), "the image cannot be read (not a TIFF file"),
    "fractions.tiff": (encoded(Image.new("F", (32, 32)), "TIFF"), "the image has float pixels"),
    "header.png": (encoded(NOISE, "PNG")[:30], "not an image (30 bytes)"),
    "noise.png": (b"\x89PNG\r\n\x1a\n" + bytes(range(200)), "not an image (208 bytes)"),
    "pixel.gif": (encoded(Image.new("RGB", (1, 1)), "GIF"), "the image has only 1×1 pixels"),
    "line.png": (encoded(Image.new("RGB", (400, 1)), "PNG"), "the image has only 400×1 pixels"),
    "bomb.png": (
        encoded(Image.new("1", (12000, 12000)), "PNG"),
        "the image has 12000×12000 pixels; the limit is 89,478,485 pixels; make the image smaller",
    ),
    "bomb.gif": (
        encoded(NOISE, "GIF")[:6] + b"\xff\xff\xff\xff" + encoded(NOISE, "GIF")[10:],
        "Image size (4294836225 pixels) exceeds limit",
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_image_that_cannot_be_used_is_named_with_the_reason(refused: Refused, copied: Path, name: str) -> None:
    content, reason = UNUSABLE[name]
    (copied / "train" / "7" / name).write_bytes(content)
    line = refused("train", "--data", copied)
    assert f"{copied}: 1 of 71 images cannot be used: {copied}/train/7/{name}: {reason}" in line
    assert f"`onecycle check {copied}` lists all of them" in line


def test_many_unusable_images_are_reported_in_one_line_and_check_lists_all(
    refused: Refused, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, (content, _) in UNUSABLE.items():
        (copied / "test" / "3" / name).write_bytes(content)
    line = refused("train", "--data", copied)
    assert f"{len(UNUSABLE)} of {70 + len(UNUSABLE)} images cannot be used" in line
    assert f", and {len(UNUSABLE) - 5} more; " in line
    assert main(["check", str(copied)]) == 1
    report = capsys.readouterr().out
    assert f"Images that cannot be used: {len(UNUSABLE)}\n" in report
    assert all(f"  {copied}/test/3/{name}: {reason}" in report for name, (_, reason) in UNUSABLE.items())
    assert report.endswith(f"\nNot safe to train on: {len(UNUSABLE)} images cannot be used\n")


# Archives

HARMFUL: dict[str, tuple[tarfile.TarInfo, str]] = {}
for harmful_name, harmful_type, reason in (
    ("/etc/passwd", tarfile.REGTYPE, "points outside the archive"),
    ("../../outside.png", tarfile.REGTYPE, "points outside the archive"),
    ("train/../../outside.png", tarfile.REGTYPE, "points outside the archive"),
    ("C:\\outside.png", tarfile.REGTYPE, "points outside the archive"),
    ("train/a/link.png", tarfile.SYMTYPE, "is a symbolic link; put the file itself into the archive"),
    ("train/a/hard.png", tarfile.LNKTYPE, "is a hard link; put a copy of the file into the archive"),
    ("train/a/device.png", tarfile.CHRTYPE, "is a device; a data set holds files only"),
    ("train/a/disk.png", tarfile.BLKTYPE, "is a device; a data set holds files only"),
    ("train/a/pipe.png", tarfile.FIFOTYPE, "is a device; a data set holds files only"),
):
    harmful = tarfile.TarInfo(harmful_name)
    harmful.type, harmful.linkname = harmful_type, "/etc/passwd" if harmful_type != tarfile.REGTYPE else ""
    HARMFUL[harmful_name] = harmful, reason


@pytest.mark.parametrize("name", HARMFUL)
def test_an_archive_with_a_harmful_member_is_refused(
    refused: Refused, image_folder: Path, tmp_path: Path, name: str
) -> None:
    member, reason = HARMFUL[name]
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(image_folder, ".")
        archive.addfile(member)
    line = refused("train", "--data", tmp_path / "images.tar")
    assert f"{tmp_path}/images.tar: " in line and repr(name) in line and reason in line


def test_a_tar_that_is_a_decompression_bomb_is_refused(refused: Refused, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "images.tar.gz", "w:gz") as archive:
        for number in range(3):
            member = tarfile.TarInfo(f"train/a/{number}.bmp")
            member.size = 2**27
            with open("/dev/zero", "rb") as zeros:
                archive.addfile(member, zeros)
    assert "may be a zip bomb" in refused("train", "--data", tmp_path / "images.tar.gz")


def test_a_zip_that_is_a_decompression_bomb_is_refused(refused: Refused, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"train/a/{number}.bmp", bytes(2**27))
    assert "may be a zip bomb" in refused("train", "--data", tmp_path / "images.zip")


# Weights


@pytest.mark.parametrize("kind", ["safetensors without a checksum", "a pickle", "another file", "nothing", "a folder"])
def test_weights_that_onecycle_did_not_write_are_refused(refused: Refused, tmp_path: Path, kind: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    weights, image = run / "weights.safetensors", tmp_path / "image.png"
    NOISE.save(image)
    if kind == "safetensors without a checksum":
        save_file({"weights": torch.zeros(3)}, weights, {"onecycle": "{}"})
    elif kind == "a pickle":
        torch.save({"weights": torch.zeros(3)}, weights)
    elif kind == "a folder":
        weights.mkdir()
    elif kind == "another file":
        weights.write_text("weights")
    line = refused("predict", "--run", run, image)
    assert "weights.safetensors" in line


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
def test_a_value_that_is_not_allowed_is_refused(refused: Refused, command: str, option: str, value: str) -> None:
    line = refused(command, "--data", "digits", option, value)
    assert option in line and value.lstrip("-") in line


def test_an_lr_min_above_lr_max_is_refused(refused: Refused) -> None:
    assert "--lr-min is 0.2; it must be at most" in refused(
        "train", "--data", "digits", "--lr-min", "0.2", "--lr-max", "0.1"
    )


def test_a_device_that_this_machine_does_not_have_is_refused(refused: Refused) -> None:
    absent = "mps" if torch.cuda.is_available() else "cuda"
    assert f"--device is {absent}, but this machine has" in refused("train", "--data", "digits", "--device", absent)


def test_an_out_folder_that_cannot_be_created_is_refused(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "runs"):
        line = refused("train", "--data", "digits", "--limit", "10", "--batch-size", "5", "--out", out)
        assert f"--out {out}" in line


def test_a_file_that_is_not_a_configuration_is_refused(refused: Refused, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    assert str(config) in refused("train", "--config", config)
    for content in ("{", "[]", '{"epoch": 3}', '{"epochs": "three"}', '{"epochs": 0}'):
        config.write_text(content)
        refused("train", "--config", config)


# Runs


def test_resuming_without_a_run_folder_is_refused(refused: Refused, tmp_path: Path) -> None:
    assert "there is no run folder nowhere" in refused("train", "--resume", "nowhere")
    (tmp_path / "empty").mkdir()
    assert "is not a run folder" in refused("train", "--resume", tmp_path / "empty")


def test_evaluating_without_a_run_folder_is_refused(refused: Refused, tmp_path: Path) -> None:
    assert "there is no run folder nowhere" in refused("evaluate", "--run", "nowhere")
    (tmp_path / "empty").mkdir()
    assert "is not a run folder" in refused("evaluate", "--run", tmp_path / "empty")


def test_predicting_without_a_run_folder_is_refused(refused: Refused, tmp_path: Path) -> None:
    image = tmp_path / "red.png"
    Image.new("RGB", (32, 32), "red").save(image)
    assert "there is no run folder nowhere" in refused("predict", "--run", "nowhere", image)


def test_an_lr_min_above_the_lr_max_that_is_found_is_refused(refused: Refused) -> None:
    line = refused("train", *FINDABLE, "--lr-min", "1e9", "--out", ".")
    assert "set both --lr-min and --lr-max" in line
