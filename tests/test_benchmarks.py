"""The benchmarks run on little data, and write the records that their docstrings describe."""

import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import cifar10_c
import corruptions
import numpy as np
import pytest
from PIL import Image
from scaling_model import Model, fit, placed, prediction

from onecycle import report
from onecycle.predict.predictor import SHIPPED, Predictor
from onecycle.storage.run_folder import RunFolder

SHARED = {"contenders.py", "cpu_classes.py", "hosts.py", "local_ray_nodes.py", "other_frameworks.py"}  # not scripts
SHARED |= {"cifar10_c.py", "scaling_model.py", "studies.py"}
SCRIPTS = sorted(path for path in (Path(__file__).parents[1] / "benchmarks").glob("*.py") if path.name not in SHARED)


def run(script: str, *options: str | Path) -> subprocess.CompletedProcess[str]:
    path = SCRIPTS[0].parent / f"{script}.py"
    return subprocess.run([sys.executable, path, *map(str, options)], capture_output=True, text=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_benchmark_explains_itself(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as ended:  # in this process: a new process would spend seconds on imports
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {script.name}")


@pytest.mark.long
def test_step_time_compares_the_contenders_in_one_run(tmp_path: Path) -> None:
    out = tmp_path / "new" / "step_time.json"
    done = run(
        "step_time", "--batch-size", "4", "--rounds", "2", "--contenders", "usual", "channels_last", "--out", out
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["seconds"].keys() == {"usual", "channels_last", "onecycle"}
    assert record["ratios"].keys() == {"usual", "channels_last"}
    assert record["best_tflop_per_second"].keys() == {"convolution", "product"}
    assert record["tflop_in_a_step"] == pytest.approx(1.165 * 4 / 512, rel=0.01)
    for name, turns in record["turns"].items():
        assert len(turns) == 2
        assert min(turns) <= record["seconds"][name] <= max(turns)
        assert record["peak_memory_gib"][name] > 0.1
        assert record["images_per_second"][name] == pytest.approx(4 / record["seconds"][name], rel=0.01)
    assert record["environment"]["compute_plan"]["device"] == "cpu"
    assert "usual" in done.stdout


def test_step_time_names_a_package_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["step_time.py", "--contenders", "keras_jax"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPTS[0].parent / "step_time.py"), run_name="__main__")
    assert ended.value.code == 2
    message = "step_time: keras is not installed; pip install keras, or use --contenders without keras_jax\n"
    assert capsys.readouterr().err == message


def test_out_of_distribution_names_a_package_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["out_of_distribution.py", "--kinds", "digits", "textures"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPTS[0].parent / "out_of_distribution.py"), run_name="__main__")
    assert ended.value.code == 2
    message = "skimage is not installed; pip install scikit-image, or use --kinds without textures"
    assert capsys.readouterr().err == f"out_of_distribution: {message}\n"


@pytest.mark.long
def test_out_of_distribution_chooses_on_other_images_than_it_reports(tmp_path: Path, real_data: Path) -> None:
    out = tmp_path / "out_of_distribution.json"
    kinds = ["digits", "uniform noise", "Gaussian noise", "smooth noise"]  # these need no scikit-image
    few = ["--images", "40", "--known", "100", "--data", real_data]
    done = run("out_of_distribution", *few, "--kinds", *kinds, "--out", out)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert list(record["auroc"]) == kinds and not record["auroc"].keys() & record["chosen_on"]["auroc"].keys()
    assert record["chosen"] in record["chosen_on"]["mean_auroc"]
    for kind, areas in record["auroc"].items():
        assert {"energy", "maximum logit", "maximum probability", "feature norm"} < areas.keys()
        assert areas["energy"] > 0.9 and 0.5 < record["called_unlike"][kind] <= 1


@pytest.mark.long
def test_roofline_measures_every_layer_and_pass_and_draws_them(tmp_path: Path) -> None:
    out = tmp_path / "roofline.json"
    done = run("roofline", "--batch-size", "2", "--cpu", "this CPU", "--out", out)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert len({(point["layer"], point["pass"]) for point in record["points"]}) == 15
    assert all(min(point["gflop_per_second"].values()) > 0 for point in record["points"])
    with Image.open(out.with_suffix(".png")) as plot:
        assert plot.width > 500


@pytest.mark.long
def test_earlier_commit_lets_two_versions_take_turns(tmp_path: Path) -> None:
    out = tmp_path / "earlier_commit.json"
    done = run(
        "earlier_commit", "--commit", "HEAD", "--data", "digits", "--batch-size", "8", "--rounds", "5", "--out", out
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert len(record["ratios"]) == 5
    assert min(record["ratios"]) <= record["ratio"] <= max(record["ratios"])
    assert record["interval_95"][0] < record["mean_ratio"] < record["interval_95"][1]
    for commit, reason in (("none", "none"), ("d37f297", "has no benchmarks/earlier_commit.py")):
        refused = run("earlier_commit", "--commit", commit, "--data", "digits", "--out", out)
        assert refused.returncode == 2
        assert refused.stderr.startswith("earlier_commit: ") and refused.stderr.count("\n") == 1
        assert reason in refused.stderr


@pytest.mark.long
def test_recipe_time_estimates_the_minutes_of_a_recipe(tmp_path: Path, real_data: Path) -> None:
    out = tmp_path / "recipe_time.json"
    done = run(
        *("recipe_time", "--data", real_data, "--steps", "1", "--classes", "AVX2", "--recipes", "quick", "--out", out)
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())["classes"]["AVX2"]["quick"]
    assert set(found["seconds_per_step"]) == {"24", "28", "32"}
    seconds = sum(found["seconds_per_step"].values()) / 3
    assert found["minutes"] * 60 > seconds * 98  # an epoch has 98 steps


@pytest.mark.long
def test_epoch_time_compares_whole_epochs_with_steps_on_one_batch(tmp_path: Path) -> None:
    out = tmp_path / "epoch_time.json"
    done = run("epoch_time", "--data", "digits", "--images", "40", "--batch-size", "16", "--rounds", "1", "--out", out)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["steps"] == 3
    assert record["ratios"].keys() == {"albumentations", "batched"}
    for name, ratio in record["ratios"].items():
        assert ratio == pytest.approx(record["seconds"][name][0] / record["seconds"]["fixed_batch"][0], rel=0.01)


@pytest.mark.long
def test_scale_tells_the_cost_of_an_image_at_each_size(tmp_path: Path) -> None:
    out = tmp_path / "scale.json"
    done = run(
        "scale",
        "--sizes",
        "200",
        "400",
        "--drawn",
        "400",
        "--batch-size",
        "32",
        "--steps",
        "2",
        "--folder",
        tmp_path,
        "--out",
        out,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["sizes"].keys() == {"200", "400"}
    for measured in record["sizes"].values():
        assert all(value > 0 for value in measured.values())
    assert "albumentations_microseconds_an_image" in record["ratios"]
    assert [path.name for path in tmp_path.iterdir()] == ["scale.json"]


@pytest.mark.long
def test_large_data_reads_trains_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    out = tmp_path / "large_data.json"
    options = ["--sizes", "4000", "--archives", "8", "--batch-size", "8", "--steps", "2"]
    done = run("large_data", *options, "--folder", tmp_path, "--out", out)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    (measured,) = record["sizes"].values()
    assert all(value > 0 for name, value in measured.items() if name != "decoded_again")
    assert 2000 <= measured["decoded_before_kill"] - measured["decoded_again"] < 4000
    assert record["ratios"] == {"read_images_per_second": 1, "trained_images_per_second": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["large_data.json"]


@pytest.mark.long
def test_start_time_waits_for_the_first_step(tmp_path: Path) -> None:
    out = tmp_path / "start_time.json"
    done = run("start_time", "--data", "digits", "--rounds", "1", "--out", out)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["seconds"].keys() == {"help", "first_run", "later_run"}
    assert 0 < record["seconds"]["help"] < record["seconds"]["later_run"]


@pytest.mark.long
def test_time_to_accuracy_lets_recipes_and_port_take_turns(tmp_path: Path) -> None:
    out = tmp_path / "time_to_accuracy.json"
    rng, photos = np.random.default_rng(0), tmp_path / "photos"  # in color, as the recipes expect
    for number in range(160):
        file = photos / ("train" if number % 2 else "test") / str(number // 2 % 10) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file)
    options = ["--limit", "60", "--batch-size", "60", "--epochs", "2", "--rounds", "2"]
    done = run("time_to_accuracy", "--data", photos, *options, "--out", out)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    contenders = {"quick", "fast", "port"}
    assert record["runs"].keys() == record["seconds"].keys() == record["wall_seconds"].keys() == contenders
    for name, runs in record["runs"].items():
        assert [one["seed"] for one in runs] == [0, 1]
        assert all(0 <= one["accuracy"] <= 1 for one in runs)
        assert all((one["tta_accuracy"] is None) == (name == "quick") for one in runs)
        assert all(0 < one["seconds"] < one["wall_seconds"] for one in runs)
    assert record["fast_to_port"] == pytest.approx(record["seconds"]["fast"] / record["seconds"]["port"], rel=0.01)


@pytest.mark.long
def test_batch_norm_evaluates_each_network_in_both_ways_and_resumes(tmp_path: Path) -> None:
    out = tmp_path / "study.json"
    options = ["--data", "digits", "--validation", "300", "--limit", "60", "--batch-size", "30", "--epochs", "1"]
    done = run("batch_norm", *options, "--seeds", "0", "1", "--out", out)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert [cell["seed"] for cell in record["cells"]] == [0, 1]
    for cell in record["cells"]:
        assert {"images", "averages", "500 images"} <= cell["accuracy"].keys()
        assert all(0 <= accuracy <= 1 for accuracy in cell["accuracy"].values())
        assert cell["share_of_training"] > 0
    expected = [100 * (cell["accuracy"]["images"] - cell["accuracy"]["averages"]) for cell in record["cells"]]
    assert record["difference_points"]["values"] == pytest.approx(expected)
    again = run("batch_norm", *options, "--seeds", "0", "1", "--out", out)
    assert "accuracy" not in again.stdout, "nothing was trained again"
    assert json.loads(out.read_text()) == record


@pytest.mark.long
def test_fast_mode_accuracy_pairs_the_seeds_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    out = tmp_path / "study.json"
    options = ["--data", "digits", "--validation", "300", "--limit", "60", "--batch-size", "30", "--out", out]
    done = run("fast_mode_accuracy", *options, "--seeds", "1", "2")
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert [(cell["seed"], cell["way"]) for cell in record["cells"]] == [
        (1, "float32"),
        (1, "fast"),
        (2, "float32"),
        (2, "fast"),
    ]
    low, high = record["verdict"]["interval_95_points"]
    assert low <= record["verdict"]["mean_points"] <= high
    again = run("fast_mode_accuracy", *options, "--seeds", "1", "2")
    assert again.returncode == 0, again.stderr
    assert json.loads(out.read_text()) == record
    assert "accuracy" not in again.stdout, "nothing was trained again"
    other = run("fast_mode_accuracy", *options, "--epochs", "2")
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert "another configuration" in other.stderr


@pytest.mark.long
def test_label_issues_finds_what_it_planted(tmp_path: Path, real_data: Path) -> None:
    out = tmp_path / "label_issues.json"
    known = tmp_path / "known.csv"
    known.write_text("TestID,TrainID,Distance,Judgment\n0,1,0.1,1\n1,2,0.2,2\n")
    sample = real_data / "cifar-10-binary-sample.tar.gz"
    options = ("--data", sample, "--planted", "5", "--seeds", "1", "--epochs", "2", "--known", known, "--out", out)
    done = run("label_issues", *options)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    kinds = {"labels of test images", "labels of training images", "duplicates"}
    assert record["found"].keys() == record["mean_found"].keys() == kinds
    assert record["mean_found"]["duplicates"] >= 0.8
    assert record["known_duplicates"]["near-duplicates"]["pairs"] == 1


@pytest.mark.long
def test_report_time_times_a_report(tmp_path: Path) -> None:
    small = ["--recipe", "quick", "--widths", "8", "8", "8", "--data", "digits", "--limit", "60", "--epochs", "2"]
    train = [sys.executable, "-m", "onecycle", "train", *small, "--batch-size", "30", "--no-report", "--out", tmp_path]
    subprocess.run(train, check=True, capture_output=True)
    (folder,) = tmp_path.iterdir()
    out = tmp_path / "report_time.json"
    done = run("report_time", folder, "--rounds", "1", "--out", out)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["seconds"] == record["rounds"][0] > 0
    assert record["eval_images"] == 60 and record["report_megabytes"] < 3 and record["peak_memory_gib"] < 2
    assert not (folder / "report.html").exists(), "the run itself must not change"


@pytest.mark.long
def test_record_keeps_only_the_images_that_plots_need(tmp_path: Path) -> None:
    if not shutil.which("chromium"):
        pytest.skip("there is no Chromium on this machine")
    small = ["--recipe", "quick", "--widths", "8", "8", "8", "--data", "digits", "--limit", "60", "--epochs", "2"]
    train = [sys.executable, "-m", "onecycle", "train", *small, "--batch-size", "30", "--out", tmp_path / "runs"]
    subprocess.run(train, check=True, capture_output=True)
    (folder,) = (tmp_path / "runs").iterdir()
    done = run("record", folder, "quick", "--results", tmp_path / "results")
    assert done.returncode == 0, done.stderr
    kept = RunFolder(tmp_path / "results" / "quick")
    whole, short = RunFolder(folder).read_interpretation(), kept.read_interpretation()
    assert (
        whole and short and len(short.misclassified) == len(whole.misclassified) > len(short.misclassified_images) == 16
    )
    assert not kept.weights.exists() and not kept.report.exists()
    assert (kept.path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "Incorrect predictions" in report.write(kept).read_text(), "the report cannot be written from the record"


def test_a_missing_library_of_corruptions_is_named_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(SystemExit, match="pip install --no-deps imagecorruptions-imaug"):
        cifar10_c.library()


def with_strengths_of_imagenet(value: float, severity: int = 1) -> float:
    factors = [1, 2, 3]
    c = [10, 20, 30, 40, 50][severity - 1]
    return value * c * factors[0]


def without_strengths(value: float, severity: int = 1) -> float:
    return value * severity


def test_a_function_of_the_library_gets_the_strengths_of_cifar_10() -> None:
    function = cifar10_c._with_strengths(with_strengths_of_imagenet, (0.1, 0.2, 0.3, 0.4, 0.5))
    assert [function(1, severity) for severity in range(1, 6)] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert with_strengths_of_imagenet(1, 3) == 30
    with pytest.raises(SystemExit, match="has changed without_strengths"):
        cifar10_c._with_strengths(without_strengths, (1, 2, 3, 4, 5))


def test_every_corruption_has_five_strengths_and_the_mean_is_over_fifteen() -> None:
    assert len(cifar10_c.STRENGTHS) == 19 and all(len(each) == 5 for each in cifar10_c.STRENGTHS.values())
    assert len(cifar10_c.STRENGTHS.keys() - set(cifar10_c.EXTRA)) == 15


def test_a_corruption_depends_on_seed_strength_and_image_alone() -> None:
    images = np.random.default_rng(0).integers(256, size=(4, 32, 32, 3), dtype=np.uint8)
    found = cifar10_c.corrupt(images, "elastic_transform", 2, seed=0)
    assert (found.dtype, found.shape) == (np.uint8, images.shape)
    assert (cifar10_c.corrupt(images[:2], "elastic_transform", 2, seed=0) == found[:2]).all()
    for other in (
        cifar10_c.corrupt(images, "elastic_transform", 2, seed=1),
        cifar10_c.corrupt(images, "elastic_transform", 3, seed=0),
    ):
        assert (other != found).any(axis=(1, 2, 3)).all()


def test_the_figures_of_corrupted_images_are_those_of_the_probabilities() -> None:
    images = np.random.default_rng(0).integers(256, size=(20, 32, 32, 3), dtype=np.uint8)
    predictor = Predictor.load(SHIPPED)
    probabilities = np.array([prediction.probabilities for prediction in predictor.predict_images(images)])
    found = corruptions.figures(predictor, images, probabilities.argmax(axis=1))
    assert found["accuracy"] == 1
    assert found["log_loss"] == pytest.approx(-np.log(probabilities.max(axis=1)).mean(), rel=1e-3)
    assert corruptions.as_jpeg(images, 75).shape == images.shape
    assert corruptions.mean([{"a": 1.0, "b": 0.0}, {"a": 2.0, "b": 1.0}]) == {"a": 1.5, "b": 0.5}


def test_a_network_that_has_seen_all_training_images_is_not_measured_on_validation_images() -> None:
    with pytest.raises(SystemExit, match="the network has seen all training images"):
        corruptions.load_images(None, None, validation=True)


@pytest.mark.long
def test_serving_is_measured_under_load_and_attack(tmp_path: Path) -> None:
    out = tmp_path / "serving.json"
    options = [
        "--clients",
        "1",
        "4",
        "--seconds",
        "1",
        "--rounds",
        "1",
        "--requests",
        "40",
        "--attacks",
        "huge uploads",
    ]
    done = run("serving", *options, "--out", out)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    for found in record["clients"].values():
        assert found["lost"] == 0 and found["requests_a_second"] > 0
        assert found["p50_milliseconds"] <= found["p99_milliseconds"]
    assert record["memory"]["lost"] == 0 and len(record["memory"]["mib_after_each_tenth"]) == 11
    assert record["under attack"]["huge uploads"]["answered_after"] == 20


@pytest.mark.long
def test_prediction_is_measured_as_a_whole_and_in_parts(tmp_path: Path, image_folder: Path) -> None:
    with tarfile.open(tmp_path / "images.tar.gz", "w:gz") as archive:
        archive.add(image_folder, "images")
    out = tmp_path / "prediction.json"
    done = run("prediction", tmp_path / "images.tar.gz", "--rounds", "1", "--seconds", "0.1", "--out", out)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["files"] == 20
    assert 0 < record["share_of_decoding"] < 1.5
    for batches in record["images_a_second"].values():
        assert all(speed > 0 for speeds in batches.values() for speed in speeds.values())


@pytest.mark.long
def test_ones_own_images_are_trained_on_and_named(tmp_path: Path) -> None:
    out = tmp_path / "own.json"
    options = "--recipe quick --batch-size 64 --epochs 2 --no-report"
    done = run("own_images", "--digits-options", options, "--out", out)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())["digits as PNG"]
    assert found["eval_images"] == 359
    assert found["named rightly by predict"] == pytest.approx(found["eval_accuracy"], abs=0.01)


@pytest.mark.long
def test_transfer_measures_accuracy_and_time_and_goes_on(tmp_path: Path) -> None:
    photos, rng = tmp_path / "photos", np.random.default_rng(0)
    for channel, name in ((0, "red"), (2, "blue")):
        (photos / name).mkdir(parents=True)
        for number in range(10):
            pixels = rng.integers(0, 128, (20, 20, 3), dtype=np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(photos / name / f"{number}.png")
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        archive.add(photos, "photos")
    variant = "--recipe quick --widths 8 8 8 --batch-size 4 --epochs 2 --no-report"
    command = ["transfer", "--signs", tmp_path / "photos.tar", "--each", "4", "--test", "3", "--no-cats-and-dogs"]
    command += ["--variants", variant, "--out", tmp_path / "transfer.json"]
    for seeds in ("1", "2"):
        done = run(*command, "--seeds", seeds)  # type: ignore[arg-type]
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("signs 4") == 1, "only the missing run"
    record = json.loads((tmp_path / "transfer.json").read_text())
    (found,) = record["summary"].values()
    assert len(found["accuracies"]) == 2
    assert all((each["train_images"], each["eval_images"]) == (8, 6) for each in record["runs"].values())


@pytest.mark.long
def test_fitted_recipes_measures_chosen_values_and_goes_on_where_it_stopped(tmp_path: Path, real_data: Path) -> None:
    out = tmp_path / "fitted.json"
    options = ["--sets", "digits", "--values", "500x1", "--out", out]
    for _ in range(2):
        done = run("fitted_recipes", *options)
        assert done.returncode == 0, done.stderr
        (cell,) = json.loads(out.read_text())["cells"]
        assert (cell["images"], cell["batch_size"], cell["epochs"], cell["steps"]) == (1442, 500, 1, 3)
        assert 0 <= cell["accuracy"] <= 1
    assert done.stdout == "", "the run is in the record already"


@pytest.mark.long
def test_calibration_measures_runs_and_recorded_logits_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    out = tmp_path / "calibration.json"
    options = ["--data", "digits", "--limit", "200", "--epochs", "2", "--runs", tmp_path / "runs", "--out", out]
    for _ in range(2):
        done = run("calibration", *options, "--seeds", "1", "2")
        assert done.returncode == 0, done.stderr
        record = json.loads(out.read_text())
        assert [(cell["recipe"], cell["seed"]) for cell in record["cells"]] == [("quick", 1), ("quick", 2)]
    assert "epoch" not in done.stdout, "the runs are in the record already"
    for cell in record["cells"]:
        assert cell["held_out_images"] == 20 and cell["images"] == 200
        for measured in (cell, cell["with_tta"]):
            assert measured["after"]["log_loss"] < measured["before"]["log_loss"]
    assert record["summary"]["quick"]["temperature"]["values"] == [cell["temperature"] for cell in record["cells"]]
    done = run(
        "calibration",
        *options,
        "--seeds",
        "--recorded",
        tmp_path / "runs" / "quick-2",
        "--fitted-by",
        tmp_path / "runs" / "quick-1",
    )
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(out.read_text())["recorded"]
    assert found["temperature"] == record["cells"][0]["temperature"]
    assert found["before"] == record["cells"][1]["before"] != found["after"]


@pytest.mark.long
def test_on_ray_kills_nodes_and_counts_what_is_there(tmp_path: Path) -> None:
    out = tmp_path / "on_ray.json"
    study = "--recipe quick --widths 8 8 8 --data digits --limit 60 --batch-size 20 --epochs 40 --device cpu"
    options = ["--runs", "2", "--nodes", "2", "--kills", "1", "--images", "4000", "--data", "digits"]
    done = run("on_ray", *options, "--study", study, "--out", out)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["study"]["done"] == record["study"]["identical_to_the_local_engine"] == record["study"]["runs"] == 2
    images = record["images"]
    assert images["exactly_once"] == images["images"] == 4000
    assert (images["in_archives"], images["lost"], images["doubled"], images["unreadable"]) == (2000, 0, 0, 4)
    assert images["identical_to_the_local_engine"]


@pytest.mark.long
def test_same_bits_counts_the_runs_that_are_identical_on_more_processes_and_after_a_kill(tmp_path: Path) -> None:
    out = tmp_path / "same_bits.json"
    options = ["--data", "digits", "--images", "60", "--epochs", "6", "--batch-size", "20", "--recipes", "quick"]
    done = run("same_bits", *options, "--threads", "1", "--kills", "1", "--out", out)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["quick, 1 thread"]["identical by processes"] == {"1": True, "2": True, "4": True}
    assert record["killed"]["kills"] == record["killed"]["identical"] == 1
    assert record["environment"]["compute_plan"]["threads"] == 1


@pytest.mark.long
def test_scaling_compares_its_model_with_steps_that_it_was_not_fitted_to(tmp_path: Path) -> None:
    out = tmp_path / "scaling.json"
    few = ("--batch-sizes", "8", "16", "24", "--alone", "4", "--processes", "2", "--links", "1000")
    done = run("scaling", "--data", "digits", *few, "--steps", "1", "--rounds", "1", "--out", out)
    if done.returncode == 2 and os.geteuid():
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert [(point["processes"], point["batch_size"]) for point in record["points"] if not point["fitted"]] == [(2, 16)]
    for point in record["points"]:  # each of two processes sends half its gradients and half the sum
        assert (point["mib_sent"] > 6_573_120 * 4 / 2**20) == (point["processes"] == 2)
        assert point["predicted"] > 0
    assert record["on_this_machine"]["batch_size"] == 24
    (rates,) = record["prediction"]["images_per_second"].values()
    assert len(rates) == len(record["prediction"]["machines"])
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_scaling_model_is_recovered_from_steps_that_follow_it() -> None:
    known = Model(a_step=0.1, an_image=0.004, crowded=1.2, together=0.03, slack=1.3, hidden=0.3, gradient=26e6, cores=2)
    points = [
        {
            **(point := {"processes": processes, "batch_size": size, "megabits_per_second": link}),
            "seconds": float(known.seconds(**placed(point))),
            "mib_sent": 2 * known.gradient * (processes - 1) / processes / 2**20,
        }
        for processes in (1, 2)
        for size in (64, 512)
        for link in (100, 1000, 10_000)
    ]
    found = fit(points, cores=2)
    for processes, size, link in [(4, 256, 1000), (4, 128, 100), (64, 512, 10_000)]:
        place = placed({"processes": processes, "batch_size": size, "megabits_per_second": link})
        assert found.seconds(**place) == pytest.approx(known.seconds(**place), rel=0.02)


def test_machines_pay_while_doubling_them_is_at_least_a_tenth_faster() -> None:
    machine = Model(a_step=0, an_image=0.001, crowded=1, together=0, slack=1, hidden=0, gradient=12.5e6, cores=64)
    # A batch of 1,000 takes 1 s on one machine. On two, it takes 0.5 s, plus 1 s to send gradients at 100 Mbit/s.
    predicted = prediction(machine, 1000, [100, 1000])
    assert predicted["images_per_second"]["100"][:2] == [1000, 666.7]
    assert predicted["twice_as_many_pay_up_to"] == {"100": 1, "1000": 32}


@pytest.mark.long
def test_table_memory_reads_both_formats_in_processes_of_their_own(tmp_path: Path) -> None:
    out = tmp_path / "table_memory.json"
    done = run("table_memory", "--images", "400", "--folder", tmp_path, "--out", out)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["formats"].keys() == {"parquet", "npz"}
    for measured in record["formats"].values():
        assert measured["peak_mib"] > 100 and measured["images_per_second"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["table_memory.json"]
