"""Two small runs with their reports."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
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


@pytest.fixture
def copy_of(tmp_path: Path, runs: tuple[RunFolder, RunFolder]) -> RunFolder:
    """A copy of the first run, which a test may change."""
    shutil.copytree(runs[0].path, tmp_path / "copy")
    return RunFolder(tmp_path / "copy")
