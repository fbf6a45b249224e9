"""Start runs from the weights of a trained network."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from networks import NARROW, NARROW_CONFIG
from PIL import Image

from onecycle.cli import main
from onecycle.compute import autotune
from onecycle.compute.plan import EAGER
from onecycle.core.config import Config
from onecycle.core.errors import InputError
from onecycle.core.recipes import FAST, TRANSFER
from onecycle.models import Architecture
from onecycle.predict.predictor import SHIPPED, Predictor
from onecycle.run.build import Experiment, assemble
from onecycle.run.initial_weights import InitialWeights, digest_of
from onecycle.storage.run_folder import RunFolder

SMALL = replace(NARROW_CONFIG, limit=20, batch_size=10, epochs=2, augmentation="batched", lr_min=1e-5, lr_max=1e-3)
Images = Callable[[dict[str, tuple[int, int, int]]], Path]


def other(**changes: object) -> Experiment:
    """An experiment with other weights than those of `SMALL`."""
    return assemble(replace(SMALL, seed=7, **changes), EAGER)  # type: ignore[arg-type]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "other.safetensors"
    other().predictor.save(path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Images:
    """A function that writes classes of images of one noisy color each."""

    def write(colors: dict[str, tuple[int, int, int]]) -> Path:
        rng = np.random.default_rng(0)
        for name, color in colors.items():
            for split, count in (("train", 10), ("test", 2)):
                (tmp_path / "images" / split / name).mkdir(parents=True)
                for number in range(count):
                    noise = rng.integers(0, 50, (32, 32, 1)) + np.array(color)
                    file = tmp_path / "images" / split / name / f"{number}.png"
                    Image.fromarray(noise.astype(np.uint8)).save(file)
        return tmp_path / "images"

    return write


def started(init: Path | str, **changes: object) -> Experiment:
    return assemble(replace(SMALL, init=str(init), **changes), EAGER)  # type: ignore[arg-type]


def line_of(experiment: Experiment) -> str:
    return experiment.dataset.notes[-1]


def test_with_the_same_classes_all_weights_and_the_normalization_are_loaded(weights: Path) -> None:
    experiment, source = started(weights), Predictor.load(weights)
    for name, tensor in experiment.model.state_dict().items():
        torch.testing.assert_close(tensor, source.model.state_dict()[name], rtol=0, atol=0)
    assert experiment.preprocessing == source.preprocessing
    digest = digest_of(weights)
    assert experiment.config.init_sha256 == digest
    assert line_of(experiment) == (
        f"Starts from {weights.name} (SHA-256 {digest[:12]}…) with all weights; the normalization is that of its "
        "training images, and every image is converted to gray"
    )


def test_a_head_of_other_classes_is_new_and_all_else_is_loaded(weights: Path, images: Images) -> None:
    data = images({"red": (200, 0, 0), "blue": (0, 0, 200)})
    experiment = started(weights, data=str(data))
    loaded, source = experiment.model.state_dict(), Predictor.load(weights).model.state_dict()
    assert loaded["linear.weight"].shape == (2, 8)
    assert all(torch.equal(loaded[name], source[name]) for name in source if name != "linear.weight")
    fresh = assemble(replace(SMALL, data=str(data)), EAGER).model.state_dict()
    assert torch.equal(loaded["linear.weight"], fresh["linear.weight"]), "as without --init"
    assert "with all weights but linear.weight: the head is new, because the classes are not 0, 1, 2, …;" in line_of(
        experiment
    )


def test_the_same_classes_in_another_order_keep_their_rows_of_the_head(tmp_path: Path) -> None:
    source = other().predictor
    turned = replace(source, classes=source.classes[::-1])
    turned.save(tmp_path / "turned.safetensors")
    experiment = started(tmp_path / "turned.safetensors")
    head = experiment.model.state_dict()["linear.weight"]
    assert torch.equal(head, source.model.state_dict()["linear.weight"].flip(0))
    assert "with all weights, the head in the new order of the classes;" in line_of(experiment)


def test_whitening_filters_come_with_the_weights_and_stay_frozen(weights: Path, images: Images) -> None:
    data = images({"red": (200, 0, 0), "blue": (0, 0, 200)})
    model = started(weights, data=str(data)).model
    assert torch.equal(model.state_dict()["whitening.weight"], other().model.state_dict()["whitening.weight"])
    assert not dict(model.named_parameters())["whitening.weight"].requires_grad
    assert dict(started(weights, whitening=False).model.named_parameters())["whitening.weight"].requires_grad


def test_images_become_gray_if_either_network_needs_it(weights: Path, images: Images, tmp_path: Path) -> None:
    data = str(images({"red": (200, 0, 0), "blue": (0, 0, 200)}))
    assert started(weights, data=data).preprocessing.gray, "the weights are of gray images"
    other(data=data).predictor.save(tmp_path / "colors.safetensors")
    of_colors = started(tmp_path / "colors.safetensors")  # on gray digits
    assert of_colors.preprocessing.gray
    assert of_colors.preprocessing.mean == other(data=data).preprocessing.mean
    assert not started(tmp_path / "colors.safetensors", data=data).preprocessing.gray


def test_the_weights_may_be_of_images_of_another_size(weights: Path) -> None:
    assert started(weights, size=16, sizes=(12, 16)).preprocessing.input_size == 16


def test_the_included_network_is_called_shipped() -> None:
    config = replace(FAST, data="digits", limit=20, batch_size=10, epochs=1, init="shipped")
    experiment = assemble(config, EAGER)
    source = Predictor.load(SHIPPED).model.state_dict()
    assert torch.equal(experiment.model.state_dict()["groups.0.0.weight"], source["groups.0.0.weight"])
    assert "the head is new, because the classes are not airplane, automobile, bird, …" in line_of(experiment)


@pytest.mark.parametrize(
    ("theirs", "ours"), [("timm:test_resnet", "efficientnet_lite0"), ("efficientnet_lite0", "timm:test_resnet")]
)
def test_the_error_names_another_backbone(theirs: str, ours: str, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = Architecture.of(replace(TRANSFER, backbone=theirs))
    monkeypatch.setattr(Predictor, "load", lambda *_, **__: SimpleNamespace(architecture=architecture))
    expected = f"--network pretrained --backbone {ours}; use --network pretrained --backbone {theirs}$"
    with pytest.raises(InputError, match=expected):
        InitialWeights.of(replace(TRANSFER, backbone=ours, init="shipped"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            replace(SMALL, init="shipped"),
            "--init shipped is a network of --network whitened_convnet --widths 64 256 256 --activation hardswish, and "
            "this run trains --network whitened_convnet --widths 8 8 8 --activation relu; use --recipe fast",
        ),
        (
            Config(data="digits", limit=20, batch_size=10, init="{weights}"),
            "and this run trains --network custom_resnet; use --network whitened_convnet --widths 8 8 8",
        ),
        (replace(SMALL, init="{folder}"), "is not a run folder: it has no config.json"),
        (replace(SMALL, init="{folder}/gone"), "--init: there is no run folder or weights file "),
        (replace(SMALL, init="{data}"), "data.bin is damaged or of another kind"),
    ],
    ids=["widths", "network", "no run", "missing", "no weights"],
)
def test_weights_that_cannot_be_used_are_refused_before_plans_are_measured(
    config: Config, message: str, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autotune, "choose", None)
    (data := weights.with_name("data.bin")).write_bytes(b"\x08" + bytes(100))
    assert config.init
    init = config.init.format(weights=weights, folder=weights.parent, data=data)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        assemble(replace(config, init=init))
    assert "\n" not in str(error.value)


def test_weights_that_have_changed_since_are_refused(weights: Path) -> None:
    config = started(weights).config
    moved = weights.rename(weights.with_name("moved.safetensors"))
    assert assemble(replace(config, init=str(moved)), EAGER).config.init_sha256 == config.init_sha256
    other(whitening=False).predictor.save(weights)
    with pytest.raises(InputError, match="and the run started from weights with .*; give the original weights"):
        assemble(config, EAGER)


def test_calibrating_a_network_does_not_change_the_runs_that_started_from_it(weights: Path) -> None:
    config = started(weights).config
    replace(Predictor.load(weights), temperature=1.7, energy_threshold=0.5).save(weights)
    assert assemble(config, EAGER).config.init_sha256 == config.init_sha256 == digest_of(weights)


def test_a_run_starts_from_another_run_records_that_and_is_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*NARROW, "--data", "digits", "--limit", "20", "--batch-size", "10", "--epochs", "1", "--workers", "0"]
    options += ["--lr-min", "1e-5", "--lr-max", "1e-3", "--augmentation", "batched", "--cutout", "0", "--no-report"]

    def run(name: str, *arguments: str) -> RunFolder:
        assert main(["train", *arguments, "--out", str(tmp_path / name)]) == 0
        (path,) = (tmp_path / name).iterdir()
        return RunFolder(path)

    first = run("first", *options)
    second = run("second", *options, "--init", str(first.path))
    assert f"Starts from {first.path.name} (SHA-256 " in " ".join(capsys.readouterr().out.split())
    digest = digest_of(first.weights)
    config = second.read_config()
    assert (config.init, config.init_sha256) == (str(first.path), digest)
    assert any(note.startswith("Starts from ") for note in second.read_result().notes)
    assert second.weights.read_bytes() != first.weights.read_bytes()
    third = run("third", "--config", str(second.config))
    assert "so the result has the same bits" in " ".join(capsys.readouterr().out.split())
    assert third.weights.read_bytes() == second.weights.read_bytes()
    fourth = run("fourth", "--config", str(second.config), "--init", str(second.path))
    assert fourth.read_config().init_sha256 == digest_of(second.weights)


def test_a_configuration_with_open_weights_leads_to_one_with_weights_only() -> None:
    config = replace(SMALL, init="weights")
    assert config.leads_to(replace(config, init_sha256="a" * 64))
    assert not replace(config, init_sha256="b" * 64).leads_to(replace(config, init_sha256="a" * 64))
    assert not config.leads_to(SMALL)
