"""One run of a study, and what carries runs out: an engine. The one here takes them one after another."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from rich.console import Console

from onecycle.compute import hardware
from onecycle.core.config import Config
from onecycle.core.errors import InputError
from onecycle.core.files import locked
from onecycle.run import experiment
from onecycle.storage.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """A run as a study asks for it."""

    name: str  # of its variant, with its seed
    place: str  # among the study's runs, such as "3/12"
    folder: Path
    config: Config
    cores: int

    def is_done(self) -> bool:
        """Whether it came to its end before.

        Raises:
            InputError: when it is another run than the study describes.
        """
        if not RunFolder(self.folder).complete:
            return False
        self._require_same()
        return True

    def carry_out(self, console: Console) -> None:
        """Bring it to its end: from where it was saved last, else from its beginning.

        Raises:
            InputError: when that cannot be done.
            Interrupted: by SIGINT or SIGTERM; another call goes on.
        """
        folder = RunFolder(self.folder)
        with _computing_on(self.cores):
            if folder.saved:
                self._require_same()
                experiment.resume(folder.path, console)
                return
            if folder.path.exists():
                with locked(folder.path):
                    folder.discard()  # it ended before it was saved
            # A page for each of many runs would take longer than reading them is worth; `onecycle report` writes one.
            experiment.run(replace(self.config, report=False), console, folder.path)

    def _require_same(self) -> None:
        """Refuse a run that was begun as another: with other values, or by a study that was changed since."""
        folder = RunFolder(self.folder)
        began = folder.read_config()
        data = began.data if self.config.data == "auto" else self.config.data
        if began != replace(self.config, data=data, out=began.out, report=began.report):
            raise InputError(f"{folder.config} is not what study.json asks for; remove {folder.path} to run it anew")


class Engine(Protocol):
    """Where the runs of a study are carried out."""

    def carry_out(self, runs: Sequence[StudyRun], console: Console) -> Iterator[tuple[StudyRun, InputError | None]]:
        """Bring all `runs` to their end; each comes when it is there, with the reason where it failed.

        Raises:
            InputError: when none can be carried out.
            Interrupted: by SIGINT or SIGTERM, once what runs is stopped.
        """
        ...


class Local:
    """This process, one run after another."""

    def carry_out(self, runs: Sequence[StudyRun], console: Console) -> Iterator[tuple[StudyRun, InputError | None]]:
        for run in runs:
            console.rule(f"{run.place}: {run.name}")
            try:
                run.carry_out(console)
            except InputError as error:
                yield run, error
            else:
                yield run, None


LOCAL = Local()


@contextmanager
def _computing_on(cores: int) -> Iterator[None]:
    """Inside, this process finds so many cores and no more, in the variable that also Ray sets for its tasks.

    Raises:
        InputError: when it may not use so many.
    """
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(cores)
    try:
        if (usable := hardware.usable_cores()) < cores:
            raise InputError(
                f"the study's runs compute on {cores} cores, and this machine lets them use {usable}; go on where "
                "there are so many"
            )
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
