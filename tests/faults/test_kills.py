"""After kill -9 at any instant, a run resumes to bit-identical results."""

import itertools
import random
import shutil
from collections.abc import Callable
from typing import Any

import pytest
from planted import Fault
from small_runs import PATIENCE, SMALL, Reference, Workspace, bits, two_at_a_time


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.long), 2])
def test_a_run_killed_at_a_random_instant_resumes_to_the_same_bits(
    reference: Reference,
    new_workspace: Callable[[object], Workspace],
    whole: bool,
    figures: dict[str, Any],
    workers: int,
) -> None:
    def killed(number: int) -> Workspace:
        for attempt in itertools.count():
            workspace = new_workspace(f"{number}-{attempt}")
            instant = random.Random(f"{workers} {number} {attempt}").uniform(0, reference.seconds)
            ended = workspace.start(*SMALL, "--workers", str(workers)).end(kill_after=instant)
            if ended.code != 0:  # the kill came before the end of the run
                break
        assert ended.code == -9, ended.output
        return workspace

    def kill(number: int) -> dict[str, bool]:
        workspace = killed(number)
        run = workspace.run
        found = {"before anything was saved": run is None or not (run.has_checkpoint or run.is_complete)}
        if not (run and run.is_complete):
            resumed = workspace.onecycle(*workspace.resume)
            assert resumed.code == 0, resumed.output
            found["resumed within an epoch"] = ", step " in resumed.output
        found["bit-identical"] = bits(workspace) == reference.bits
        shutil.rmtree(workspace.path)
        return found

    kills = two_at_a_time(kill, range(50 if whole else 1))
    kinds = ("bit-identical", "before anything was saved", "resumed within an epoch")
    counted = {kind: sum(found.get(kind, False) for found in kills) for kind in kinds}
    figures[f"kills at random instants, {workers} workers"] = {"kills": len(kills), **counted}
    assert counted["bit-identical"] == len(kills)


@pytest.mark.long
def test_a_run_killed_again_and_again_resumes_to_the_same_bits(
    reference: Reference, workspace: Workspace, whole: bool, figures: dict[str, Any]
) -> None:
    kills = 10 if whole else 2
    for _ in range(kills):
        # Kill the run in the second step after each resume, when the first step is already saved.
        ended = workspace.onecycle(
            *workspace.resume, faults=[Fault("onecycle.run.autosave.RunState.after_step", "kill", 2)], save_seconds=0
        )
        assert ended.code == -9
    assert workspace.onecycle(*workspace.resume).code == 0
    assert bits(workspace) == reference.bits
    figures["kills in one run, one after another"] = {"kills": kills, "bit-identical": True}


@pytest.mark.long
def test_a_run_of_the_specified_network_killed_within_an_epoch_resumes_to_the_same_bits(
    reference: Reference, new_workspace: Callable[[object], Workspace]
) -> None:
    """Adam trains this network. A resume must also restore the memory layout of Adam's moments."""
    whole, workspace = new_workspace("whole"), new_workspace("killed")
    baseline = ["train", "--data", "digits", "--limit", "40", "--epochs", "2", "--batch-size", "8", "--out", "runs"]
    rates = ["--lr-min", "1e-5", "--lr-max", "2e-3"]
    assert whole.onecycle(*baseline, *rates).code == 0
    killed = workspace.onecycle(
        *baseline, *rates, faults=[Fault("onecycle.run.autosave.RunState.after_step", "kill", 4)], save_seconds=0
    )
    assert killed.code == -9
    assert workspace.onecycle(*workspace.resume).code == 0
    assert bits(workspace) == bits(whole)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(("os.replace", "kill"), id="renaming", marks=pytest.mark.long),
        pytest.param(("os.fsync", "tear"), id="flushing"),
    ],
)
def test_a_run_killed_during_any_write_resumes_to_the_same_bits(
    reference: Reference,
    new_workspace: Callable[[object], Workspace],
    whole: bool,
    figures: dict[str, Any],
    fault: tuple[str, str],
) -> None:
    def kill(call: int) -> bool:
        workspace = new_workspace(call)
        assert workspace.onecycle(*SMALL, faults=[Fault(*fault, call)], save_seconds=PATIENCE).code == -9
        if not (workspace.run and workspace.run.is_complete):  # a kill at the last write may leave a complete run
            assert workspace.onecycle(*workspace.resume).code == 0
        identical = bits(workspace) == reference.bits
        shutil.rmtree(workspace.path)
        return identical

    writes = range(1, reference.workspace.calls(fault[0]) + 1)
    identical = two_at_a_time(kill, writes if whole else random.Random(0).sample(writes, 1))
    figures[f"kills at each {fault[0]} of a run"] = {"kills": len(identical), "bit-identical": sum(identical)}
    assert all(identical)
