"""Two small runs with their reports."""

import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from reported_runs import NAMES_OF_FILES
from rich.console import Console
from shared import made_once

from onecycle.core.recipes import QUICK
from onecycle.run import experiment
from onecycle.storage.run_folder import RunFolder

SMALL = replace(QUICK, widths=(8, 8, 8), data="digits", limit=300, epochs=2, batch_size=50)


@pytest.fixture(scope="session")
def runs(for_all_workers: Path) -> tuple[RunFolder, RunFolder]:
    """Two complete runs, with the seeds 0 and 1. Tests must not change them."""

    def make(folder: Path) -> None:
        for seed in (0, 1):
            experiment.run(replace(SMALL, seed=seed), Console(quiet=True), folder / f"seed-{seed}")

    folder = made_once(for_all_workers / "reported", make)
    return RunFolder(folder / "seed-0"), RunFolder(folder / "seed-1")


@pytest.fixture(scope="session")
def of_files(for_all_workers: Path, image_folder: Path) -> RunFolder:
    """A complete run on image files with names of several kinds. Tests must not change it."""

    def make(folder: Path) -> None:
        shutil.copytree(image_folder, folder / "data")
        for split, name in product(("train", "test"), NAMES_OF_FILES):
            first = min((folder / "data" / split / "7").glob("0*.png"))
            first.rename(first.with_name(name))
        config = replace(SMALL, data=str(folder / "data"), limit=None, epochs=1, batch_size=25)
        experiment.run(config, Console(quiet=True), folder / "run")

    return RunFolder(made_once(for_all_workers / "of-files", make) / "run")


@pytest.fixture
def copy_of(tmp_path: Path, runs: tuple[RunFolder, RunFolder]) -> RunFolder:
    """A copy of the first run, which a test may change."""
    shutil.copytree(runs[0].path, tmp_path / "copy")
    return RunFolder(tmp_path / "copy")
