import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from onecycle.cli import main
from onecycle.core import extras
from onecycle.core.errors import InputError, StorageError
from onecycle.run.tensorboard import TensorBoard
from onecycle.storage.run_folder import RunFolder

SMALL = ["train", "--recipe", "quick", "--widths", "8", "8", "8", "--data", "digits", "--limit", "60", "--no-report"]


def events(run: RunFolder) -> EventAccumulator:
    """The events of the run, as TensorBoard reads them."""
    reader = EventAccumulator(str(run.tensorboard), size_guidance={"images": 0, "scalars": 0})
    reader.Reload()
    return reader


@pytest.fixture(scope="module")
def run(cache_home: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    out = tmp_path_factory.mktemp("tensorboard")
    command = [*SMALL, "--tensorboard", "--epochs", "3", "--batch-size", "12", "--out", str(out)]
    assert main(command) == 0
    (path,) = out.iterdir()
    return RunFolder(path)


def test_tensorboard_reads_the_scalars_of_every_epoch(run: RunFolder) -> None:
    reader, history = events(run), run.read_history()
    for name, values in {
        "accuracy/test": [record.eval_accuracy for record in history],
        "accuracy/train": [record.train_accuracy for record in history],
        "loss/test": [record.eval_loss for record in history],
        "loss/train": [record.train_loss for record in history],
        "learning rate": [record.lr for record in history],
    }.items():
        scalars = reader.Scalars(name)
        assert [scalar.step for scalar in scalars] == [1, 2, 3]
        assert [scalar.value for scalar in scalars] == pytest.approx(values, rel=1e-6)


def test_values_with_bytes_that_are_not_utf_8_are_escaped(run: RunFolder, tmp_path: Path) -> None:
    board = TensorBoard(tmp_path / "board", [], "test")
    config = replace(run.read_config(), data="caf\udce9", out=Path("runs-\udce9"))
    board.complete(config, run.read_result(), tmp_path)
    content = b"".join(path.read_bytes() for path in (tmp_path / "board").rglob("events*"))
    assert rb"'caf\udce9'" in content and rb"'runs-\udce9'" in content


def test_a_path_that_tensorboard_cannot_write_to_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="TensorBoard cannot write to '.*udce9': this path is not UTF-8"):
        TensorBoard(tmp_path / "runs-\udce9", [], "test")


def test_a_resumed_run_has_every_epoch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stopped

    command = [*SMALL, "--tensorboard", "--epochs", "3", "--batch-size", "12", "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr("onecycle.run.tensorboard.TensorBoard.epoch", stop)
        with pytest.raises(Stopped):
            main(command)
    (path,) = tmp_path.iterdir()
    assert main(["train", "--resume", str(path)]) == 0
    assert [scalar.step for scalar in events(RunFolder(path)).Scalars("loss/test")] == [1, 2, 3]


def test_tensorboard_reads_the_plots(run: RunFolder) -> None:
    reader = events(run)
    assert set(reader.Tags()["images"]) == {"augmentations", "confusion_matrix", "incorrect_predictions"}
    (image,) = reader.Images("confusion_matrix")
    assert image.encoded_image_string.startswith(b"\x89PNG") and image.width > 500


def test_tensorboard_reads_the_hyper_parameters(run: RunFolder) -> None:
    from tensorboard.plugins.hparams import plugin_data_pb2

    reader = events(run)
    assert reader.Scalars("result/accuracy")[0].value == pytest.approx(run.read_result().eval_accuracy)
    content = reader.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert start.hparams["epochs"].number_value == 3
    assert start.hparams["optimizer"].string_value == "muon"
    assert start.hparams["seed"].number_value == 0


def test_without_tensorboard_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "tensorboard" else find_spec(name))
    assert main([*SMALL, "--tensorboard", "--out", str(tmp_path / "runs")]) == 2
    assert capsys.readouterr().err == "onecycle: this needs tensorboard; run pip install 'onecycle[tensorboard]'\n"
    assert not (tmp_path / "runs").exists()


def test_a_run_without_tensorboard_writes_no_events(tmp_path: Path) -> None:
    assert main([*SMALL, "--epochs", "2", "--batch-size", "30", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    assert not RunFolder(path).tensorboard.exists()
    assert json.loads((path / "config.json").read_text())["tensorboard"] is False


def test_a_linked_folder_is_refused_and_its_target_untouched(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").touch()
    (tmp_path / "tensorboard").symlink_to("elsewhere")
    with pytest.raises(StorageError, match="tensorboard cannot be written"):
        TensorBoard(tmp_path / "tensorboard", [], "test")
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["precious"]


def test_a_folder_of_links_is_replaced_and_their_targets_untouched(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events.out.tfevents.1").symlink_to(tmp_path / "precious")
    TensorBoard(tmp_path / "tensorboard", [], "test")
    assert (tmp_path / "precious").read_text() == "precious"
    assert not any(path.is_symlink() for path in (tmp_path / "tensorboard").iterdir())
