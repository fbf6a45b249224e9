import io
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from networks import NARROW_CONFIG
from PIL import Image
from rich.console import Console

from onecycle.core.errors import InputError
from onecycle.report import plots
from onecycle.run import experiment
from onecycle.storage.run_folder import RunFolder
from onecycle.train.lr_finder import read_curve

PLOTS_OF_EVERY_RUN = {
    "accuracy.png",
    "augmentations.png",
    "confusion_matrix.png",
    "incorrect_predictions.png",
    "learning_rate.png",
    "loss.png",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A very small run with given learning rates."""
    short = {"limit": 10, "epochs": 2, "batch_size": 5, "lr_min": 1e-5, "lr_max": 1e-4}
    config = replace(NARROW_CONFIG, **short, out=tmp_path_factory.mktemp("runs"))
    return experiment.run(config, Console(file=io.StringIO()))


@pytest.fixture
def copied(finished: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of the run folder in another place, without plots and weights."""
    folder = RunFolder(tmp_path / "copy")
    shutil.copytree(finished.path, folder.path)
    shutil.rmtree(folder.plots)
    folder.weights.unlink()
    return folder


def drawn(folder: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.plots.iterdir()}


def test_every_plot_is_drawn_again_from_the_folder_alone_byte_for_byte(finished: RunFolder, copied: RunFolder) -> None:
    before = drawn(finished)
    assert before.keys() == PLOTS_OF_EVERY_RUN
    plots.draw(copied)
    assert drawn(copied) == before


def test_every_plot_is_an_image_and_none_is_blank(finished: RunFolder) -> None:
    for path in finished.plots.iterdir():
        with Image.open(path) as image:
            assert min(image.size) > 100
            assert len(np.unique(np.asarray(image.convert("L")))) > 20, path.name


def test_the_lr_finder_curve_is_drawn_if_it_is_recorded(copied: RunFolder) -> None:
    curve = read_curve(np.geomspace(1e-6, 1, 50).tolist(), np.linspace(2.3, 0.5, 50).tolist())
    copied.write_json(copied.lr_finder, curve.to_json())
    plots.draw(copied)
    assert drawn(copied).keys() == PLOTS_OF_EVERY_RUN | {"lr_finder.png"}


def test_without_a_result_only_the_augmentations_are_drawn(copied: RunFolder) -> None:
    copied.result.unlink()
    plots.draw(copied)
    assert drawn(copied).keys() == {"augmentations.png"}


def test_drawing_again_replaces_the_plots_and_leaves_nothing_else(copied: RunFolder) -> None:
    copied.plots.mkdir()
    (copied.plots / "loss.png").write_text("half a plot")
    plots.draw(copied)
    assert drawn(copied).keys() == PLOTS_OF_EVERY_RUN
    with Image.open(copied.plots / "loss.png") as image:
        image.load()


@pytest.mark.parametrize("name", ["history.jsonl", "misclassified.npz", "predictions.npz"])
def test_a_missing_or_damaged_record_is_named(copied: RunFolder, name: str) -> None:
    (copied.path / name).write_bytes(b"\x00")
    with pytest.raises(InputError, match=name):
        plots.draw(copied)
    (copied.path / name).unlink()
    with pytest.raises(InputError, match=name):
        plots.draw(copied)


@pytest.mark.parametrize(("backend", "used"), [("a_missing_backend", "agg"), ("pdf", "pdf")])
def test_plots_need_no_backend_and_keep_the_one_that_the_variable_names(
    backend: str, used: str, tmp_path: Path
) -> None:
    program = (
        "import onecycle.report, os; from matplotlib import pyplot; from matplotlib.figure import Figure\n"
        "Figure().savefig('plot.png'); print(os.environ['MPLBACKEND'], pyplot.get_backend())"
    )
    environment = {**os.environ, "MPLBACKEND": backend, "DISPLAY": ""}
    completed = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (completed.stdout, completed.stderr) == (f"{backend} {used}\n", "")
    assert (tmp_path / "plot.png").exists()
