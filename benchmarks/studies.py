"""Helpers of the benchmarks and of tests: resumable records, the contents of runs, and commands in processes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onecycle.compute import hardware
from onecycle.core.config import Config
from onecycle.core.errors import InputError
from onecycle.core.files import reading, replacing
from onecycle.core.older_records import with_current_names
from onecycle.core.recipes import RECIPES
from onecycle.run import environment
from onecycle.run.build import Experiment, assemble
from onecycle.storage.records import History
from onecycle.storage.run_folder import RunFolder
from onecycle.train.loop import fit

FROM_SCRATCH = [name for name, config in RECIPES.items() if config.network != "pretrained"]
"""The recipes that train a whole network."""


def load_or_start(path: Path, config: Config, begin: Callable[[Experiment], dict[str, Any]]) -> dict[str, Any]:
    """Load the study in the file `path`, or start a new one. `begin` returns further fields of a new study.

    The field "cells" lists the finished runs of a study. A new study has none.

    Raises:
        InputError: when the file holds a study with another configuration, or cannot be read.
    """
    if path.exists():
        with reading(path):
            study: dict[str, Any] = with_current_names(json.loads(path.read_text()))
            if Config.from_json(study["config"]) == config:
                return study
        raise InputError(f"{path} holds a study with another configuration; give another --out")
    experiment = assemble(config)
    return {
        "environment": environment.describe(hardware.detect(), experiment.plan),
        "config": config.to_json(),
        "fingerprint": experiment.dataset.fingerprint,
        "notes": experiment.dataset.notes,
        **begin(experiment),
        "cells": [],
    }


def train(experiment: Experiment, **arguments: Any) -> History:
    """Train `experiment` without a run folder. `arguments` of `fit` replace those from the configuration."""
    config = experiment.config
    configured = {
        "epochs": config.epochs,
        "lr_min": config.lr_min,
        "lr_max": config.lr_max,
        "peak_fraction": config.peak_fraction,
        "plan": experiment.plan,
    }
    return fit(
        experiment.model, experiment.optimizer, experiment.train, experiment.evaluation, **{**configured, **arguments}
    )


def write(path: Path, record: dict[str, Any]) -> None:
    """Write `record` to `path` atomically. Creates missing folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")


def rounded(value: float) -> float:
    """`value` to four significant digits."""
    return float(f"{value:.4g}")


def contents(study: Path) -> dict[str, object]:
    """The content of each file in the run folders of a study, by path, without durations, date, command and `out`."""
    left_out = {"seconds", "training_seconds", "images_per_second", "peak_memory_gib", "out", "date", "command"}

    def content(path: Path) -> object:
        if path.suffix not in (".json", ".jsonl"):
            return path.read_bytes()
        objects = map(json.loads, path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()])
        return [{name: value for name, value in each.items() if name not in left_out} for each in objects]

    files = [path for path in study.rglob("*") if path.is_file() and path.parent != study]
    return {str(path.relative_to(study)): content(path) for path in files}


def bits(run: RunFolder) -> dict[str, Any]:
    """All results of a run, without durations."""
    timed = ("seconds", "images_per_second", "peak_memory_gib", "tta_seconds")
    curve = run.read_lr_curve()
    return {
        "weights": run.weights.read_bytes(),
        "history": [vars(record) | {"seconds": 0, "training_seconds": 0} for record in run.read_history()],
        "predictions": {name: array.tobytes() for name, array in run.read_arrays(run.predictions).items()},
        "margins": run.read_arrays(run.training_margins)["margins"].tobytes(),
        "curve": curve and curve.to_json(),
        "result": {name: value for name, value in run.read_json(run.result).items() if name not in timed},
    }


@dataclass(frozen=True)
class StartedCommand:
    """A command that runs in its own session, and the file with its output."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def end(self, seconds: float) -> int:
        """Wait at most `seconds` until the command ends, and return its exit code.

        Raises:
            TimeoutError: when the command takes longer. It is killed, and the message has its output.
        """
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise TimeoutError(f"not done after {seconds} seconds; its output:\n{self.output}") from None

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def ranks_of(launcher: int) -> dict[int, int]:
    """The process id of each rank. `launcher` is the id of the process in which torch's launcher runs."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):  # the process may have ended
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            pairs = (path / "environ").read_bytes().split(b"\0") if parent == launcher else []
            found |= {int(pair.removeprefix(b"RANK=")): int(path.name) for pair in pairs if pair.startswith(b"RANK=")}
    return found


@contextmanager
def served() -> Iterator[tuple[str, int]]:
    """A context in which `onecycle serve` runs. Yields its address and its process id."""
    command = [sys.executable, "-m", "onecycle", "serve", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield process.stdout.readline().split()[1], process.pid
    finally:
        process.terminate()
        process.wait()
