"""Real run folders, with every file that onecycle writes."""

import os
import signal
from pathlib import Path
from typing import NamedTuple

import pytest
from networks import NARROW

from onecycle.cli import main
from onecycle.run.autosave import RunState
from onecycle.train.loop import StepReport

_SMALL = [*NARROW, "--data", "digits", "--limit", "40", "--epochs", "2", "--batch-size", "20", "--workers", "0"]
_SMALL += ["--lr-min", "1e-4"]  # the LR finder finds the other one, so that there is a curve


class Folders(NamedTuple):
    """The folders of a study, of its complete run, and of a stopped run."""

    study: Path
    complete: Path
    stopped: Path


def train(folder: Path) -> None:
    """Train the runs, in `folder`."""
    assert main(["study", *_SMALL, "--seeds", "1", "--out", str(folder / "studies")]) == 0
    after_step = RunState.after_step

    def stop_in_second_epoch(state: RunState, report: StepReport) -> None:
        if report.epoch == 2:
            os.kill(os.getpid(), signal.SIGINT)
        after_step(state, report)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunState, "after_step", stop_in_second_epoch)
        assert main(["train", *_SMALL, "--out", str(folder / "stopped")]) == 128 + signal.SIGINT
