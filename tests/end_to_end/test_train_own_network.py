"""Train a network of one's own from the command line. Its code is never imported unless the user names it."""

import shutil
import sys
from pathlib import Path

import pytest

import onecycle
from onecycle.cli import main
from onecycle.core.errors import InputError
from onecycle.run import experiment
from onecycle.storage.run_folder import RunFolder

CODE = """
import os
from torch import nn

with open(os.path.join(os.path.dirname(__file__), "imported"), "a") as marker:
    marker.write("x")

def small(classes, size):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes)
    )
"""
OPTIONS = [
    "--data",
    "digits",
    "--limit",
    "20",
    "--batch-size",
    "10",
    "--epochs",
    "2",
    "--workers",
    "0",
    "--augmentation",
    "batched",
]
RATES = ["--lr-min", "1e-5", "--lr-max", "1e-3"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, str]:
    """A run of an own network, and the option that names it."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "nets.py").write_text(CODE)
    network = f"{folder}/nets.py:small"
    assert main(["train", "--network", network, *OPTIONS, *RATES, "--out", str(folder / "runs")]) == 0
    (path,) = (folder / "runs").iterdir()
    return RunFolder(path), network


@pytest.fixture
def run(trained: tuple[RunFolder, str], tmp_path: Path) -> RunFolder:
    """A copy of the run. Its code has not been imported yet."""
    shutil.copytree(trained[0].path, tmp_path / "run")
    marker_of(trained[1]).unlink(missing_ok=True)
    return RunFolder(tmp_path / "run")


@pytest.fixture
def network(trained: tuple[RunFolder, str]) -> str:
    return trained[1]


def marker_of(network: str) -> Path:
    return Path(network.rpartition(":")[0]).with_name("imported")


def begun(run: RunFolder) -> RunFolder:
    """A copy of `run` in its state before the first epoch."""
    begun = RunFolder(run.path.with_name("begun"))
    begun.plots.mkdir(parents=True)
    for name in ("config.json", "environment.json", "network.json", "augmentations.npz"):
        shutil.copy(run.path / name, begun.path)
    return begun


def test_a_run_of_an_own_network_has_all_files_and_records_the_digest_of_the_code(run: RunFolder, network: str) -> None:
    config = run.read_config()
    own = onecycle.models.OwnNetwork.load(network)
    assert (config.network, config.network_sha256) == (network, own.sha256)
    assert [layer.layer for layer in run.read_network().layers][:2] == ["Conv2d-1", "BatchNorm2d-2"]
    assert run.weights.exists() and run.report.exists() and run.interpretation.exists()
    assert "Grad-CAM" not in run.report.read_text(), "the network does not define `features`"


@pytest.mark.parametrize(
    "command",
    [
        "evaluate --run {run}",
        "report --run {run}",
        "predict {image} --run {run}",
        "predict {image} --run {run} --out {run}-out",
        "export --run {run}",
        "serve --run {run}",
        "train --resume {run}",
        "train --config {run}/config.json",
        "find-lr --config {run}/config.json",
        "study --config {run}/config.json",
        "train --init {run} --recipe quick",
        "train --init {run}/weights.safetensors",
    ],
)
def test_no_command_imports_code_that_only_a_run_folder_names(
    run: RunFolder, network: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.interpretation.unlink()  # otherwise `report` does not need the network
    if "--resume" in command:
        run = begun(run)
    image = tmp_path / "image.png"
    image.write_bytes((run.path.parent / "run" / "plots" / "loss.png").read_bytes())
    tokens = [token.format(run=run.path, image=image) for token in command.split()]
    if "--init" in command:
        tokens += ["--data", "digits", "--limit", "20"]
    assert main(tokens) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert "has a network of its own, whose code is loaded only if you name it; if you trust this code, add" in line
    assert line.endswith(f"add --network {network}") or "without the interpretation" in line
    assert not marker_of(network).exists()


def test_python_imports_no_code_that_only_a_run_folder_names(run: RunFolder, network: str) -> None:
    from rich.console import Console

    with pytest.raises(InputError, match="has a network of its own"):
        onecycle.load(run.path)
    with pytest.raises(InputError, match="has a network of its own"):
        experiment.resume(begun(run).path, Console(quiet=True))
    assert not marker_of(network).exists()
    assert onecycle.load(run.path, network=network).classes == tuple("0123456789")


def test_with_the_name_the_run_is_evaluated_predicted_and_reported(
    run: RunFolder, network: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--run", str(run.path), "--network", network]) == 0
    assert "agrees with the recorded result" in capsys.readouterr().out
    run.interpretation.unlink()
    assert main(["report", "--run", str(run.path), "--network", network]) == 0
    assert run.interpretation.exists()
    assert main(["predict", str(run.plots / "loss.png"), "--run", str(run.path), "--network", network, "--tta"]) == 0
    out = run.path.with_name("predictions")
    command = ["predict", str(run.plots), "--run", str(run.path), "--network", network, "--out", str(out)]
    assert main(command) == 0
    assert list((out / "predictions").iterdir())


def test_a_run_of_an_own_network_resumes_and_repeats_to_the_same_bits(
    run: RunFolder, network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = begun(run)
    assert main(["train", "--resume", str(other.path), "--network", network]) == 0
    assert other.weights.read_bytes() == run.weights.read_bytes()
    command = ["train", "--config", str(run.config), "--network", network, "--no-report", "--out", str(tmp_path / "a")]
    assert main(command) == 0
    (again,) = map(RunFolder, (tmp_path / "a").iterdir())
    assert again.weights.read_bytes() == run.weights.read_bytes()
    assert "so the result has the same bits" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("change", ["changed", "removed"])
def test_a_run_whose_code_is_missing_or_changed_says_so_in_one_line(
    run: RunFolder, network: str, change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, begun_run = Path(network.rpartition(":")[0]), begun(run)
    original = file.read_text()
    try:
        if change == "changed":
            file.write_text(original.replace("stride=4", "stride=2"))
        else:
            file.unlink()
        for command in (
            ["train", "--resume", str(begun_run.path)],
            ["train", "--config", str(run.config), "--out", str(tmp_path / "again")],
            ["evaluate", "--run", str(run.path)],
            ["predict", str(run.plots / "loss.png"), "--run", str(run.path)],
        ):
            assert main([*command, "--network", network]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            expected = "restore that code" if change == "changed" else f"there is no file {file}; check the name"
            assert line.endswith(expected)
    finally:
        file.write_text(original)
    assert not (tmp_path / "again").exists()


def test_the_code_may_be_elsewhere_for_prediction(run: RunFolder, network: str, tmp_path: Path) -> None:
    shutil.copy(network.rpartition(":")[0], tmp_path / "moved.py")
    assert onecycle.load(run.path, network=f"{tmp_path}/moved.py:small").classes == tuple("0123456789")


def test_a_network_of_onecycle_takes_no_code(network: str, capsys: pytest.CaptureFixture[str]) -> None:
    marker_of(network).unlink(missing_ok=True)
    assert main(["predict", "cat.jpg", "--network", network]) == 2
    assert f"leave out --network {network}" in capsys.readouterr().err
    assert not marker_of(network).exists()


def test_the_finder_runs_on_an_own_network(network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--data",
        "digits",
        "--limit",
        "200",
        "--batch-size",
        "50",
        "--workers",
        "0",
        "--augmentation",
        "batched",
        "--cutout",
        "0",
    ]
    assert main(["find-lr", "--network", network, *options, "--out", str(tmp_path)]) == 0
    assert "LR finder: LR min" in capsys.readouterr().out


def test_an_own_network_starts_from_the_weights_of_another_run(run: RunFolder, network: str, tmp_path: Path) -> None:
    command = ["train", "--network", network, *OPTIONS, *RATES, "--no-report", "--out", str(tmp_path / "a")]
    assert main([*command, "--init", str(run.path)]) == 0
    (again,) = map(RunFolder, (tmp_path / "a").iterdir())
    assert "with all weights" in again.read_result().notes[-1]


def test_weights_of_an_own_network_for_another_image_size_are_refused_in_one_line(
    run: RunFolder, network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--network", network, *OPTIONS, *RATES, "--size", "16", "--out", str(tmp_path / "a")]
    assert main([*command, "--init", str(run.path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has the weights of another network: size mismatch for network.4.weight" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--network nets", "must be custom_resnet, whitened_convnet, pretrained, or your own as module:function"),
        ("--network a.py:b --recipe quick", "it must be adam with your own network"),
        ("--network a.py:b", "--network: there is no file a.py; check the name"),
    ],
)
def test_a_network_that_cannot_be_used_is_refused(
    options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--data", "digits", *options.split()]) == 2
    assert message in capsys.readouterr().err
    assert "a" not in sys.modules
