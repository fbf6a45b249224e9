"""Small training runs in separate processes. Tests can kill the processes and cause faults in them."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import studies
from planted import CALLS_NOTED, Fault, exit_code_file, output_file, run

from onecycle.storage.run_folder import RunFolder

# A run that trains a small network in a second. Worker processes augment the images one by one.
REPORTED = [
    *("train", "--recipe", "quick", "--widths", "8", "8", "8", "--data", "digits", "--limit", "60"),
    *("--epochs", "3", "--batch-size", "12", "--out", "runs"),
    *("--augmentation", "albumentations", "--padding", "4", "--cutout", "8", "--flip", "random"),
]
SMALL = [*REPORTED, "--no-report"]
SOON = 0.1  # seconds between checkpoints within an epoch: short enough that a small run saves some
PATIENCE = 600  # seconds, longer than any small run takes

processes = multiprocessing.get_context("forkserver")


Case = TypeVar("Case")
Result = TypeVar("Result")


def two_at_a_time(work: Callable[[Case], Result], cases: Iterable[Case]) -> list[Result]:
    """The results of `work` for all `cases`. Two cases run at a time, because a small run leaves a core mostly idle."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, cases))


@dataclass(frozen=True)
class Ended:
    code: int  # the exit code, or minus the number of the signal that killed the process
    output: str
    seconds: float

    @property
    def last_line(self) -> str:
        return self.output.splitlines()[-1] if self.output.strip() else ""


@dataclass(frozen=True)
class Started:
    process: ForkServerProcess
    folder: Path
    began: float

    def end(self, *, kill_after: float | None = None) -> Ended:
        """Wait until the process ends. If it still runs `kill_after` seconds after its start, kill it."""
        self.process.join(PATIENCE if kill_after is None else max(0, self.began + kill_after - time.perf_counter()))
        if self.process.is_alive():
            assert kill_after is not None, output_file(self.folder).read_text()
            self.process.kill()
            self.process.join()
        code = self.process.exitcode
        if code == 255:  # multiprocessing lost the exit code, which the process also writes to a file unless killed
            file = exit_code_file(self.folder)
            code = int(file.read_text()) if file.exists() else -9
        assert code is not None
        output = output_file(self.folder).read_text() if output_file(self.folder).exists() else ""
        # A killed process may have printed a traceback, because one of its workers was killed first.
        assert code == -9 or "Traceback" not in output, output
        return Ended(code, output, time.perf_counter() - self.began)


@dataclass(frozen=True)
class Workspace:
    """A working folder for the commands of one test. It contains at most one run folder."""

    path: Path

    def start(
        self,
        *arguments: str,
        faults: Sequence[Fault] = (),
        save_seconds: float = SOON,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> Started:
        variables = {"XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"], "https_proxy": "http://127.0.0.1:9", **environment}
        process = processes.Process(target=run, args=(arguments, self.path, variables, faults, save_seconds))
        exit_code_file(self.path).unlink(missing_ok=True)
        began = time.perf_counter()
        process.start()
        return Started(process, self.path, began)

    def onecycle(self, *arguments: str, faults: Sequence[Fault] = (), save_seconds: float = SOON) -> Ended:
        return self.start(*arguments, faults=faults, save_seconds=save_seconds).end()

    def calls(self, at: str) -> int:
        """How often the run called the function `at`. The fault "note" must have recorded its calls."""
        return (self.path / CALLS_NOTED).read_text().splitlines().count(at)

    @property
    def run(self) -> RunFolder | None:
        """The run folder, or None if there is none yet."""
        found = [RunFolder(path.parent) for path in self.path.glob("runs/*/config.json")]
        return found[0] if found else None

    @property
    def resume(self) -> list[str]:
        """The command that resumes the run, or starts it if there is no run folder."""
        run = self.run
        return ["train", "--resume", str(run.path.relative_to(self.path))] if run else SMALL


@dataclass(frozen=True)
class Reference:
    """A run without faults, and its duration."""

    bits: dict[str, Any]
    seconds: float
    workspace: Workspace


def bits(workspace: Workspace) -> dict[str, Any]:
    """All results of the run, including its plots, but without durations."""
    run = workspace.run
    assert run is not None and run.is_complete
    assert {path.name for path in run.path.rglob(".*")} <= {".lock"}, "the run leaves no temporary file behind"
    arrays = run.read_arrays(run.misclassified)
    return {
        **studies.bits(run),
        "misclassified": {name: np.asarray(array).tobytes() for name, array in arrays.items()},
        "plots": {path.name: path.read_bytes() for path in sorted(run.plots.iterdir())},
    }
