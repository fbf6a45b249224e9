"""Two small runs with their reports."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from onecycle import experiment
from onecycle.config import QUICK
from onecycle.run_folder import RunFolder

SMALL = replace(QUICK, widths=(8, 8, 8), data="digits", limit=300, epochs=2, batch_size=50)


@pytest.fixture(scope="session")
def runs(cache_home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, RunFolder]:
    """Complete runs with the seeds 0 and 1, which keep their weights."""
    out = tmp_path_factory.mktemp("reported")
    quiet = Console(quiet=True)
    first, second = (experiment.run(replace(SMALL, seed=seed), quiet, out / f"seed-{seed}") for seed in (0, 1))
    return first, second


@pytest.fixture
def copy_of(tmp_path: Path, runs: tuple[RunFolder, RunFolder]) -> RunFolder:
    """The first run, to be changed."""
    shutil.copytree(runs[0].path, tmp_path / "copy")
    return RunFolder(tmp_path / "copy")
