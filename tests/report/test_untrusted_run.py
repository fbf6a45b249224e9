"""Commands that read a run folder made by someone else: links in it lead nowhere, and its records are validated."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from onecycle.cli import main
from onecycle.core.errors import StorageError
from onecycle.report import plots
from onecycle.storage.run_folder import RunFolder

Refused = Callable[..., str]


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command, which must be refused in one line. Returns the line."""

    def refuse(*arguments: str | Path) -> str:
        assert main([*map(str, arguments)]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        return line

    return refuse


# Links


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("precious")
    return path


def test_a_linked_lock_is_refused_and_its_target_untouched(copy_of: RunFolder, victim: Path, refused: Refused) -> None:
    copy_of.interpretation.unlink()  # so that the report locks the folder to compute one
    (copy_of.path / ".lock").symlink_to(victim)
    assert ".lock cannot be written (it is a symbolic link); remove it" in refused("report", "--run", copy_of.path)
    assert victim.read_text() == "precious"
    assert not copy_of.is_idle(), "nor does a look at the neighbors of a run touch it"
    assert victim.read_text() == "precious"


def test_a_linked_report_is_replaced_and_its_target_untouched(copy_of: RunFolder, victim: Path) -> None:
    copy_of.report.unlink()
    copy_of.report.symlink_to(victim)
    (copy_of.path / f".report.html.{os.getpid()}.tmp").symlink_to(victim)  # the name in earlier versions
    assert main(["report", "--run", str(copy_of.path)]) == 0
    assert victim.read_text() == "precious"
    assert copy_of.report.is_file() and not copy_of.report.is_symlink()


@pytest.mark.parametrize("name", ["config", "environment", "result", "history", "misclassified", "interpretation"])
def test_a_linked_record_is_refused(copy_of: RunFolder, refused: Refused, name: str) -> None:
    path: Path = getattr(copy_of, name)
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")
    line = refused("report", "--run", copy_of.path)
    assert str(path) in line and "it is a symbolic link" in line


@pytest.mark.parametrize("name", ["environment", "result", "history", "network", "predictions"])
@pytest.mark.parametrize("target", ["pipe", "/dev/zero"])
def test_a_record_that_never_ends_is_refused(copy_of: RunFolder, refused: Refused, name: str, target: str) -> None:
    path: Path = getattr(copy_of, name)
    path.unlink()
    if target == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(target)
    assert str(path) in refused("report", "--run", copy_of.path)


@pytest.mark.parametrize("target", ["pipe", "/dev/zero", "elsewhere"])
@pytest.mark.parametrize("command", ["predict", "evaluate", "export", "serve"])
def test_linked_weights_are_refused(copy_of: RunFolder, refused: Refused, command: str, target: str) -> None:
    copy_of.weights.rename(copy_of.path / "elsewhere")
    if target == "pipe":
        os.mkfifo(copy_of.weights)
    else:
        copy_of.weights.symlink_to(target)
    assert str(copy_of.weights) in refused(
        command, "--run", copy_of.path, *(["image.png"] if command == "predict" else [])
    )


@pytest.mark.parametrize("name", ["plots", "onnx"])
def test_a_linked_folder_in_a_run_is_refused(copy_of: RunFolder, tmp_path: Path, refused: Refused, name: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    shutil.rmtree(copy_of.path / name, ignore_errors=True)
    (copy_of.path / name).symlink_to(tmp_path / "elsewhere")
    if name == "onnx":
        assert "onnx: it is a symbolic link; give another one" in refused("export", "--run", copy_of.path)
    else:
        with pytest.raises(StorageError, match="plots cannot be written .it is a symbolic link.; remove it"):
            plots.draw(copy_of)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_run_is_read_through_a_link_to_its_folder(copy_of: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(copy_of.path)
    assert main(["report", "--run", str(tmp_path / "link")]) == 0
    (tmp_path / "config.json").symlink_to(copy_of.config)
    assert main(["study", "--config", str(tmp_path / "config.json"), "--seeds", "0"]) == 2
