"""One run of a study, and the engine that carries out runs one after another."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

from rich.console import Console

from onecycle.compute import hardware
from onecycle.core.config import Config
from onecycle.core.errors import InputError, OnecycleError
from onecycle.core.files import locked
from onecycle.run import experiment
from onecycle.storage.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """One run of a study."""

    name: str  # the variant and the seed, such as "flip=random, seed 1"
    place: str  # position in the study, such as "3/12"
    folder: Path
    config: Config
    cores: int

    def is_done(self) -> bool:
        """Whether the run is complete.

        Raises:
            InputError: when the folder holds a different run than the study describes.
        """
        if not RunFolder(self.folder).is_complete:
            return False
        self._require_same()
        return True

    def carry_out(self, console: Console) -> None:
        """Complete the run, from its last checkpoint if there is one.

        Raises:
            OnecycleError: when the run fails.
            Interrupted: on SIGINT or SIGTERM. Another call then continues the run.
        """
        folder = RunFolder(self.folder)
        with _limit_cores(self.cores):
            if folder.has_checkpoint:
                self._require_same()
                experiment.resume(folder.path, console, network=self.config.network)
                return
            if folder.path.exists():
                with locked(folder.path):
                    folder.discard()  # the run ended before its first checkpoint
            # A report for every run would take long, and few would be read. `onecycle report` can write one later.
            experiment.run(replace(self.config, report=False), console, folder.path)

    def _require_same(self) -> None:
        """Check that the configuration in the run folder is the one that the study describes."""
        folder = RunFolder(self.folder)
        began = folder.read_config()
        if self.config.data not in ("auto", began.data) or not self.config.leads_to(began):
            raise InputError(f"{folder.config} differs from study.json; remove {folder.path} to repeat the run")


class StudyOutcome(NamedTuple):
    """A run that has ended. `failure` is the reason if the run failed, and None otherwise."""

    run: StudyRun
    failure: str | None = None


class StudyEngine(Protocol):
    """Carries out the runs of a study."""

    def carry_out(self, runs: Sequence[StudyRun], console: Console) -> Iterator[StudyOutcome]:
        """Complete all `runs`. Yields the outcome of each run when the run has ended.

        Raises:
            OnecycleError: when no run can be carried out.
            Interrupted: on SIGINT or SIGTERM, after the active runs have stopped.
        """
        ...


class LocalStudyEngine:
    """Carries out one run after another in this process."""

    def carry_out(self, runs: Sequence[StudyRun], console: Console) -> Iterator[StudyOutcome]:
        for run in runs:
            console.rule(f"{run.place}: {run.name}")
            try:
                run.carry_out(console)
            except OnecycleError as error:
                yield StudyOutcome(run, str(error))
            except Exception as error:  # out of memory, an error in the user's own network, …
                console.print_exception()
                yield StudyOutcome(run, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            else:
                yield StudyOutcome(run)


LOCAL_STUDY_ENGINE = LocalStudyEngine()


@contextmanager
def _limit_cores(cores: int) -> Iterator[None]:
    """Let this process use `cores` cores inside the block. Sets `$OMP_NUM_THREADS`, as Ray does for its tasks.

    Raises:
        InputError: when fewer than `cores` cores are available to this process.
    """
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(cores)
    try:
        if (usable := hardware.usable_cores()) < cores:
            raise InputError(
                f"the runs of this study use {cores} cores, and this process may use {usable}; go on with the study "
                "on a machine with more cores"
            )
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
