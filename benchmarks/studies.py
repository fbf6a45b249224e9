"""What the scripts here share: records that are written down and gone on with, what runs hold, and commands."""

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
from onecycle.run import environment
from onecycle.run.build import Experiment, assemble
from onecycle.storage.run_folder import RunFolder


def load_or_start(path: Path, config: Config, begin: Callable[[Experiment], dict[str, Any]]) -> dict[str, Any]:
    """The study that was begun with `config`, or a new one without a cell and with what `begin` makes of its parts.

    Raises:
        InputError: when the file holds a study with other settings, or cannot be read.
    """
    if path.exists():
        with reading(path):
            study: dict[str, Any] = json.loads(path.read_text())
            if Config.from_json(study["config"]) == config:
                return study
        raise InputError(f"{path} holds a study with other settings; give another --out")
    parts = assemble(config)
    return {
        "environment": environment.describe(hardware.detect(), parts.acceleration),
        "config": config.to_json(),
        "fingerprint": parts.dataset.fingerprint,
        "notes": parts.dataset.notes,
        **begin(parts),
        "cells": [],
    }


def write(path: Path, record: dict[str, Any]) -> None:
    """Put `record` into `path` whole, with the folders it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")


def rounded(value: float) -> float:
    """`value` to four significant digits."""
    return float(f"{value:.4g}")


def contents(study: Path) -> dict[str, object]:
    """What is in the run folders of a study, by the names of the files: all but times, and how and where it began."""
    left_out = {"seconds", "training_seconds", "images_per_second", "peak_memory_gib", "out", "date", "command"}

    def told(path: Path) -> object:
        if path.suffix not in (".json", ".jsonl"):
            return path.read_bytes()
        objects = map(json.loads, path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()])
        return [{name: value for name, value in each.items() if name not in left_out} for each in objects]

    files = [path for path in study.rglob("*") if path.is_file() and path.parent != study]
    return {str(path.relative_to(study)): told(path) for path in files}


def bits(run: RunFolder) -> dict[str, Any]:
    """All that a run came to, without the clock."""
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
class Running:
    """A command that was started, in a session of its own, and the file of what it says."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def end(self, seconds: float) -> int:
        """Its exit code, once it has ended by itself.

        Raises:
            TimeoutError: after so many seconds, with what it said; it is killed then.
        """
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise TimeoutError(f"not done after {seconds} seconds; it said:\n{self.said}") from None

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def ranks_of(launcher: int) -> dict[int, int]:
    """The numbers of the processes that torch's launcher, the process of this number, has started, by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):  # it has ended
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            pairs = (path / "environ").read_bytes().split(b"\0") if parent == launcher else []
            found |= {int(pair.removeprefix(b"RANK=")): int(path.name) for pair in pairs if pair.startswith(b"RANK=")}
    return found


@contextmanager
def served() -> Iterator[tuple[str, int]]:
    """Inside, `onecycle serve` answers: at this address, as the process of this number."""
    command = [sys.executable, "-m", "onecycle", "serve", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield process.stdout.readline().split()[1], process.pid
    finally:
        process.terminate()
        process.wait()
