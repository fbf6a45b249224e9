"""Earlier versions wrote the records in `results/` with older names. Reading the records gives current names."""

import json
import statistics
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onecycle.compute.plan import ComputePlan
from onecycle.core import older_records
from onecycle.core.config import Config
from onecycle.core.older_records import existing, with_current_names
from onecycle.storage.run_folder import RunFolder

RESULTS = Path(__file__).resolve().parents[2] / "results"
SUMMARIES = sorted((RESULTS / "studies").glob("*/summary.json"))
OLDER_NAMES = {
    *("acceleration", "small_map_products", "matrix_unit", "hole"),
    *("test_accuracy", "best_test_accuracy", "test_images", "test_loss"),
    *("mistakes", "mistake_images", "heat", "suspects", "suspect_images"),
    *(f"train_suspect{rest}" for rest in ("s", "_margins", "_labels", "_guesses", "_images")),
    *("deviation", "resolved", "pictures"),
}


def names_in(values: Any) -> Iterator[str]:
    """The names of all fields of nested JSON values."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield name
            yield from names_in(value)
    elif isinstance(values, list):
        for value in values:
            yield from names_in(value)


def without_older_names(values: Any) -> bool:
    return OLDER_NAMES.isdisjoint(names_in(values))


@pytest.fixture(params=["baseline-cifar10", "fast-cifar10"])
def folder(request: pytest.FixtureRequest) -> RunFolder:
    return RunFolder.open(RESULTS / request.param)


def incorrect(folder: RunFolder) -> np.ndarray:
    """The indices of the incorrect predictions in predictions.npz. The names in this file never changed."""
    arrays = folder.read_arrays(folder.predictions)
    return np.flatnonzero(arrays["logits"].argmax(axis=1) != arrays["labels"])


def test_the_records_have_older_names_so_these_tests_are_not_empty(folder: RunFolder) -> None:
    for file in (folder.result, folder.environment, folder.config):
        assert not without_older_names(json.loads(file.read_text())), file
    assert not without_older_names(json.loads(folder.history.read_text().splitlines()[0]))
    assert not folder.misclassified.exists()
    with np.load(folder.interpretation) as arrays:
        assert not without_older_names(dict(arrays))
    assert len(SUMMARIES) > 5
    assert not any(without_older_names(json.loads(path.read_text())) for path in SUMMARIES)


def test_every_older_name_is_tested() -> None:
    assert set(older_records._CURRENT_NAMES) == OLDER_NAMES


def test_the_result_and_the_history_have_the_accuracy_of_the_predictions(folder: RunFolder) -> None:
    result, history = folder.read_result(), folder.read_history()
    assert result.eval_images == len(folder.read_arrays(folder.predictions)["labels"]) == 10_000
    assert result.eval_accuracy == pytest.approx(1 - len(incorrect(folder)) / result.eval_images)
    assert [record.epoch for record in history] == list(range(1, result.epochs + 1))
    assert (history[-1].eval_accuracy, history[-1].eval_loss) == (result.eval_accuracy, result.eval_loss)
    assert history[result.best_epoch - 1].eval_accuracy == result.best_eval_accuracy
    assert without_older_names(folder.read_json(folder.result))


def test_the_environment_holds_a_compute_plan(folder: RunFolder) -> None:
    environment = folder.read_json(folder.environment)
    assert without_older_names(environment)
    assert environment["compute_plan"].keys() <= {field.name for field in fields(ComputePlan)}
    plan = ComputePlan.from_json(environment["compute_plan"])
    is_amx = "Xeon" in environment["hardware"]["cpu"]
    assert (plan.device, plan.precision, plan.channels_last) == ("cpu", "bfloat16", True)
    assert (plan.im2col_gemm, plan.amx) == (is_amx, is_amx), "only the run on a Xeon used AMX"


def test_the_configuration_holds_the_size_of_the_cutout(folder: RunFolder) -> None:
    config = Config.load(folder.config)
    assert folder.read_config() == config
    assert config.recipe == folder.path.name.removesuffix("-cifar10") == folder.read_result().recipe
    assert config.cutout == (8 if config.recipe == "baseline" else 0)
    assert config.epochs == folder.read_result().epochs


def test_the_misclassified_images_are_read_from_the_file_with_the_older_name(folder: RunFolder) -> None:
    misclassified = folder.read_misclassified()
    labels = folder.read_arrays(folder.predictions)["labels"]
    assert set(misclassified.indices) <= set(incorrect(folder))
    assert np.array_equal(misclassified.labels, labels[misclassified.indices])
    assert (misclassified.labels != misclassified.predictions).all()
    assert len(misclassified.images) == len(misclassified.indices) > 0


def test_the_interpretation_holds_all_incorrect_predictions_and_label_issues(folder: RunFolder) -> None:
    interpretation = folder.read_interpretation()
    assert interpretation is not None
    assert sorted(interpretation.misclassified) == sorted(incorrect(folder))
    shown = len(interpretation.heatmaps)
    assert interpretation.misclassified_images.shape == (shown, 32, 32, 3)
    assert interpretation.heatmaps.max() == 255
    assert len(interpretation.label_issue_images) <= len(interpretation.label_issues)
    counts = {
        len(interpretation.train_label_issues),
        len(interpretation.train_label_issue_margins),
        len(interpretation.train_label_issue_labels),
    }
    assert len(counts) == 1
    assert len(interpretation.train_label_issue_images) <= len(interpretation.train_label_issue_predictions)
    assert (np.diff(interpretation.train_label_issue_margins) >= 0).all(), "the most suspicious first"


def test_every_run_in_results_is_read_with_current_names() -> None:
    folders = [RunFolder.open(path.parent) for path in sorted(RESULTS.rglob("config.json"))]
    assert len(folders) > 100
    for folder in folders:
        assert folder.read_config().recipe in ("baseline", "quick", "fast")
        ComputePlan.from_json(folder.read_json(folder.environment)["compute_plan"])
        curve = folder.read_lr_curve()
        if folder.result.exists():
            assert folder.read_history()[-1].eval_accuracy == folder.read_result().eval_accuracy
        else:
            assert curve is not None, "a folder without result.json must have an LR curve"


@pytest.mark.parametrize("path", SUMMARIES, ids=lambda path: path.parent.name)
def test_the_summary_of_a_study_holds_standard_deviations_and_significance(path: Path) -> None:
    summary = with_current_names(json.loads(path.read_text()))
    assert without_older_names(summary)
    for variant in summary["variants"].values():
        accuracy = variant["accuracy"]
        several = len(accuracy["values"]) > 1
        assert accuracy["std"] == (pytest.approx(statistics.stdev(accuracy["values"])) if several else None)
        for difference in variant.get("against_the_first", {}).values():
            interval = difference["interval_95"]
            assert difference["significant"] == (interval is not None and not interval[0] <= 0 <= interval[1])


def test_only_names_change_and_values_do_not() -> None:
    image = np.zeros((2, 2))
    values = {"heat": image, "note": "mistakes", "runs": [{"hole": 8}, ["hole"]], "lr": 0.1}
    current = with_current_names(values)
    assert current == {"heatmaps": image, "note": "mistakes", "runs": [{"cutout": 8}, ["hole"]], "lr": 0.1}
    assert current["heatmaps"] is image
    assert with_current_names(current) == current
    assert "heat" in values, "the argument is unchanged"


def test_an_older_file_name_is_used_only_if_no_file_has_the_current_name(tmp_path: Path) -> None:
    current, older = tmp_path / "misclassified.npz", tmp_path / "mistakes.npz"
    assert existing(current) == current
    older.touch()
    assert existing(current) == older
    current.touch()
    assert existing(current) == current
    assert existing(tmp_path / "predictions.npz") == tmp_path / "predictions.npz"


def test_names_of_classes_are_not_renamed() -> None:
    values = {"by_class": {"hole": {"deviation": 0.5}, "heat": {"deviation": 0.25}}}
    assert with_current_names(values) == {"by_class": {"hole": {"std": 0.5}, "heat": {"std": 0.25}}}


def test_the_record_of_ray_counts_images() -> None:
    record = json.loads((RESULTS / "on_ray.json").read_text())
    assert with_current_names(record)["images"]["images"] == record["pictures"]["pictures"] == 100_000
