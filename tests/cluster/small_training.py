"""A training that takes seconds, and what it came to, to the last bit."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from studies import bits

from onecycle.storage.run_folder import RunFolder

# The network of tests/faults.
SMALL = [
    *("--recipe", "quick", "--widths", "8", "8", "8", "--data", "digits", "--limit", "60", "--batch-size", "12"),
    *("--workers", "0", "--out", "runs"),
]
OPTIONS = [*SMALL, "--no-report", "--epochs", "40", "--shards", "4"]  # epochs enough for something to happen meanwhile
THREADS = 1  # of each process: four of them are on one machine


def on_one_machine(folder: Path) -> dict[str, Any]:
    """What one process without a cluster makes of it, in that folder."""
    done = subprocess.run(
        [sys.executable, "-m", "onecycle", "train", *OPTIONS, "--processes", "1"],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": str(THREADS)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return outcome(folder)


def the_run(folder: Path) -> RunFolder | None:
    """The one run in that folder; None where there is none."""
    found = list(folder.glob("runs/*/config.json"))
    assert len(found) <= 1, "one training makes one run"
    return RunFolder(found[0].parent) if found else None


def outcome(folder: Path) -> dict[str, Any]:
    """All that the run in that folder came to, without the clock."""
    run = the_run(folder)
    assert run is not None and run.complete
    return bits(run)
