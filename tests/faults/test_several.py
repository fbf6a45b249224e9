"""A fault in one of two processes ends both, and the main process says how to resume.

The resumed run gives the same results as a run without a fault.
"""

import socket
import time
from pathlib import Path
from typing import Any

import pytest
from planted import HANGS, Fault
from shared import made_once
from small_runs import PATIENCE, REPORTED, SOON, Ended, Started, Workspace, bits

from onecycle.distributed.process_group import SAVING_SECONDS

SHARDED = [*REPORTED, "--shards", "2"]
MAIN, OTHER = 0, 1  # ranks
# For each case: the rank that gets the signal, and the function and the call number at which the signal arrives.
STOPS = {
    "the first step": (OTHER, "onecycle.run.autosave.RunState.after_step", 1),
    "the evaluation of the main process": (MAIN, "onecycle.models.ModelComposite.evaluation_step", 2),
    "the end of the last epoch": (OTHER, "onecycle.run.autosave.RunState.after_epoch", 3),
}
SAMPLE = "the evaluation of the main process"
DISKS = {"the first file": (MAIN, 1), "a checkpoint": (MAIN, 12), "the copy of the other process": (OTHER, 1)}


@pytest.fixture(scope="module")
def undisturbed(for_all_workers: Path) -> dict[str, Any]:
    def make(folder: Path) -> None:
        assert Workspace(folder).onecycle(*SHARDED, save_seconds=PATIENCE).code == 0

    return bits(Workspace(made_once(for_all_workers / "sharded", make)))


def start_both(
    workspace: Workspace, rank: int, fault: Fault, *, save_seconds: float = PATIENCE
) -> tuple[Started, Started]:
    """Start two processes of one run in `workspace`, with `fault` in rank `rank`. Returns rank 0, then rank 1."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo", "WORLD_SIZE": "2"}
    arguments = [str(workspace.path / "runs") if argument == "runs" else argument for argument in SHARDED]
    started = []
    for number in (MAIN, OTHER):
        own = Workspace(workspace.path / f"rank-{number}")
        own.path.mkdir()
        faults = [fault] if number == rank else []
        environment = {**address, "RANK": str(number)}
        started.append(own.start(*arguments, faults=faults, save_seconds=save_seconds, environment=environment))
    main, other = started
    return main, other


def run_both(workspace: Workspace, rank: int, fault: Fault, *, save_seconds: float = PATIENCE) -> tuple[Ended, Ended]:
    """Start the two processes as `start_both` does, and wait until both end."""
    main, other = start_both(workspace, rank, fault, save_seconds=save_seconds)
    return main.end(), other.end()


def require_undisturbed_after_resume(workspace: Workspace, undisturbed: dict[str, Any]) -> None:
    resumed = workspace.onecycle(*(workspace.resume if workspace.run else SHARDED))
    assert resumed.code == 0, resumed.output
    assert bits(workspace) == undisturbed


@pytest.mark.parametrize(
    "phase", [SAMPLE, *(pytest.param(phase, marks=pytest.mark.long) for phase in STOPS if phase != SAMPLE)]
)
def test_a_signal_to_one_of_two_processes_stops_both_and_one_process_resumes(
    undisturbed: dict[str, Any], workspace: Workspace, phase: str
) -> None:
    rank, at, call = STOPS[phase]
    main, other = run_both(workspace, rank, Fault(at, "SIGTERM", call))
    assert (main.code, other.code, other.output) == (143, 143, "")
    assert workspace.run is not None
    assert main.last_line == f"onecycle: interrupted; `onecycle train --resume {workspace.run.path}` continues the run"
    require_undisturbed_after_resume(workspace, undisturbed)


@pytest.mark.long
@pytest.mark.parametrize(("what", "codes"), [("SIGTERM", (143, 2)), ("ENOSPC", (2, 2))])
def test_a_main_process_that_ends_after_the_last_epoch_ends_both_and_one_process_resumes(
    undisturbed: dict[str, Any], workspace: Workspace, what: str, codes: tuple[int, int]
) -> None:
    main, other = run_both(workspace, MAIN, Fault("onecycle.run.results.write", what))
    assert (main.code, other.code, other.output) == (*codes, "")
    require_undisturbed_after_resume(workspace, undisturbed)


def test_a_main_process_whose_disk_hangs_is_named_by_the_other_and_one_process_resumes(
    undisturbed: dict[str, Any], workspace: Workspace
) -> None:
    _, at = DISKS["a checkpoint"]
    main, other = start_both(workspace, MAIN, Fault("os.fsync", "hang", at), save_seconds=SOON)
    ended = other.end()
    seconds = time.time() - (main.folder / HANGS).stat().st_mtime
    main.end(kill_after=0)
    assert ended.code == 2
    assert ended.last_line.startswith("onecycle: rank 0 (")
    assert "has made no progress for 4 s; check its disk and its data" in ended.last_line
    assert seconds < SAVING_SECONDS, "rank 1 does not wait for a message of the main process"
    require_undisturbed_after_resume(workspace, undisturbed)


@pytest.mark.long
@pytest.mark.parametrize("full", DISKS)
def test_a_full_disk_of_one_process_ends_both_and_one_process_resumes(
    undisturbed: dict[str, Any], workspace: Workspace, full: str
) -> None:
    rank, call = DISKS[full]
    main, other = run_both(workspace, rank, Fault("os.fsync", "ENOSPC", call), save_seconds=SOON)
    assert (main.code, other.code, other.output) == (2, 2, "")
    assert main.last_line.startswith("onecycle: rank 1 " if rank == OTHER else f"onecycle: {workspace.path}/runs/")
    assert "cannot be written (No space left on device); make room there" in main.last_line
    require_undisturbed_after_resume(workspace, undisturbed)
