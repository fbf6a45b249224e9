"""The command line from data to predictions, on a few dozen digits."""

import io
import json
import multiprocessing
import re
import shutil
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import FINDABLE, NARROW
from PIL import Image

from onecycle.cli import main
from onecycle.compute.plan import ComputePlan
from onecycle.core.out_of_distribution import energy_scores_of
from onecycle.core.recipes import FAST
from onecycle.data import ImageSet, load_dataset
from onecycle.models import Architecture
from onecycle.predict.predictor import Predictor, load
from onecycle.run import environment
from onecycle.storage.run_folder import RunFolder

OPTIONS = [*NARROW, "--data", "digits", "--limit", "50", "--epochs", "3", "--batch-size", "16", "--workers", "0"]
RATES = ["--lr-min", "1e-5", "--lr-max", "0.002"]
GRAY = "All training images are gray, so the network converts every image to gray"
TWO_STEPS = [*FINDABLE, "--epochs", "1"]

FILES = {
    "augmentations.npz",
    "config.json",
    "environment.json",
    "history.jsonl",
    "interpretation.npz",
    "misclassified.npz",
    "network.json",
    "plots/accuracy.png",
    "plots/augmentations.png",
    "plots/confusion_matrix.png",
    "plots/incorrect_predictions.png",
    "plots/learning_rate.png",
    "plots/loss.png",
    "predictions.csv",
    "predictions.npz",
    "report.html",
    "result.json",
    "training_margins.npz",
    "weights.safetensors",
}


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


def onecycle(*arguments: str | Path) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return Outcome(code, out.getvalue(), err.getvalue())


def only_run(out: Path) -> RunFolder:
    (path,) = out.iterdir()
    return RunFolder(path)


def trained(out: Path, *arguments: str | Path) -> RunFolder:
    """Train, require success, and return the run folder."""
    outcome = onecycle("train", *arguments, "--out", out)
    assert (outcome.code, outcome.err) == (0, "")
    return only_run(out)


def files_of(folder: RunFolder) -> set[str]:
    return {str(path.relative_to(folder.path)) for path in folder.path.rglob("*") if path.is_file()}


def history_of(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.history.read_text().splitlines()]


def assert_same_run(one: RunFolder, other: RunFolder) -> None:
    """Check that both runs have the same results, bit for bit. Only durations may differ."""
    plans = [folder.read_json(folder.environment)["compute_plan"] for folder in (one, other)]
    assert plans[0] == plans[1]
    for name in ("weights", "predictions", "misclassified"):
        one_digest, other_digest = (sha256(getattr(run, name).read_bytes()).hexdigest() for run in (one, other))
        assert one_digest == other_digest, name
    histories = [
        [{**record, "seconds": 0, "training_seconds": 0} for record in history_of(folder)] for folder in (one, other)
    ]
    assert histories[0] == histories[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Outcome]:
    """A finished run with given learning rates, and its output. A test that changes the run folder copies it first."""
    out = tmp_path_factory.mktemp("finished")
    outcome = onecycle("train", *OPTIONS, *RATES, "--out", out)
    assert (outcome.code, outcome.err) == (0, "")
    return only_run(out), outcome


@pytest.fixture
def run(finished: tuple[RunFolder, Outcome]) -> RunFolder:
    return finished[0]


@pytest.fixture
def copied(run: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(run.path, tmp_path / "copy")))


