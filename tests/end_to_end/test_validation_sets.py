"""Runs on data with a validation set, which is evaluated after every epoch, and a test set, evaluated at the end."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from image_folders import write_images
from networks import NARROW

from onecycle.cli import main
from onecycle.core.metrics import probabilities_of
from onecycle.core.temperature import fit_temperature
from onecycle.data import load_dataset
from onecycle.predict.predictor import Predictor
from onecycle.report.model_card import write_card
from onecycle.run import experiment
from onecycle.run.experiment import evaluate
from onecycle.storage.checkpoint import load_tensors
from onecycle.storage.run_folder import RunFolder

SIZES = {"train": 12, "val": 4, "test": 5}  # images of each class
OPTIONS = [
    *NARROW,
    "--augmentation",
    "batched",
    "--workers",
    "0",
    "--batch-size",
    "8",
    "--epochs",
    "2",
    "--lr-min",
    "1e-4",
    "--lr-max",
    "2e-3",
]


def write_sets(root: Path, *splits: str) -> Path:
    for split in splits:
        write_images(root / split, dict.fromkeys(("ant", "bee", "cat"), SIZES[split]), seed=SIZES[split])
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("sets") / "photos", "train", "val", "test")


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    out = tmp_path_factory.mktemp("runs")
    assert main(["train", *OPTIONS, "--data", str(photos), "--out", str(out)]) == 0
    return RunFolder(next(out.iterdir()))


def test_the_result_is_of_the_test_set_and_the_history_of_the_validation_set(run: RunFolder, photos: Path) -> None:
    result, history = run.read_result(), run.read_history()
    assert (result.evaluated_on, result.epoch_evaluated_on) == ("test", "validation")
    assert (result.train_images, result.validation_images, result.eval_images) == (36, 12, 15)
    assert result.validation_accuracy == history[-1].eval_accuracy
    assert result.best_eval_accuracy == max(record.eval_accuracy for record in history)
    data = load_dataset(photos)
    predictions = run.read_predictions()
    np.testing.assert_array_equal(predictions.labels, data.evaluation.labels)
    assert result.eval_accuracy == (predictions.logits.argmax(axis=1) == predictions.labels).mean()
    assert result.fingerprint == data.fingerprint


def test_the_same_network_is_trained_whether_there_is_a_validation_set_or_not(run: RunFolder, tmp_path: Path) -> None:
    data = write_sets(tmp_path / "photos", "train", "test")
    out = tmp_path / "out"
    assert main(["train", *OPTIONS, "--no-report", "--data", str(data), "--out", str(out)]) == 0
    without = RunFolder(next(out.iterdir()))
    ours, theirs = load_tensors(run.weights)[0], load_tensors(without.weights)[0]
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items()) and len(ours) == len(theirs)
    one, other = without.read_result(), run.read_result()
    assert (one.eval_accuracy, one.eval_loss, one.fingerprint) == (
        other.eval_accuracy,
        other.eval_loss,
        other.fingerprint,
    )
    assert (one.validation_images, one.validation_accuracy, one.epoch_evaluated_on) == (0, None, "test")
    assert main(["compare", "--run", str(run.path), str(without.path), "--out", str(tmp_path / "compare.html")]) == 0
    page = (tmp_path / "compare.html").read_text()
    assert "on the same 15 test images" in page and "Accuracy by epoch (test and validation)" in page


def test_the_temperature_is_fitted_to_the_validation_images(run: RunFolder, photos: Path) -> None:
    fitted = run.read_result().calibration
    predictor, validation = Predictor.load(run.weights), load_dataset(photos).validation
    assert fitted and validation and (fitted.images, fitted.source) == (12, "validation")
    assert predictor.temperature == fitted.temperature
    uncalibrated = replace(predictor, temperature=1.0).predict_images(validation.images)
    log_probabilities = np.log([prediction.probabilities for prediction in uncalibrated])
    assert fit_temperature(log_probabilities, validation.labels) == pytest.approx(fitted.temperature, rel=0.01)
    shares = predictor.predict_images(load_dataset(photos).evaluation.images)
    with run.predictions_table.open() as file:
        written = [float(row["probability"]) for row in csv.DictReader(file)]
    assert written == pytest.approx([prediction.probability for prediction in shares], abs=0.01)
    kept = run.read_misclassified()
    expected = probabilities_of(run.read_predictions().logits, fitted.temperature)[kept.indices]
    np.testing.assert_allclose(kept.probabilities, expected, rtol=1e-6)
    assert (np.diff(kept.probabilities.max(axis=1)) <= 0).all(), "most confident first"


def test_the_report_and_the_card_show_the_calibration_before_and_after(run: RunFolder, tmp_path: Path) -> None:
    report, fitted = run.report.read_text(), run.read_result().calibration
    assert fitted
    assert f"Temperature scaling divides the logits by {fitted.temperature:.3f}, which changes no prediction" in report
    assert "The temperature was fitted on 12 validation images." in report and "the same images" not in report
    card = write_card(run, Predictor.load(run.weights), tmp_path / "network.safetensors").read_text()
    assert "before temperature scaling" in card
    assert f"includes the temperature, {fitted.temperature:.3f}, fitted on 12 validation images." in card


def test_output_report_and_plots_name_both_sets(
    photos: Path, run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run.report.read_text()
    assert "of 15 test images were classified correctly" in report
    assert "validation accuracy" in report and "on 12 images, at the last epoch" in report
    assert "chosen on the validation images: not the result" in report
    assert "(validation)" in report and "(test)" not in report  # the titles of the curves
    assert main(["train", *OPTIONS, "--no-report", "--data", str(photos), "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert (
        f"image folder {photos} with train/, val/ and test/: 36 training images, 12 validation images, 15 test" in out
    )
    assert "Classes: 3 (ant, bee, cat)" in out
    assert "val loss" in out and "test loss" not in out
    assert "not calibrated" not in out
    assert out.splitlines()[-1].startswith("test accuracy ") and " at the last epoch (validation " in out
    assert main(["evaluate", "--run", str(run.path)]) == 0
    assert capsys.readouterr().out.startswith(f"test accuracy {run.read_result().eval_accuracy}")
    card = write_card(run, Predictor.load(run.weights), tmp_path / "network.safetensors").read_text()
    assert "36 training images, 12 validation images, and 15 test images" in card and "of 15 test images were" in card


def test_an_interrupted_run_needs_its_validation_set_to_continue(
    run: RunFolder, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def stop_at_the_end(*arguments: object, **named: object) -> object:
        if named["evaluated_on"] == "test":
            calls.append(arguments)
            raise OSError("stopped")
        return evaluate(*arguments, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(experiment, "evaluate", stop_at_the_end)
        with pytest.raises(OSError, match="stopped"):
            main(["train", *OPTIONS, "--no-report", "--data", str(photos), "--out", str(tmp_path / "out"), "--debug"])
    assert len(calls) == 1, "the test set is evaluated once, after the last epoch"
    stopped = next((tmp_path / "out").iterdir())
    other = write_sets(tmp_path / "other" / "photos", "train", "test")
    assert main(["train", "--resume", str(stopped), "--data", str(other)]) == 2
    assert "validation set was " in capsys.readouterr().err
    moved = tmp_path / "elsewhere"
    shutil.copytree(photos, moved)
    assert main(["train", "--resume", str(stopped), "--data", str(moved)]) == 0
    resumed = RunFolder(stopped)
    assert resumed.weights.read_bytes() == run.weights.read_bytes()
    assert [record.eval_accuracy for record in resumed.read_history()] == [
        record.eval_accuracy for record in run.read_history()
    ]
    assert resumed.read_result().eval_loss == run.read_result().eval_loss
    assert resumed.read_result().calibration == run.read_result().calibration


def test_with_a_validation_set_only_everything_says_validation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_sets(tmp_path / "photos", "train", "val")
    assert main(["train", *OPTIONS, "--data", str(data), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("validation accuracy ") and "test" not in out.replace(str(tmp_path), "")
    folder = RunFolder(next((tmp_path / "out").iterdir()))
    assert folder.read_result().evaluated_on == folder.read_result().epoch_evaluated_on == "validation"
    report = folder.report.read_text()
    assert "of 12 validation images were classified correctly" in report and "test images" not in report
    assert "The diagram shows the same images, so the error on other images may be larger." in report


def test_the_report_of_a_run_without_recorded_splits_is_as_before(run: RunFolder, tmp_path: Path) -> None:
    """Earlier versions recorded neither the splits nor a validation set."""
    older = RunFolder(tmp_path / "older")
    shutil.copytree(run.path, older.path)
    environment, result = older.read_json(older.environment), older.read_json(older.result)
    for name in ("evaluated_on", "epoch_evaluated_on"):
        del environment["dataset"][name]
    for name in ("validation_images", "validation_accuracy"):
        del result[name]
    older.environment.write_text(json.dumps(environment))
    older.result.write_text(json.dumps(result))
    assert main(["report", "--run", str(older.path)]) == 0
    report = older.report.read_text()
    assert "(test)" in report and "(validation)" not in report


def test_a_run_with_a_table_of_labels_is_evaluated_again_where_its_data_moved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, rows = tmp_path / "photos", ["file,label,split"]
    for path in sorted(write_sets(data, "train", "val", "test").glob("*/*/*.png")):
        split, label, name = path.relative_to(data).parts
        path.rename(data / f"{split}-{label}-{name}")
        rows.append(f"{split}-{label}-{name},{label},{split}")
    (data / "table.csv").write_text("\n".join(rows))
    options = [*OPTIONS, "--no-report", "--data", str(data), "--labels", "table.csv", "--out", str(tmp_path / "out")]
    assert main(["train", *options]) == 0
    assert "with labels from" in capsys.readouterr().out
    folder = RunFolder(next((tmp_path / "out").iterdir()))
    assert folder.read_config().labels == "table.csv"
    assert "labels" not in folder.read_config().defining_values()
    data.rename(tmp_path / "moved")
    assert main(["evaluate", "--run", str(folder.path), "--data", str(tmp_path / "moved")]) == 0
    assert "agrees with the recorded result" in capsys.readouterr().out
