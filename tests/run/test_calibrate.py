"""Calibrating finished runs: `onecycle calibrate`, and the functions behind it."""

import csv
import filecmp
import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_folders import write_images
from networks import NARROW_CONFIG
from rich.console import Console

from onecycle.cli import main
from onecycle.core.config import Config
from onecycle.core.errors import InputError, StorageError
from onecycle.core.metrics import probabilities_of
from onecycle.core.signals import Interrupted
from onecycle.predict.predictor import Predictor
from onecycle.run import calibrate, experiment, finished, results
from onecycle.run.calibrate import calibrate_run
from onecycle.storage.checkpoint import load_tensors
from onecycle.storage.run_folder import RunFolder

QUIET = Console(quiet=True)
SHORT = replace(NARROW_CONFIG, augmentation="batched", limit=60, batch_size=30, epochs=2, lr_min=1e-4, lr_max=2e-3)
SECOND_CONFIG_TAKES = ("validation", "limit", "batch_size", "lr_min", "lr_max", "report", "out")


@pytest.fixture(scope="module")
def uncalibrated(cache_home: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return experiment.run(SHORT, QUIET, tmp_path_factory.mktemp("uncalibrated") / "run")


@pytest.fixture(autouse=True)
def drawn(uncalibrated: RunFolder, calibrated: RunFolder, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would have been drawn. Drawing takes long, and the runs of the module have plots and a report."""
    names: list[str] = []
    monkeypatch.setattr(finished, "draw_plots", lambda _: names.append("plots"))
    monkeypatch.setattr(finished, "write_report", lambda _: names.append("report"))
    return names


@pytest.fixture
def run(uncalibrated: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of the run, which a test may calibrate."""
    return RunFolder(shutil.copytree(uncalibrated.path, tmp_path / "run"))


@pytest.fixture(scope="module")
def calibrated(uncalibrated: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A calibrated copy of the run."""
    path = shutil.copytree(uncalibrated.path, tmp_path_factory.mktemp("calibrated") / "run")
    calibrate_run(path, QUIET)
    return RunFolder(path)


def test_calibrating_changes_the_probabilities_but_neither_network_nor_predictions(
    uncalibrated: RunFolder, calibrated: RunFolder
) -> None:
    before, after = Predictor.load(uncalibrated.weights), Predictor.load(calibrated.weights)
    tensors, same = load_tensors(uncalibrated.weights)[0], load_tensors(calibrated.weights)[0]
    assert tensors.keys() == same.keys() and all(torch.equal(tensors[name], same[name]) for name in tensors)
    assert replace(after, model=before.model, temperature=1.0) == before and after.temperature != 1
    images = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    for plain, scaled in zip(before.predict_images(images), after.predict_images(images), strict=True):
        assert plain.class_name == scaled.class_name and plain.probability != scaled.probability
    result = calibrated.read_result()
    assert replace(result, calibration=None) == uncalibrated.read_result()
    assert main(["evaluate", "--run", str(calibrated.path)]) == 0
    assert filecmp.cmp(uncalibrated.predictions, calibrated.predictions, shallow=False)


def test_the_result_records_the_temperature_and_the_held_out_images(calibrated: RunFolder) -> None:
    recorded = json.loads(calibrated.result.read_text())["calibration"]
    assert recorded == {
        "temperature": Predictor.load(calibrated.weights).temperature,
        "images": 10,  # a tenth of 60 would be fewer than one of each class
        "source": "second network",
    }
    assert not calibrated.calibration.exists()


def test_every_file_with_probabilities_has_the_calibrated_ones(calibrated: RunFolder) -> None:
    temperature = calibrated.read_result().temperature
    expected = probabilities_of(calibrated.read_predictions().logits, temperature)
    with calibrated.predictions_table.open() as file:
        written = [float(row["probability"]) for row in csv.DictReader(file)]
    assert written == pytest.approx(expected.max(axis=1), abs=1e-6)
    kept = calibrated.read_misclassified()
    np.testing.assert_allclose(kept.probabilities, expected[kept.indices], rtol=1e-6)
    report = calibrated.report.read_text()
    assert f"Temperature scaling divides the logits by {temperature:.3f}, which changes no prediction" in report
    assert "fitted on 10 training images held out from a second network." in report


def test_the_second_network_is_trained_like_the_first_without_the_held_out_images(
    run: RunFolder, uncalibrated: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunFolder, "discard", lambda self: None)
    calibrate_run(run.path, QUIET)
    second = RunFolder(run.calibration)
    ours, theirs = second.read_config().to_json(), run.read_config().to_json()
    assert {name for name in ours if ours[name] != theirs[name]} <= set(SECOND_CONFIG_TAKES)
    assert (second.read_result().evaluated_on, second.read_result().eval_images) == ("validation", 10)
    fitted = second.read_result().calibration
    assert fitted and Predictor.load(run.weights).temperature == fitted.temperature
    result = run.read_result()
    assert (second.read_result().lr_min, second.read_result().lr_max) == (result.lr_min, result.lr_max)


def test_a_calibrated_run_stays_as_it_is(
    calibrated: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(experiment, "run", None)
    before = calibrated.weights.stat().st_mtime_ns
    assert main(["calibrate", "--run", str(calibrated.path)]) == 0
    temperature = calibrated.read_result().temperature
    assert capsys.readouterr().out == (
        f"The temperature is {temperature:.3f}, fitted on 10 training images held out from a second network; it is "
        f"saved in {calibrated.path}\n"
    )
    assert calibrated.weights.stat().st_mtime_ns == before


def test_train_names_the_command_that_calibrates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(replace(SHORT, report=False, epochs=1).to_json()))
    options = ["--config", str(tmp_path / "config.json"), "--out", str(tmp_path / "my runs")]
    assert main(["train", *options]) == 0
    (path,) = (tmp_path / "my runs").iterdir()
    line = f"The probabilities are not calibrated; `onecycle calibrate --run '{path}'` calibrates them"
    assert line in capsys.readouterr().out.splitlines()


# Interruptions


class StoppedError(Exception):
    """Stands for a kill: nothing handles it."""


def stopping(after: bool, original: Callable[..., object] | None = None) -> Callable[..., object]:
    def stop(*arguments: object, **named: object) -> object:
        if after and original:
            original(*arguments, **named)
        raise StoppedError

    return stop


def test_a_killed_training_of_the_second_network_is_resumed(
    run: RunFolder, calibrated: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(results, "evaluate_training_sample", stopping(after=False))  # after the last epoch
        with pytest.raises(StoppedError):
            calibrate_run(run.path, QUIET)
    assert run.read_result().calibration is None and Predictor.load(run.weights).temperature == 1
    assert main(["calibrate", "--run", str(run.path)]) == 0
    assert f"Resuming {run.calibration} after epoch 2" in capsys.readouterr().out
    assert run.weights.read_bytes() == calibrated.weights.read_bytes()
    assert not run.calibration.exists()


def test_the_first_files_of_a_killed_second_network_are_replaced(run: RunFolder, calibrated: RunFolder) -> None:
    run.calibration.mkdir()
    shutil.copy(run.environment, run.calibration)
    (run.calibration / "plots").mkdir()
    calibrate_run(run.path, QUIET)
    assert run.weights.read_bytes() == calibrated.weights.read_bytes()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("where", "name"),
    [(Predictor, "save"), (results, "write_probabilities"), (finished, "draw_plots"), (finished, "write_report")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_kill_while_the_run_is_changed_leaves_files_that_are_old_or_new(
    run: RunFolder,
    calibrated: RunFolder,
    drawn: list[str],
    monkeypatch: pytest.MonkeyPatch,
    where: object,
    name: str,
    after: bool,
) -> None:
    monkeypatch.setattr(calibrate, "_train", lambda folder, *_: _second(folder, calibrated))
    with monkeypatch.context() as patched:
        patched.setattr(where, name, stopping(after, getattr(where, name)))
        with pytest.raises(StoppedError):
            calibrate_run(run.path, QUIET)
    temperature = calibrated.read_result().temperature
    assert Predictor.load(run.weights).temperature in (1, temperature)
    assert run.read_result().temperature in (1, temperature)
    monkeypatch.setattr(calibrate, "_train", None)  # it is not trained again
    calibrate_run(run.path, QUIET)
    assert drawn[-2:] == ["plots", "report"]
    for file in ("weights.safetensors", "result.json", "predictions.csv", "misclassified.npz"):
        assert (run.path / file).read_bytes() == (calibrated.path / file).read_bytes()
    assert not run.calibration.exists()


def _second(folder: RunFolder, calibrated: RunFolder) -> None:
    """Make `folder` that of the second network whose temperature the run `calibrated` has."""
    fitted = calibrated.read_result().calibration
    assert fitted
    folder.path.mkdir()
    result = replace(calibrated.read_result(), calibration=replace(fitted, source="validation"))
    folder.write_json(folder.result, result.to_json())


def test_an_interruption_names_the_command_and_not_the_second_run(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise Interrupted(signal.SIGTERM, "`onecycle train --resume …` continues the run")

    monkeypatch.setattr(experiment, "run", interrupted)
    with pytest.raises(Interrupted) as stopped:
        calibrate_run(run.path, QUIET)
    assert str(stopped.value) == "repeat the command to go on" and stopped.value.number == signal.SIGTERM


# Runs with validation images, and runs that cannot be calibrated


def test_a_run_of_an_earlier_version_is_calibrated_on_its_validation_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SHORT, validation=30, report=False, precision="float32")
    run = experiment.run(config, QUIET, tmp_path / "run")
    recorded = run.read_result()
    weights = run.weights.read_bytes()
    run.write_json(run.result, replace(recorded, calibration=None).to_json())
    replace(Predictor.load(run.weights), temperature=1.0).save(run.weights)
    monkeypatch.setattr(experiment, "run", None)
    fitted = calibrate_run(run.path, QUIET)
    assert recorded.calibration and (fitted.images, fitted.source) == (30, "validation")
    assert fitted.temperature == pytest.approx(recorded.calibration.temperature, rel=1e-3)
    assert len(run.weights.read_bytes()) == pytest.approx(len(weights), abs=100)
    assert not run.report.exists()


def test_labels_and_initial_weights_that_have_moved_are_named(
    uncalibrated: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "photos", {"ant": 14, "bee": 15}, seed=1)
    names = sorted(path.relative_to(tmp_path / "photos") for path in (tmp_path / "photos").rglob("*.png"))
    labels, weights = tmp_path / "labels.csv", tmp_path / "start.safetensors"
    labels.write_text("file,label\n" + "".join(f"{name},{name.parent}\n" for name in names))
    shutil.copy(uncalibrated.weights, weights)
    config = replace(
        SHORT, data=str(tmp_path / "photos"), labels=str(labels), init=str(weights), limit=None, batch_size=10
    )
    run = experiment.run(replace(config, report=False), QUIET, tmp_path / "run")
    moved = [path.rename(tmp_path / f"moved-{path.name}") for path in (labels, weights)]
    assert main(["evaluate", "--run", str(run.path)]) == 2
    assert f"--labels: there is no file {labels}" in capsys.readouterr().err
    assert main(["evaluate", "--run", str(run.path), "--labels", str(moved[0])]) == 0
    assert main(["report", "--run", str(run.path), "--labels", str(moved[0])]) == 0
    options = ["--labels", str(moved[0]), "--init", str(moved[1])]
    assert main(["calibrate", "--run", str(run.path), *options]) == 0
    assert run.read_result().calibration


def test_a_second_network_of_a_limited_run_is_trained_on_fewer_images(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Config] = []
    train = experiment.run

    def noted(config: Config, *arguments: Any) -> RunFolder:
        trained.append(config)
        return train(config, *arguments)

    monkeypatch.setattr(experiment, "run", noted)
    calibrate_run(run.path, QUIET)
    (config,) = trained
    assert (config.limit, config.validation) == (50, 10), "of 60 training images"


def test_a_run_on_few_images_has_batches_that_fit(tmp_path: Path) -> None:
    data = write_images(tmp_path / "photos" / "train", {"ant": 6, "bee": 5}, seed=1).parent
    write_images(data / "test", {"ant": 2, "bee": 2}, seed=2)
    config = replace(SHORT, data=str(data), limit=None, batch_size=11, report=False)
    run = experiment.run(config, QUIET, tmp_path / "run")
    assert calibrate_run(run.path, QUIET).images == 2


def test_a_class_with_one_image_leaves_nothing_to_hold_out(tmp_path: Path) -> None:
    data = write_images(tmp_path / "photos" / "train", {"ant": 12, "bee": 1}, seed=1).parent
    write_images(data / "test", {"ant": 2, "bee": 2}, seed=2)
    run = experiment.run(
        replace(SHORT, data=str(data), limit=None, batch_size=5, report=False), QUIET, tmp_path / "run"
    )
    with pytest.raises(InputError, match="cannot be calibrated: class 'bee' has only one training image"):
        calibrate_run(run.path, QUIET)


def test_moved_data_is_named_and_other_data_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_images(tmp_path / "photos" / "train", {"ant": 12, "bee": 11}, seed=1).parent
    write_images(data / "test", {"ant": 2, "bee": 2}, seed=2)
    config = replace(SHORT, data=str(data), limit=None, batch_size=5, report=False)
    run = experiment.run(config, QUIET, tmp_path / "run")
    moved = data.rename(tmp_path / "moved")
    assert main(["calibrate", "--run", str(run.path)]) == 2
    assert f"{data}, the data of {run.path}, does not exist; give its path with --data" in capsys.readouterr().err
    assert main(["calibrate", "--run", str(run.path), "--data", "digits"]) == 2
    assert "was trained on other data" in capsys.readouterr().err
    assert not run.calibration.exists()
    assert main(["calibrate", "--run", str(run.path), "--data", str(moved)]) == 0


def test_an_unfinished_run_is_refused_with_the_command_that_finishes_it(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    run.result.unlink()
    assert main(["calibrate", "--run", str(run.path)]) == 2
    line = f"onecycle: {run.path} is not complete; `onecycle train --resume {run.path}` continues it\n"
    assert capsys.readouterr().err == line


def test_a_run_without_weights_is_refused_before_anything_is_trained(run: RunFolder) -> None:
    run.weights.unlink()
    with pytest.raises(InputError, match="has no weights.safetensors"):
        calibrate_run(run.path, QUIET)
    assert not run.calibration.exists()


def test_it_runs_in_one_process(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(InputError, match="calibrate runs in one process; start it without torchrun"):
        calibrate_run(run.path, QUIET)


def test_weights_of_other_classes_are_refused_before_anything_is_trained(run: RunFolder) -> None:
    predictor = Predictor.load(run.weights)
    replace(predictor, classes=tuple(f"other {number}" for number in range(10))).save(run.weights)
    with pytest.raises(InputError, match="its classes are not those of the run's data"):
        calibrate_run(run.path, QUIET)
    assert not run.calibration.exists()


def test_a_run_of_an_earlier_version_gets_its_energy_threshold(run: RunFolder, calibrated: RunFolder) -> None:
    result = json.loads(run.result.read_text())
    threshold = result.pop("energy_threshold")
    run.result.write_text(json.dumps(result))
    replace(Predictor.load(run.weights), energy_threshold=None).save(run.weights)
    shutil.copytree(calibrated.path, run.calibration)
    calibrate_run(run.path, QUIET)
    assert run.read_result().energy_threshold == Predictor.load(run.weights).energy_threshold == threshold


def test_logits_of_other_images_are_refused(
    run: RunFolder, calibrated: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "_train", lambda folder, *_: _second(folder, calibrated))
    arrays = run.read_predictions()
    run.write_arrays(run.predictions, logits=arrays.logits[:5], labels=arrays.labels[:5])
    with pytest.raises(InputError, match=r"predictions.npz is damaged .*its logits have the shape \[5, 10\]"):
        calibrate_run(run.path, QUIET)


def test_a_link_in_place_of_the_second_network_is_not_followed(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    run.calibration.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="calibration is a symbolic link; remove it"):
        calibrate_run(run.path, QUIET)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_run_in_use_is_not_changed(run: RunFolder, calibrated: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "_train", lambda folder, *_: _second(folder, calibrated))

    def in_use(path: Path) -> None:
        raise StorageError(f"process 1 is using {path}")

    monkeypatch.setattr(calibrate, "locked", in_use)
    with pytest.raises(StorageError, match="process 1 is using"):
        calibrate_run(run.path, QUIET)
    assert Predictor.load(run.weights).temperature == 1


def test_a_second_network_that_cannot_be_resumed_is_named(run: RunFolder) -> None:
    shutil.copytree(run.path, run.calibration)
    RunFolder(run.calibration).result.unlink()  # it belongs to a run with another configuration
    with pytest.raises(InputError, match=r"validation was 0 and is 10.*; or remove .*calibration and repeat"):
        calibrate_run(run.path, QUIET)


def test_an_own_network_is_calibrated_only_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\n"
        "def small(classes, size):\n    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, classes))\n"
    )
    network = f"{tmp_path}/nets.py:small"
    config = replace(SHORT, network=network, widths=(64, 256, 256), report=False)
    run = experiment.run(config, QUIET, tmp_path / "run")
    assert main(["calibrate", "--run", str(run.path)]) == 2
    assert f"if you trust this code, add --network {network}" in capsys.readouterr().err
    assert main(["calibrate", "--run", str(run.path), "--network", network]) == 0
    assert Predictor.load(run.weights, network=network).temperature == run.read_result().temperature
