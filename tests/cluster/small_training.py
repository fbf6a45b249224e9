"""A training run that takes seconds, and its bit-exact results."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from studies import bits

from onecycle.storage.run_folder import RunFolder

# The same small network as in tests/faults.
SMALL = [
    *("--recipe", "quick", "--widths", "8", "8", "8", "--data", "digits", "--limit", "60", "--batch-size", "12"),
    *("--workers", "0", "--out", "runs"),
]
OPTIONS = [*SMALL, "--no-report", "--epochs", "40", "--shards", "4"]  # 40 epochs last long enough to be interrupted
THREADS = 1  # per process, because several processes share one machine


def on_one_machine(folder: Path) -> dict[str, Any]:
    """Train in one process in `folder`, without a cluster, and return the results."""
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
    """The only run in `folder`, or None if there is none yet."""
    found = list(folder.glob("runs/*/config.json"))
    assert len(found) <= 1, "one training creates one run folder"
    return RunFolder(found[0].parent) if found else None


def outcome(folder: Path) -> dict[str, Any]:
    """All results of the run in `folder`, without durations."""
    run = the_run(folder)
    assert run is not None and run.is_complete
    return bits(run)
