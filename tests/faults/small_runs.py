"""Small, real runs in processes of their own, which can be killed and hindered."""

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
from planted import CALLS_NOTED, Fault, ended_with, run, said_by

from onecycle.storage.run_folder import RunFolder

# A network that learns in a second, by the same loop as every other; the images augmented one by one, in workers.
REPORTED = [
    *("train", "--recipe", "quick", "--widths", "8", "8", "8", "--data", "digits", "--limit", "60"),
    *("--epochs", "3", "--batch-size", "12", "--out", "runs"),
    *("--augmentation", "albumentations", "--padding", "4", "--hole", "8", "--flip", "random"),
]
SMALL = [*REPORTED, "--no-report"]
SOON = 0.1  # seconds between two savings within an epoch, so that short runs have some
PATIENCE = 600  # seconds

processes = multiprocessing.get_context("forkserver")


Case = TypeVar("Case")
Result = TypeVar("Result")


def two_at_a_time(work: Callable[[Case], Result], cases: Iterable[Case]) -> list[Result]:
    """What `work` says to each case. A small run leaves a core idle for much of its time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, cases))


@dataclass(frozen=True)
class Ended:
    code: int  # minus the number of the signal that killed it
    said: str
    seconds: float

    @property
    def last_line(self) -> str:
        return self.said.splitlines()[-1] if self.said.strip() else ""


@dataclass(frozen=True)
class Started:
    process: ForkServerProcess
    folder: Path
    began: float

    def end(self, *, kill_after: float | None = None) -> Ended:
        """Wait for it, or kill it so many seconds after its start."""
        self.process.join(PATIENCE if kill_after is None else max(0, self.began + kill_after - time.perf_counter()))
        if self.process.is_alive():
            assert kill_after is not None, said_by(self.folder).read_text()
            self.process.kill()
            self.process.join()
        code = self.process.exitcode
        if code == 255:  # by which multiprocessing means that it lost the code
            code = int(ended_with(self.folder).read_text())
        assert code is not None
        said = said_by(self.folder).read_text() if said_by(self.folder).exists() else ""
        # What is killed may have been cut off in saying that a worker was, which Python does by a traceback.
        assert code == -9 or "Traceback" not in said, said
        return Ended(code, said, time.perf_counter() - self.began)


@dataclass(frozen=True)
class Place:
    """A working folder for the commands of one story, and its single run folder."""

    path: Path

    def start(
        self,
        *arguments: str,
        faults: Sequence[Fault] = (),
        save_seconds: float = SOON,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> Started:
        kept = {"XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"], "https_proxy": "http://127.0.0.1:9", **environment}
        process = processes.Process(target=run, args=(arguments, self.path, kept, faults, save_seconds))
        ended_with(self.path).unlink(missing_ok=True)
        began = time.perf_counter()
        process.start()
        return Started(process, self.path, began)

    def onecycle(self, *arguments: str, faults: Sequence[Fault] = (), save_seconds: float = SOON) -> Ended:
        return self.start(*arguments, faults=faults, save_seconds=save_seconds).end()

    def calls(self, at: str) -> int:
        """How often `at` was called in a run in which that was noted."""
        return (self.path / CALLS_NOTED).read_text().splitlines().count(at)

    @property
    def run(self) -> RunFolder | None:
        """The run's folder; None where it was not made."""
        found = [RunFolder(path.parent) for path in self.path.glob("runs/*/config.json")]
        return found[0] if found else None

    @property
    def resume(self) -> list[str]:
        """The command that goes on: with the run's folder, or anew where there is none."""
        run = self.run
        return ["train", "--resume", str(run.path.relative_to(self.path))] if run else SMALL


@dataclass(frozen=True)
class Reference:
    """A run that nothing disturbed, and how long it took."""

    bits: dict[str, Any]
    seconds: float
    place: Place


def bits(place: Place) -> dict[str, Any]:
    """All that a run came to, without the clock, and its pictures."""
    run = place.run
    assert run is not None and run.complete
    assert {path.name for path in run.path.rglob(".*")} <= {".lock"}, "nothing else is left lying about"
    return {
        **studies.bits(run),
        "mistakes": {name: np.asarray(array).tobytes() for name, array in run.read_arrays(run.mistakes).items()},
        "pictures": {path.name: path.read_bytes() for path in sorted(run.pictures.iterdir())},
    }