@pytest.fixture(scope="module")
def with_finder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The smallest run that finds its learning rates."""
    return trained(tmp_path_factory.mktemp("finder"), *TWO_STEPS)


# Tests of the run folder


def test_a_run_has_a_folder_of_its_own_with_exactly_its_files(run: RunFolder) -> None:
    assert re.fullmatch(r"baseline-digits-\d{8}-\d{6}", run.path.name)
    assert files_of(run) == FILES


def test_a_run_that_finds_its_learning_rates_also_has_the_curve_and_its_plot(with_finder: RunFolder) -> None:
    assert files_of(with_finder) == FILES | {"lr_finder.json", "plots/lr_finder.png"}
    curve, result = with_finder.read_json(with_finder.lr_finder), with_finder.read_json(with_finder.result)
    assert (result["lr_min"], result["lr_max"]) == (curve["lr_min"], curve["lr_max"])
    assert 0 < curve["lr_min"] < curve["lr_max"] < 1


def test_the_screen_shows_data_device_every_epoch_and_the_result(finished: tuple[RunFolder, Outcome]) -> None:
    folder, outcome = finished
    result, lines = folder.read_json(folder.result), outcome.out.splitlines()
    assert lines[0] == f"!!! {GRAY}"
    assert f"50 training images, 50 test images, fingerprint {result['fingerprint'][:12]}" in lines[1]
    assert lines[2] == "Classes: 10 (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)"
    assert re.match(r"Computing on cpu with \d+ threads?: ", lines[3])
    rows = [line.split() for line in lines if re.match(r" +\d/3 ", line)]
    assert [row[0] for row in rows] == ["1/3", "2/3", "3/3"]
    assert [row[5] for row in rows] == [f"{record['eval_accuracy']:.2%}" for record in history_of(folder)]
    assert lines[-1].startswith(f"test accuracy {result['eval_accuracy']:.2%} at the last epoch (best ")
    assert lines[-1].endswith(f"in {folder.path}")
    assert all(character.isprintable() for line in lines for character in line)


def test_the_history_has_one_line_per_epoch_with_exactly_these_fields(run: RunFolder) -> None:
    history = history_of(run)
    fields = [
        "epoch",
        "lr",
        "train_loss",
        "train_accuracy",
        "eval_loss",
        "eval_accuracy",
        "seconds",
        "training_seconds",
    ]
    assert [list(record) for record in history] == [fields] * 3
    assert [record["epoch"] for record in history] == [1, 2, 3]
    # The run has steps 0 to 11. The learning rate peaks at step 1, because 5/24 of the run are about two steps. It then
    # falls for 10 steps.
    down = (0.002 - 1e-5) / 10
    assert [record["lr"] for record in history] == pytest.approx([0.002 - 2 * down, 0.002 - 6 * down, 1e-5])


def test_the_result_agrees_with_history_predictions_and_data(run: RunFolder) -> None:
    result, history = run.read_json(run.result), history_of(run)
    digits = load_dataset("digits", limit=50)
    with np.load(run.predictions) as arrays:
        logits, labels = arrays["logits"], arrays["labels"]
    np.testing.assert_array_equal(labels, digits.evaluation.labels)
    assert logits.shape == (50, 10) and logits.dtype == np.float32
    accuracy = (logits.argmax(axis=1) == labels).mean()
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels))
    assert result["eval_accuracy"] == history[-1]["eval_accuracy"] == accuracy
    assert result["eval_loss"] == history[-1]["eval_loss"] == pytest.approx(float(loss), rel=1e-5)
    assert result["train_accuracy"] == history[-1]["train_accuracy"]
    accuracies = [record["eval_accuracy"] for record in history]
    assert result["best_eval_accuracy"] == max(accuracies)
    assert result["best_epoch"] == accuracies.index(max(accuracies)) + 1
    assert all(0 <= record[name] <= 1 for record in history for name in ("train_accuracy", "eval_accuracy"))
    assert result["seconds"] > sum(record["seconds"] for record in history)
    assert result["images_per_second"] == pytest.approx(150 / sum(record["seconds"] for record in history))
    assert result["peak_memory_gib"] > 0.1
    expected = {
        "recipe": "baseline",
        "dataset": "digits",
        "fingerprint": digits.fingerprint,
        "evaluated_on": "test",
        "train_images": 50,
        "eval_images": 50,
        "notes": [GRAY],
        "seed": 0,
        "parameters": 5_096,
        "lr_min": 1e-5,
        "lr_max": 0.002,
        "epochs": 3,
    }
    assert {name: result[name] for name in expected} == expected


def test_the_result_has_the_accuracy_on_training_images_without_augmentation(run: RunFolder) -> None:
    result, train = run.read_result(), load_dataset("digits", limit=50).train
    assert result.train_sample_images == 50
    found = [prediction.class_name for prediction in load(run.path).predict_images(train.images)]
    expected = [train.classes[label] for label in train.labels]
    correct = sum(name == label for name, label in zip(found, expected, strict=True))
    assert result.train_sample_accuracy == pytest.approx(correct / 50)


def test_a_network_that_is_worse_in_evaluation_than_in_training_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--recipe", "quick", "--widths", "16", "32", "32", "--sizes", "16", "--size", "16"]
    options += ["--data", "digits", "--limit", "400", "--out", str(tmp_path)]
    trusted = onecycle("train", *options)
    assert "Do not trust" not in trusted.out and only_run(tmp_path).read_result().eval_accuracy > 0.5

    def set_wrong_statistics(model: torch.nn.Module, *_: object, **__: object) -> None:
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d) and layer.running_mean is not None:
                layer.running_mean.fill_(100.0)

    monkeypatch.setattr("onecycle.train.loop.set_batch_norm_statistics", set_wrong_statistics)
    shutil.rmtree(tmp_path)
    doubted = onecycle("train", *options)
    warning = only_run(tmp_path).read_result().warning
    assert warning is not None and warning.startswith("Do not trust this network: it classifies only ")
    assert f"!!! {warning}\nReport: " in doubted.out
    assert warning in (only_run(tmp_path).path / "report.html").read_text()


def test_a_run_prints_its_expected_time_once_and_says_which_kernels_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onecycle.run.expected_time.FEWEST_SECONDS", 0)
    monkeypatch.setattr("onecycle.compute.kernels.native._compiled_or_reason", lambda: (None, "there is no compiler"))
    options = ["--recipe", "quick", *NARROW[2:], "--data", "digits", "--limit", "60", "--batch-size", "12"]
    printed = onecycle("train", *options, "--no-report", "--out", tmp_path).out
    assert len(re.findall(r"^Expected time: \d+ seconds$", printed, flags=re.MULTILINE)) == 1
    assert "The kernels in C are missing, so training takes longer. The reason: there is no compiler" in printed


def test_the_misclassified_images_are_the_most_confident_ones_with_their_pixels(run: RunFolder) -> None:
    misclassified, digits = run.read_misclassified(), load_dataset("digits", limit=50).evaluation
    with np.load(run.predictions) as arrays:
        probabilities = torch.softmax(torch.from_numpy(arrays["logits"]), dim=1).numpy()
    predictions = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predictions != digits.labels)
    assert len(wrong) > 0
    assert len(misclassified.indices) == min(40, len(wrong))
    assert set(misclassified.indices) <= set(wrong)
    np.testing.assert_array_equal(misclassified.images, digits.images[misclassified.indices])
    np.testing.assert_array_equal(misclassified.labels, digits.labels[misclassified.indices])
    np.testing.assert_array_equal(misclassified.predictions, predictions[misclassified.indices])
    confidence = misclassified.probabilities.max(axis=1)
    assert (np.diff(confidence) <= 0).all()
    assert confidence == pytest.approx(np.sort(probabilities[wrong].max(axis=1))[::-1][:40], abs=1e-6)


def test_configuration_environment_and_fingerprint_are_recorded(run: RunFolder) -> None:
    config, environment = run.read_json(run.config), run.read_json(run.environment)
    assert config["data"] == "digits" and config["limit"] == 50 and config["lr_max"] == 0.002
    assert config["out"] == str(run.path.parent)
    assert environment["dataset"]["fingerprint"] == run.read_json(run.result)["fingerprint"]
    assert environment["compute_plan"]["threads"] == environment["hardware"]["cores"]
    assert environment["autotune"][0]["milliseconds"]["float32"] > 0
    assert environment["versions"]["torch"] == torch.__version__


def test_classes_input_size_and_normalization_travel_with_the_weights(run: RunFolder) -> None:
    content = run.weights.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = json.loads(header["__metadata__"]["onecycle"])
    channels = load_dataset("digits", limit=50).train.images.reshape(-1, 3) / 255
    assert metadata["classes"] == list("0123456789")
    assert metadata["preprocessing"]["input_size"] == 32
    assert metadata["preprocessing"]["mean"] == pytest.approx(channels.mean(axis=0))
    assert metadata["preprocessing"]["std"] == pytest.approx(channels.std(axis=0))


# Tests that evaluate or repeat a run


def test_evaluating_a_run_gives_its_result_to_the_last_digit(run: RunFolder) -> None:
    outcome = onecycle("evaluate", "--run", run.path)
    result = run.read_json(run.result)
    assert (outcome.code, outcome.err) == (0, "")
    assert f"test accuracy {result['eval_accuracy']}, loss {result['eval_loss']}\n" in outcome.out
    assert outcome.out.endswith("agrees with the recorded result\n")


@pytest.mark.parametrize("field", ["eval_accuracy", "eval_loss"])
def test_evaluate_detects_a_result_that_was_altered(copied: RunFolder, field: str) -> None:
    result = copied.read_json(copied.result)
    copied.write_json(copied.result, {**result, field: result[field] + 1e-6})
    outcome = onecycle("evaluate", "--run", copied.path)
    assert outcome.code == 1
    assert outcome.err.startswith("differs from the recorded result: test accuracy ")


def test_evaluating_on_other_data_is_refused(run: RunFolder, image_folder: Path) -> None:
    outcome = onecycle("evaluate", "--run", run.path, "--data", image_folder)
    assert (outcome.code, outcome.out) == (2, "")
    assert re.fullmatch(
        r"onecycle: .* was trained on other data, with the fingerprint \w{12}; .* has the fingerprint \w{12}; .*\n",
        outcome.err,
    )


# Python 3.12 warns about a fork in a process with threads.
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_runs_configuration_repeats_it_bit_for_bit_with_any_number_of_workers(run: RunFolder, tmp_path: Path) -> None:
    again = trained(tmp_path / "again", "--config", run.config, "--workers", "2")
    assert_same_run(again, run)
    configs = [{**folder.read_json(folder.config), "workers": 0, "out": ""} for folder in (again, run)]
    assert configs[0] == configs[1]


def test_a_found_pair_given_by_hand_makes_the_same_run_and_another_seed_a_different_one(
    with_finder: RunFolder, tmp_path: Path
) -> None:
    found = with_finder.read_json(with_finder.lr_finder)
    rates = ["--lr-min", repr(found["lr_min"]), "--lr-max", repr(found["lr_max"])]
    by_hand = trained(tmp_path / "by hand", *TWO_STEPS, *rates)
    assert_same_run(by_hand, with_finder)  # the LR finder has no other effect on the run
    assert files_of(by_hand) == FILES
    other = trained(tmp_path / "other", *TWO_STEPS, *rates, "--seed", "1")
    assert other.weights.read_bytes() != by_hand.weights.read_bytes()


def test_find_lr_writes_the_curve_that_training_finds_and_its_plot(with_finder: RunFolder, tmp_path: Path) -> None:
    outcome = onecycle("find-lr", "--config", with_finder.config, "--out", tmp_path / "out")
    folder = only_run(tmp_path / "out")
    assert (outcome.code, outcome.err) == (0, "")
    assert folder.path.name.startswith("find-lr-digits-")
    assert files_of(folder) == {
        "augmentations.npz",
        "config.json",
        "environment.json",
        "lr_finder.json",
        "network.json",
        "plots/augmentations.png",
        "plots/lr_finder.png",
    }
    assert folder.lr_finder.read_bytes() == with_finder.lr_finder.read_bytes()
    plot = "plots/lr_finder.png"
    assert (folder.path / plot).read_bytes() == (with_finder.path / plot).read_bytes()
    assert outcome.out.splitlines()[-2:] == [str(folder.lr_finder), str(folder.path / plot)]
    curve = folder.read_json(folder.lr_finder)
    assert f"LR min {curve['lr_min']:.2e}, LR max {curve['lr_max']:.2e}" in outcome.out
    assert all(f"{name} {lr:.2e}" in outcome.out for name, lr in curve["suggestions"].items())


# Tests of runs that are killed and resumed


def killed_after_its_first_epoch(out: Path, *options: str) -> RunFolder:
    """The folder of a run that was killed after its first checkpoint. By default it has the options of `finished`."""
    arguments = ["train", *(options or (*OPTIONS, *RATES)), "--out", str(out)]
    process = multiprocessing.get_context("forkserver").Process(target=onecycle, args=arguments)
    process.start()
    try:
        while not list(out.glob("*/checkpoint.safetensors")):
            assert process.is_alive(), process.exitcode
            time.sleep(0.002)
    finally:
        process.kill()
        process.join()
    return only_run(out)


def test_a_run_that_was_killed_and_resumed_is_the_uninterrupted_run_bit_for_bit(run: RunFolder, tmp_path: Path) -> None:
    killed = killed_after_its_first_epoch(tmp_path / "out")
    assert killed.checkpoint.exists() and not killed.result.exists()
    killed.history.unlink(missing_ok=True)  # the kill may come before the history is written
    outcome = onecycle("train", "--resume", killed.path)
    assert (outcome.code, outcome.err) == (0, "")
    assert re.search(r"Resuming .* after epoch [12](, step \d+)?\n", outcome.out)
    assert_same_run(killed, run)
    assert files_of(killed) == FILES
    results = [
        {**folder.read_json(folder.result), "seconds": 0, "images_per_second": 0, "peak_memory_gib": 0}
        for folder in (killed, run)
    ]
    assert results[0] == results[1]
    for name in ("accuracy", "loss", "learning_rate", "confusion_matrix", "incorrect_predictions", "augmentations"):
        assert (killed.plots / f"{name}.png").read_bytes() == (run.plots / f"{name}.png").read_bytes()


def test_the_fast_recipe_trains_to_the_end_and_resumes_after_a_kill(tmp_path: Path) -> None:
    options = (
        *("--recipe", "fast", *NARROW[2:], "--data", "digits", "--limit", "90"),
        *("--epochs", "3", "--batch-size", "30", "--degraded", "0.5"),
    )
    run = trained(tmp_path / "whole", *options)
    result = run.read_result()
    assert (result.recipe, result.lr_max, result.lr_min) == ("fast", FAST.lr_max, 0)
    assert result.tta_accuracy is not None and 0 <= result.tta_accuracy <= 1
    assert not run.lr_finder.exists(), "the learning rates are part of the recipe"
    killed = killed_after_its_first_epoch(tmp_path / "killed", *options)
    assert onecycle("train", "--resume", killed.path).code == 0
    assert_same_run(killed, run)
    assert killed.read_result().tta_accuracy == result.tta_accuracy
    assert onecycle("evaluate", "--run", run.path).code == 0
    assert Predictor.load(run.weights).architecture == Architecture.of(replace(FAST, widths=(8, 8, 8)))


def test_the_energy_threshold_keeps_95_percent_of_the_evaluated_images(run: RunFolder) -> None:
    result, scores = run.read_result(), energy_scores_of(run.read_predictions().logits)
    assert result.energy_threshold is not None and result.energy_threshold in scores
    below = int((scores < result.energy_threshold).sum())
    assert below == int(0.05 * (result.eval_images - 1))
    assert Predictor.load(run.weights).energy_threshold == result.energy_threshold
    sentence = f"Of the {result.eval_images} test images, {below} have a lower score"
    assert sentence in run.report.read_text()


@pytest.fixture
def begun(run: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of the run folder of `finished` in its state before the first epoch."""
    begun = RunFolder(tmp_path / "begun")
    begun.plots.mkdir(parents=True)
    for name in ("config.json", "environment.json", "network.json", "augmentations.npz"):
        shutil.copy(run.path / name, begun.path)
    return begun


