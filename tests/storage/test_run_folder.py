import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onecycle.core.config import Config
from onecycle.core.errors import InputError, StorageError
from onecycle.storage.records import EpochRecord, History, Misclassified
from onecycle.storage.run_folder import RunFolder, new_folder, require_parent


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(tmp_path / "a-run")
    folder.write_json(folder.config, Config(data="digits").to_json())
    return folder


def history() -> History:
    return [
        EpochRecord(
            epoch=epoch,
            lr=0.1 / 3**epoch,
            train_loss=2.0 / epoch,
            train_accuracy=epoch / 7,
            eval_loss=1.0 / 3,
            eval_accuracy=epoch / 9,
            seconds=0.1,
        )
        for epoch in (1, 2, 3)
    ]


# Writing


def test_all_files_of_a_run_have_the_same_permissions(folder: RunFolder) -> None:
    from onecycle.storage.checkpoint import save_tensors

    folder.write_history(history())
    save_tensors(folder.weights, {}, {})
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder.config, folder.history, folder.weights)}
    assert len(set(modes.values())) == 1, modes


# Creating and opening


def test_runs_that_start_within_one_second_have_different_folders(tmp_path: Path) -> None:
    folders = [new_folder(tmp_path / "new" / "runs", "baseline-digits") for _ in range(4)]
    assert len(set(folders)) == 4
    for folder in folders:
        assert folder.parent == tmp_path / "new" / "runs"
        assert folder.name.startswith("baseline-digits-2")
        RunFolder.create(folder)
        assert [path.name for path in folder.iterdir()] == ["plots"]


@pytest.mark.parametrize("name", ["run", "my runs", "a  b", "it's", "$HOME", "[old]", "-run"])
def test_a_shell_reads_the_command_that_resumes_a_run_as_it_is_meant(tmp_path: Path, name: str) -> None:
    folder = RunFolder(tmp_path / name)
    command = ["onecycle", "train", "--resume", str(tmp_path / name)]
    assert shlex.split(folder.resume_command(Config())) == command
    own = f"{name}/net.py:small"
    assert shlex.split(folder.resume_command(replace(Config(), network=own))) == [*command, "--network", own]


def test_a_folder_that_cannot_be_looked_into_has_no_checkpoint(tmp_path: Path) -> None:
    assert not RunFolder(tmp_path / ("a" * 300)).has_checkpoint  # as for a folder that the user may not enter


def test_out_that_is_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for out in (file, file / "below"):
        with pytest.raises(InputError, match=f"^cannot create a folder in --out {out}: {file} is a file; give"):
            new_folder(out, "a-run")
        with pytest.raises(InputError, match=f"^cannot create a folder in --out {out}: {file} is a file; give"):
            require_parent(out)
    assert list(tmp_path.iterdir()) == [file]


def test_the_check_of_out_creates_nothing(tmp_path: Path) -> None:
    for out in (tmp_path, tmp_path / "new", tmp_path / "new" / "runs", Path("runs")):
        require_parent(out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="this system has no /proc")
def test_out_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(StorageError, match="cannot create a folder in --out /proc/self/runs: .*; give another folder"):
        new_folder(Path("/proc/self/runs"), "a-run")
    with pytest.raises(StorageError, match="cannot create the run folder /proc/self/runs: "):
        RunFolder.create(Path("/proc/self/runs"))


def test_a_path_that_is_no_run_folder_cannot_be_opened(tmp_path: Path, folder: RunFolder) -> None:
    assert RunFolder.open(folder.path).path == folder.path
    with pytest.raises(InputError, match="there is no run folder .*nowhere"):
        RunFolder.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is not a run folder: it has no config.json"):
        RunFolder.open(tmp_path)
    with pytest.raises(InputError, match="is not a run folder"):
        RunFolder.open(folder.config)


# Reading


