"""An exported ONNX file predicts like the network, and does not need torch."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from photographs import PHOTOGRAPHS, SHOWN
from PIL import Image
from rich.console import Console

from onecycle.cli import main
from onecycle.core import extras
from onecycle.core.errors import InputError
from onecycle.core.recipes import BASELINE, QUICK
from onecycle.models import WhitenedConvNet
from onecycle.predict import onnx
from onecycle.predict.predictor import SHIPPED, Predictor
from onecycle.report.model_card import write_card
from onecycle.run import experiment
from onecycle.run.export import export_onnx
from onecycle.storage.run_folder import RunFolder

WITHOUT_TORCH = """
import json, sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
metadata = session.get_modelmeta().custom_metadata_map
probabilities, scores = session.run(None, {"images": np.load(sys.argv[2])})
np.savez(sys.argv[3], probabilities=probabilities, scores=scores, threshold=metadata["energy_threshold"])
shapes = [[value.name, value.shape, value.type] for value in (*session.get_inputs(), *session.get_outputs())]
print(json.dumps([sorted(sys.modules.keys() & {"torch", "onecycle"}), json.loads(metadata["classes"]), shapes]))
"""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(BASELINE, id="custom ResNet", marks=pytest.mark.long),
        pytest.param(QUICK, id="whitened network"),
    ],
)
def run(request: pytest.FixtureRequest, cache_home: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    small = {"data": "digits", "limit": 60, "epochs": 1, "batch_size": 30, "workers": 0, "report": False}
    narrow = {"widths": (8, 8, 8)} if request.param is QUICK else {}
    config = replace(request.param, **narrow, lr_min=1e-4, lr_max=1e-3, **small)
    return experiment.run(config, Console(quiet=True), tmp_path_factory.mktemp("exported") / "run")


@pytest.fixture(scope="module")
def exported(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    return export_onnx(run.path, tmp_path_factory.mktemp("onnx") / "new")


def test_onnxruntime_alone_predicts_like_the_network(
    run: RunFolder, exported: tuple[Path, float], tmp_path: Path
) -> None:
    predictor = Predictor.load(run.weights)
    images = np.random.default_rng(1).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    command = [
        sys.executable,
        "-c",
        WITHOUT_TORCH,
        exported[0],
        tmp_path / "images.npy",
        tmp_path / "outputs.npz",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    imported, classes, shapes = json.loads(done.stdout)
    assert imported == []
    assert classes == list(predictor.classes)
    outputs = [["probabilities", ["N", 10], "tensor(float)"], ["energy_scores", ["N"], "tensor(float)"]]
    assert shapes == [["images", ["N", 32, 32, 3], "tensor(uint8)"], *outputs]
    predictions = predictor.predict_images(images)
    found = np.load(tmp_path / "outputs.npz")
    probabilities = [prediction.probabilities for prediction in predictions]
    np.testing.assert_allclose(found["probabilities"], probabilities, atol=1e-5)
    np.testing.assert_allclose(found["scores"], [prediction.energy_score for prediction in predictions], rtol=1e-5)
    assert float(found["threshold"]) == predictor.energy_threshold


def test_the_returned_difference_is_within_the_tolerance(exported: tuple[Path, float]) -> None:
    assert 0 <= exported[1] <= onnx.TOLERANCE


@pytest.mark.parametrize("difference", [(2, 0), (0, 1000)], ids=["probabilities", "energy scores"])
def test_a_file_that_differs_is_an_error_and_is_not_kept(
    run: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    difference: tuple[int, int],
) -> None:
    class Wrong(onnx.Deployed):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            probabilities, scores = super().forward(images)
            return probabilities + difference[0] * onnx.TOLERANCE, scores + difference[1] * onnx.TOLERANCE

    monkeypatch.setattr(onnx, "Deployed", Wrong)
    assert main(["export", "--run", str(run.path), "--to", "onnx", "--out", str(tmp_path)]) == 2
    assert "was not written: its outputs differ from the network's by up to" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def certain(run: RunFolder) -> tuple[Predictor, bytes]:
    """A network whose probabilities are always 0 and 1, and its ONNX file."""
    predictor = Predictor.load(run.weights)
    head = [module for module in predictor.model.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():
        head.weight.mul_(1e4)
    images = np.random.default_rng(2).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    assert min(prediction.probability for prediction in predictor.predict_images(images)) > 0.999
    content = onnx._exported(predictor, "certain")
    return predictor, content


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"mean": (0.5, 0.5, 0.5)},
        {"mean": (0.30, 0.28, 0.26)},
        {"std": (0.6, 0.6, 0.6)},
        {"gray": False},
    ],
    ids=["none", "mean", "mean of a channel", "std", "gray"],
)
def test_another_normalization_is_found_although_the_network_is_always_certain(
    certain: tuple[Predictor, bytes], change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, content = certain
    monkeypatch.setattr(onnx, "_exported", lambda *_: content)
    changed = replace(predictor, preprocessing=replace(predictor.preprocessing, **change))
    if not change:
        assert onnx.write_onnx(changed, tmp_path / "model.onnx", "the same") <= onnx.TOLERANCE
        return
    with pytest.raises(InputError, match=r"was not written: .*; the exporter is at fault"):
        onnx.write_onnx(changed, tmp_path / "model.onnx", "another")


def test_the_temperature_is_inside_the_file(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "VERIFIED", 20)
    calibrated = replace(Predictor.load(run.weights), temperature=0.4)
    assert onnx.write_onnx(calibrated, tmp_path / "model.onnx", "calibrated") <= onnx.TOLERANCE
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    images = np.random.default_rng(1).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
    probabilities, scores = session.run(None, {"images": images})
    predictions = calibrated.predict_images(images)
    np.testing.assert_allclose(probabilities, [prediction.probabilities for prediction in predictions], atol=1e-5)
    np.testing.assert_allclose(scores, [prediction.energy_score for prediction in predictions], rtol=1e-5)
    assert not np.allclose(probabilities, [p.probabilities for p in Predictor.load(run.weights).predict_images(images)])


def test_a_file_with_another_temperature_is_found(
    certain: tuple[Predictor, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "_exported", lambda *_: certain[1])
    with pytest.raises(InputError, match=r"was not written: .*; the exporter is at fault"):
        onnx.write_onnx(replace(certain[0], temperature=1.1), tmp_path / "model.onnx", "another")


def test_a_network_that_amplifies_rounding_is_named_as_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Amplified(WhitenedConvNet):
        def classify(self, features: torch.Tensor) -> torch.Tensor:
            logits = super().classify(features)
            return logits + 1e6 * ((logits + 1e3) - 1e3 - logits)  # the rounding of `logits + 1e3`

    predictor = Predictor.load(SHIPPED)
    predictor.model.__class__ = Amplified
    monkeypatch.setattr(onnx, "VERIFIED", 20)
    with pytest.raises(InputError, match=r"rounding alone changes the network's logits by .*: train it for longer"):
        onnx.write_onnx(predictor, tmp_path / "model.onnx", "amplified")


def test_export_prints_the_file_and_the_largest_difference(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--run", str(run.path), "--to", "onnx"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[0] == str(run.path / "onnx" / "model.onnx")
    assert re.search(r"largest relative difference from the network on 1,000 synthetic images: \d\.\de-\d\d", out)
    assert main(["export", "--run", str(run.path), "--to", "onnx"]) == 2
    assert "model.onnx exists already; remove it, or give another folder with --out" in capsys.readouterr().err


def test_an_existing_card_is_not_overwritten(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("another project")
    assert main(["export", "--run", str(run.path), "--to", "onnx", "--out", str(tmp_path)]) == 2
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("README.md", "another project")]


def test_an_error_of_the_exporter_is_reported_in_one_line(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnx, "_OPSET", "none")
    assert main(["export", "--run", str(run.path), "--to", "onnx", "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "model.onnx cannot be exported: " in line and "try other versions" in line


def test_the_example_on_the_card_runs_as_printed(run: RunFolder, exported: tuple[Path, float], tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (exported[0].parent / "README.md").read_text(), re.DOTALL)
    (tmp_path / "model.onnx").write_bytes(exported[0].read_bytes())
    Image.new("L", (50, 40), 90).save(tmp_path / "image.jpg")
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=True)
    class_name, probability = done.stdout.split()
    expected = Predictor.load(run.weights).predict([tmp_path / "image.jpg"])[0]
    assert class_name == expected.class_name and float(probability) == pytest.approx(expected.probability, abs=1e-4)


def test_the_front_matter_of_the_card_is_metadata_for_the_hub(run: RunFolder, exported: tuple[Path, float]) -> None:
    _, front_matter, text = (exported[0].parent / "README.md").read_text().split("---\n", 2)
    metadata, result = yaml.safe_load(front_matter), run.read_result()
    assert metadata["library_name"] == "onnx" and metadata["license"] == "mit"
    assert metadata["pipeline_tag"] == "image-classification"
    (measured,) = metadata["model-index"][0]["results"]
    assert measured["dataset"] == {"name": "the embedded digits", "type": "digits", "split": "test"}
    accuracy, low, high = (metric["value"] for metric in measured["metrics"])
    assert low < accuracy < high and accuracy == pytest.approx(result.eval_accuracy, abs=1e-4)
    for heading in ("Use", "Accuracy", "Training data", "Limits", "Training", "License"):
        assert f"## {heading}\n" in text


def test_special_characters_of_yaml_and_markdown_in_names_are_escaped(run: RunFolder, tmp_path: Path) -> None:
    odd = RunFolder(tmp_path / "run")
    odd.path.mkdir()
    for path in run.path.iterdir():
        if path.is_file():
            (odd.path / path.name).write_bytes(path.read_bytes())
    environment = odd.read_json(odd.environment)
    environment["dataset"]["name"] = 'photos: "a|b" # no'
    environment["dataset"]["notes"] = ["Starts from runs/caf\udce9"]  # how Python represents a byte that is not UTF-8
    odd.write_json(odd.environment, environment)
    card = write_card(odd, Predictor.load(odd.weights), tmp_path / "model.onnx").read_text()
    metadata = yaml.safe_load(card.split("---\n", 2)[1])
    assert "datasets" not in metadata and metadata["license"] == "unknown"
    assert metadata["model-index"][0]["results"][0]["dataset"]["name"] == 'photos: "a|b" # no'
    assert "Not stated: the owner of the images decides" in card
    assert r"Starts from runs/caf\udce9" in card


def test_an_incomplete_run_is_not_exported(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(run.config.read_text())
    assert main(["export", "--run", str(tmp_path), "--to", "onnx"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has no result.json: the run did not get this far" in line


def test_a_missing_package_is_reported_with_the_command_that_installs_it(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(InputError, match=r"this needs onnxscript; run pip install 'onecycle\[export\]'"):
        export_onnx(run.path)


# The network that comes with the package


def test_export_without_a_run_exports_the_shipped_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(onnx, "VERIFIED", 20)
    assert main(["export"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    file, difference, card = out.splitlines()
    assert (file, card) == (str(Path("onnx", "model.onnx")), str(Path("onnx", "README.md")))
    assert 0 <= float(difference.rpartition(" ")[2]) <= onnx.TOLERANCE
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    probabilities, _ = session.run(None, {"images": PHOTOGRAPHS})
    classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    assert [classes[best] for best in probabilities.argmax(axis=1)] == SHOWN
    text, shipped = Path(card).read_text(), (SHIPPED.parent / "README.md").read_text()
    assert text.partition("## Accuracy")[2] == shipped.partition("## Accuracy")[2]
    assert "library_name: onnx\n" in text
    assert 'onnxruntime.InferenceSession("model.onnx")' in text
    assert "cifar10.safetensors" not in text
    assert main(["export"]) == 2
    assert "model.onnx exists already" in capsys.readouterr().err