def test_resume_and_evaluation_use_the_compute_plan_of_the_run(begun: RunFolder) -> None:
    environment = begun.read_json(begun.environment)
    plan = ComputePlan(im2col_gemm=True, threads=1)  # a plan that no machine would choose
    begun.write_json(begun.environment, {**environment, "compute_plan": plan.to_json()})
    outcome = onecycle("train", "--resume", begun.path)
    assert (outcome.code, outcome.err) == (0, "")
    assert "Computing on cpu with 1 thread: float32, im2col GEMM\n" in outcome.out
    assert onecycle("evaluate", "--run", begun.path).out.endswith("agrees with the recorded result\n")


def test_a_run_resumes_with_other_code_only_on_request_and_records_that(
    begun: RunFolder, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = begun.read_json(begun.environment)
    assert recorded["code"] == environment.code_digest()
    monkeypatch.setattr(environment, "code_digest", lambda: "f" * 64)
    refused = onecycle("train", "--resume", begun.path)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith(f"onecycle: the code of onecycle has changed since {begun.path} was trained; ")
    assert files_of(begun) == {"config.json", "environment.json", "network.json", "augmentations.npz"}
    without_data = onecycle("train", "--resume", begun.path, "--allow-code-changes", "--data", "nowhere")
    assert without_data.code == 2
    assert begun.read_json(begun.environment) == recorded, "a refused resume changes nothing"
    allowed = onecycle("train", "--resume", begun.path, "--allow-code-changes")
    assert (allowed.code, allowed.err) == (0, "")
    assert "!!! The code of onecycle has changed since this run was last trained\n" in allowed.out
    resumed = begun.read_json(begun.environment)
    (change,) = resumed.pop("resumed")
    assert resumed == recorded and change["code"] == "f" * 64 and change["hardware"] == recorded["hardware"]
    assert not environment.has_other_code(begun), "the next resume compares with the code of this one"
    assert_same_run(begun, run)
    unused = onecycle("train", *OPTIONS, "--allow-code-changes")
    assert (unused.code, unused.out) == (2, "") and "add --resume RUN" in unused.err


def test_a_run_whose_record_lacks_the_digest_of_the_code_has_other_code(begun: RunFolder) -> None:
    recorded = begun.read_json(begun.environment)
    del recorded["code"]
    begun.write_json(begun.environment, recorded)
    refused = onecycle("train", "--resume", begun.path)
    assert refused.code == 2 and "the code of onecycle has changed" in refused.err


def test_a_run_repeated_from_its_configuration_uses_its_compute_plan_and_has_the_same_bits(
    run: RunFolder, tmp_path: Path
) -> None:
    outcome = onecycle("train", "--config", run.config, "--out", tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    assert f"This run repeats {run.path} with its compute plan, so the result has the same bits\n" in outcome.out
    assert_same_run(only_run(tmp_path), run)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"code": "f" * 64}, "the code of onecycle has changed"),
        ({"compute_plan": {"threads": 512}}, "it had 1 × 512 threads (processes × threads), and this run has 1 × "),
        ({"versions": {"torch": "2.0"}}, "torch was 2.0 and is "),
        ({"hardware": {"cpu": "Z80"}}, "it was trained on another CPU, Z80"),
        ({"hardware": {"cpu_features": "0"}}, "with other instructions or caches"),
        ({"dataset": {"fingerprint": "0"}}, "the data differs"),
        ({"code": None}, "the code of onecycle has changed"),
        (
            {"resumed": [{"code": "f", "hardware": {"cpu": "Z80"}}]},
            "it was itself resumed with other code or on another machine",
        ),
        ({"compute_plan": {"unknown": True}}, "its record cannot be read"),
    ],
)
def test_a_repetition_says_what_may_change_the_result(
    copied: RunFolder, tmp_path: Path, change: dict[str, Any], difference: str
) -> None:
    recorded = copied.read_json(copied.environment)
    for name, values in change.items():
        recorded[name] = {**recorded[name], **values} if isinstance(values, dict) else values
    copied.write_json(copied.environment, recorded)
    # Two steps are enough.
    copied.write_json(copied.config, {**copied.read_json(copied.config), "limit": 20, "batch_size": 10, "epochs": 1})
    outcome = onecycle("train", "--config", copied.config, "--out", tmp_path, "--no-report")
    assert (outcome.code, outcome.err) == (0, "")
    warning = next(line for line in outcome.out.splitlines() if line.startswith("!!! This run repeats "))
    assert difference in warning
    other = onecycle("train", "--config", copied.config, "--seed", "1", "--out", tmp_path, "--no-report")
    assert "This run repeats" not in other.out