def test_configuration_and_history_come_back(folder: RunFolder) -> None:
    assert folder.read_config() == Config(data="digits")
    with pytest.raises(InputError, match="has no history.jsonl"):
        folder.read_history()
    folder.write_history(history())
    assert folder.read_history() == history()
    assert [json.loads(line)["epoch"] for line in folder.history.read_text().splitlines()] == [1, 2, 3]


def test_arrays_come_back(folder: RunFolder) -> None:
    logits, labels = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32), np.arange(5)
    folder.write_arrays(folder.predictions, logits=logits, labels=labels)
    arrays = folder.read_arrays(folder.predictions)
    assert arrays.keys() == {"logits", "labels"}
    np.testing.assert_array_equal(arrays["logits"], logits, strict=True)
    np.testing.assert_array_equal(arrays["labels"], labels, strict=True)


def test_equal_arrays_make_equal_files(folder: RunFolder, tmp_path: Path) -> None:
    folder.write_arrays(tmp_path / "one.npz", labels=np.arange(5))
    folder.write_arrays(tmp_path / "other.npz", labels=np.arange(5))
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "other.npz").read_bytes()


def test_objects_are_neither_written_nor_read(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        folder.write_arrays(folder.predictions, labels=np.array([{}], dtype=object))
    assert not folder.predictions.exists()
    with folder.predictions.open("wb") as file:
        np.savez(file, labels=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="predictions.npz is damaged or of another kind"):
        folder.read_arrays(folder.predictions)


def test_misclassified_images_come_back(folder: RunFolder) -> None:
    misclassified = Misclassified(
        indices=np.array([3, 1]),
        images=np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3),
        labels=np.array([0, 1]),
        predictions=np.array([1, 0]),
        probabilities=np.array([[0.1, 0.9], [0.6, 0.4]], np.float32),
        classes=("ä", "b"),
    )
    folder.write_misclassified(misclassified)
    read = folder.read_misclassified()
    assert read.classes == misclassified.classes
    for name in ("indices", "images", "labels", "predictions", "probabilities"):
        np.testing.assert_array_equal(getattr(read, name), getattr(misclassified, name), strict=True)


def test_a_missing_file_of_an_unfinished_run_is_named(folder: RunFolder) -> None:
    assert folder.read_lr_curve() is None
    with pytest.raises(InputError, match="has no result.json: the run did not get this far"):
        folder.read_result()
    with pytest.raises(InputError, match="has no predictions.npz: the run did not get this far"):
        folder.read_arrays(folder.predictions)
    with pytest.raises(InputError, match="has no misclassified.npz"):
        folder.read_misclassified()


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "null", "ÿ"], ids=["empty", "cut", "list", "null", "latin-1"])
def test_damaged_json_is_an_input_error(folder: RunFolder, content: str) -> None:
    folder.environment.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match="environment.json is damaged or of another kind"):
        folder.read_json(folder.environment)


@pytest.mark.parametrize("values", [{}, {"notes": [], "accuracy": 1.0}], ids=["empty", "other fields"])
def test_a_result_with_wrong_fields_is_an_input_error(folder: RunFolder, values: dict[str, object]) -> None:
    folder.write_json(folder.result, values)
    with pytest.raises(InputError, match="result.json"):
        folder.read_result()


@pytest.mark.parametrize("content", ["{", '{"epoch": 1}\n'], ids=["cut", "other fields"])
def test_a_damaged_history_is_an_input_error(folder: RunFolder, content: str) -> None:
    folder.history.write_text(content)
    with pytest.raises(InputError, match="history.jsonl"):
        folder.read_history()


@pytest.mark.parametrize("keep", [0, 10, 300, -30])
def test_truncated_arrays_are_input_errors(folder: RunFolder, keep: int) -> None:
    folder.write_arrays(folder.predictions, logits=np.random.default_rng(0).normal(size=(50, 10)))
    folder.predictions.write_bytes(folder.predictions.read_bytes()[:keep])
    with pytest.raises(InputError, match="predictions.npz is damaged or of another kind"):
        folder.read_arrays(folder.predictions)