def test_a_run_that_was_stopped_before_its_first_epoch_starts_again(begun: RunFolder, run: RunFolder) -> None:
    # A kill in the middle of a write leaves this file.
    (begun.path / f".{begun.checkpoint.name}.4711.tmp").write_bytes(b"half a ch")
    outcome = onecycle("train", "--resume", begun.path)
    assert (outcome.code, outcome.err) == (0, "")
    assert_same_run(begun, run)
    assert files_of(begun) == FILES


def test_a_complete_run_is_not_resumed(run: RunFolder) -> None:
    outcome = onecycle("train", "--resume", run.path)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == f"onecycle: {run.path} is complete: there is nothing to resume; start a new run\n"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--epochs", "5"], "epochs was 3 and is 5 (the learning rate of every step depends on it"),
        (["--lr-max", "0.1", "--seed", "2"], "lr_max was 0.002 and is 0.1; seed was 0 and is 2"),
        (["--recipe", "quick"], "recipe was baseline and is quick"),
        (["--config", "config.json"], "--resume uses the saved configuration; remove --config"),
    ],
)
def test_a_run_resumes_only_with_its_own_configuration(copied: RunFolder, options: list[str], reason: str) -> None:
    copied.result.unlink()
    outcome = onecycle("train", "--resume", copied.path, *options)
    assert (outcome.code, outcome.out) == (2, "")
    assert reason in outcome.err


def test_an_interrupted_run_with_the_same_configuration_is_mentioned(tmp_path: Path) -> None:
    killed = killed_after_its_first_epoch(tmp_path / "out")
    outcome = onecycle("train", *OPTIONS, *RATES, "--out", tmp_path / "out")
    assert outcome.code == 0
    mention = f"An identical run was interrupted earlier; `onecycle train --resume {killed.path}` continues it."
    assert mention in outcome.out
    assert killed.checkpoint.exists(), "the interrupted run is unchanged"
    other = onecycle("train", *OPTIONS, *RATES, "--seed", "1", "--out", tmp_path / "out")
    assert "was interrupted earlier" not in other.out


def test_a_run_whose_data_has_changed_is_not_resumed(copied: RunFolder) -> None:
    copied.result.unlink()
    copied.write_json(copied.config, {**copied.read_json(copied.config), "limit": 40})
    outcome = onecycle("train", "--resume", copied.path)
    assert outcome.code == 2
    assert "was trained on other data" in outcome.err


# Tests with other data sets


def test_validation_images_are_held_out_of_training_and_named_in_the_output(tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = onecycle("train", *TWO_STEPS, *RATES, "--validation", "100", "--out", out)
    assert (outcome.code, outcome.err) == (0, "")
    folder = only_run(out)
    result = folder.read_json(folder.result)
    digits = load_dataset("digits", validation=100, limit=20)
    assert result["evaluated_on"] == "validation"
    assert result["fingerprint"] == digits.fingerprint
    np.testing.assert_array_equal(folder.read_arrays(folder.predictions)["labels"], digits.evaluation.labels)
    assert "20 training images, 20 validation images" in outcome.out
    assert "val loss" in outcome.out and "test loss" not in outcome.out
    assert outcome.out.splitlines()[-1].startswith("validation accuracy ")
    assert onecycle("evaluate", "--run", folder.path).out.startswith("validation accuracy ")


def test_without_cifar10_and_network_digits_are_used_with_a_prominent_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = [option if option != "digits" else "auto" for option in TWO_STEPS]
    outcome = onecycle("train", *options, *RATES, "--out", "out")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(
        "!!! THIS IS NOT CIFAR-10 but scikit-learn's handwritten digits, so the accuracy says nothing"
    )
    folder = only_run(tmp_path / "out")
    assert folder.path.name.startswith("baseline-digits-")
    for notes in (folder.read_json(folder.result)["notes"], folder.read_json(folder.environment)["dataset"]["notes"]):
        first, second = notes
        assert first.startswith("THIS IS NOT CIFAR-10") and second == GRAY
    assert folder.read_json(folder.result)["dataset"] == "digits"


def test_a_run_on_an_image_folder_has_the_name_of_the_folder(image_folder: Path, tmp_path: Path) -> None:
    options = [*NARROW, "--data", image_folder, "--epochs", "1", "--batch-size", "25", "--workers", "0", *RATES]
    folder = trained(tmp_path / "out", *options)
    result = folder.read_json(folder.result)
    assert folder.path.name.startswith("baseline-handwritten-")
    assert (result["dataset"], result["train_images"], result["eval_images"]) == ("handwritten", 50, 20)
    moved = Path(shutil.copytree(image_folder, tmp_path / "moved"))
    assert onecycle("evaluate", "--run", folder.path, "--data", moved).code == 0


@pytest.mark.parametrize(
    "command", [["train", "--resume"], ["evaluate", "--run"], ["report", "--run"]], ids=lambda command: command[0]
)
def test_a_run_says_which_data_it_needs_if_they_are_not_there(copied: RunFolder, command: list[str]) -> None:
    copied.write_json(copied.config, {**copied.read_json(copied.config), "data": "photos"})
    if command == ["train", "--resume"]:
        copied.result.unlink()
    copied.interpretation.unlink(missing_ok=True)
    outcome = onecycle(*command, copied.path)
    assert outcome.code == 2
    assert outcome.err.endswith(f"photos, the data of {copied.path}, does not exist; give its path with --data\n")


# Tests of prediction


@pytest.fixture
def images(tmp_path: Path, tiny: tuple[ImageSet, ImageSet]) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, pixels in zip(paths, tiny[1].images, strict=False):
        Image.fromarray(pixels).save(path)
    return paths


def test_predict_prints_file_class_and_probability(run: RunFolder, images: list[Path]) -> None:
    outcome = onecycle("predict", "--run", run.path, "--top", 1, *images)
    assert (outcome.code, outcome.err) == (0, "")
    expected = load(run.path).predict(images)
    assert [line.split("\t") for line in outcome.out.splitlines()] == [
        [str(path), prediction.class_name, f"{prediction.probability:.2%}"]
        for path, prediction in zip(images, expected, strict=True)
    ]


def test_predict_agrees_with_the_evaluation_of_the_run(run: RunFolder) -> None:
    digits = load_dataset("digits", limit=50).evaluation
    predictions = Predictor.load(run.weights).predict([Image.fromarray(pixels) for pixels in digits.images])
    recorded = torch.softmax(torch.from_numpy(run.read_arrays(run.predictions)["logits"]), dim=1).numpy()
    # The run may have computed in bfloat16, which has 8 bits of precision. This prediction is in float32.
    np.testing.assert_allclose([p.probabilities for p in predictions], recorded, atol=0.05)


def test_an_unreadable_image_does_not_stop_the_prediction_of_the_others(
    run: RunFolder, images: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "text.jpg").write_text("this is not an image")
    outcome = onecycle("predict", "--run", run.path, images[0], tmp_path / "text.jpg", tmp_path / "gone.png", images[1])
    assert outcome.code == 2
    assert [line.split("\t")[0] for line in outcome.out.splitlines()] == [str(path) for path in images[:2]]
    assert outcome.err.splitlines() == [
        f"onecycle: {tmp_path / 'text.jpg'}: not an image (20 bytes); replace or remove it",
        f"onecycle: there is no file {tmp_path / 'gone.png'}; check the name",
        "onecycle: 2 of 4 files could not be read",
    ]


def test_predict_with_weights_that_are_damaged_is_refused(copied: RunFolder, images: list[Path]) -> None:
    copied.weights.write_bytes(copied.weights.read_bytes()[:1000])
    outcome = onecycle("predict", "--run", copied.path, *images)
    assert (outcome.code, outcome.out) == (2, "")
    assert re.fullmatch(r"onecycle: .*weights\.safetensors (cannot be read|is damaged).*\n", outcome.err)


# Tests with damaged run folders


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("{}")], ids=["gone", "{}"])
@pytest.mark.parametrize("name", ["result.json", "environment.json"])
def test_a_record_that_is_lost_or_damaged_is_named_in_one_line(
    copied: RunFolder, name: str, damage: Callable[[Path], object]
) -> None:
    damage(copied.path / name)
    outcome = onecycle("evaluate", "--run", copied.path)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("onecycle: ") and outcome.err.count("\n") == 1
    assert name in outcome.err
