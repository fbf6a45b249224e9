"""Faults in one of two processes that compute a run: both end, one says how to go on, and nothing is lost."""

import socket
import time
from pathlib import Path
from typing import Any

import pytest
from planted import HANGS, Fault
from shared import made_once
from small_runs import PATIENCE, REPORTED, SOON, Ended, Place, Started, bits

from onecycle.distributed.ranks import SAVING_SECONDS

SHARDED = [*REPORTED, "--shards", "2"]
LEADER, OTHER = 0, 1
# Where, in which of them, and for the how many-th time there.
STOPS = {
    "the first step": (OTHER, "onecycle.run.autosave.RunState.after_step", 1),
    "the leader's evaluation": (LEADER, "onecycle.models.ModelComposite.evaluation_step", 2),
    "the end of the last epoch": (OTHER, "onecycle.run.autosave.RunState.after_epoch", 3),
}
SAMPLE = "the leader's evaluation"
DISKS = {"the run's first file": (LEADER, 1), "a checkpoint": (LEADER, 12), "the other's own copy": (OTHER, 1)}


@pytest.fixture(scope="module")
def undisturbed(for_all_workers: Path) -> dict[str, Any]:
    def make(folder: Path) -> None:
        assert Place(folder).onecycle(*SHARDED, save_seconds=PATIENCE).code == 0

    return bits(Place(made_once(for_all_workers / "sharded", make)))


def start_both(place: Place, rank: int, fault: Fault, *, save_seconds: float = PATIENCE) -> tuple[Started, Started]:
    """Two processes that compute one run in `place`, with a fault in that of `rank`: the leader, the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo", "WORLD_SIZE": "2"}
    arguments = [str(place.path / "runs") if argument == "runs" else argument for argument in SHARDED]
    started = []
    for number in (LEADER, OTHER):
        own = Place(place.path / f"rank-{number}")
        own.path.mkdir()
        faults = [fault] if number == rank else []
        environment = {**address, "RANK": str(number)}
        started.append(own.start(*arguments, faults=faults, save_seconds=save_seconds, environment=environment))
    leader, other = started
    return leader, other


def end_of_both(place: Place, rank: int, fault: Fault, *, save_seconds: float = PATIENCE) -> tuple[Ended, Ended]:
    """How they end."""
    leader, other = start_both(place, rank, fault, save_seconds=save_seconds)
    return leader.end(), other.end()


def require_undisturbed_after_going_on(place: Place, undisturbed: dict[str, Any]) -> None:
    resumed = place.onecycle(*(place.resume if place.run else SHARDED))
    assert resumed.code == 0, resumed.said
    assert bits(place) == undisturbed


@pytest.mark.parametrize(
    "phase", [SAMPLE, *(pytest.param(phase, marks=pytest.mark.long) for phase in STOPS if phase != SAMPLE)]
)
def test_one_of_two_told_to_stop_stops_both_and_one_goes_on(
    undisturbed: dict[str, Any], place: Place, phase: str
) -> None:
    rank, at, call = STOPS[phase]
    leader, other = end_of_both(place, rank, Fault(at, "SIGTERM", call))
    assert (leader.code, other.code, other.said) == (143, 143, "")
    assert leader.last_line.startswith("onecycle: interrupted; `onecycle train --resume ")
    require_undisturbed_after_going_on(place, undisturbed)


@pytest.mark.long
@pytest.mark.parametrize(("what", "codes"), [("SIGTERM", (143, 2)), ("ENOSPC", (2, 2))])
def test_a_leader_that_ends_after_the_last_epoch_ends_both_and_one_goes_on(
    undisturbed: dict[str, Any], place: Place, what: str, codes: tuple[int, int]
) -> None:
    leader, other = end_of_both(place, LEADER, Fault("onecycle.run.results.write", what))
    assert (leader.code, other.code, other.said) == (*codes, "")
    require_undisturbed_after_going_on(place, undisturbed)


def test_a_leader_whose_disk_hangs_is_named_by_the_other_and_one_goes_on(
    undisturbed: dict[str, Any], place: Place
) -> None:
    _, at = DISKS["a checkpoint"]
    leader, other = start_both(place, LEADER, Fault("os.fsync", "hang", at), save_seconds=SOON)
    ended = other.end()
    seconds = time.time() - (leader.folder / HANGS).stat().st_mtime
    leader.end(kill_after=0)
    assert ended.code == 2
    assert ended.last_line.startswith("onecycle: rank 0 (")
    assert "has done nothing for 4 s; look at what it waits for: its data or its disk" in ended.last_line
    assert seconds < SAVING_SECONDS, "it does not wait for what the other would say"
    require_undisturbed_after_going_on(place, undisturbed)


@pytest.mark.long
@pytest.mark.parametrize("full", DISKS)
def test_a_disk_that_takes_no_more_ends_both_and_one_goes_on(
    undisturbed: dict[str, Any], place: Place, full: str
) -> None:
    rank, call = DISKS[full]
    leader, other = end_of_both(place, rank, Fault("os.fsync", "ENOSPC", call), save_seconds=SOON)
    assert (leader.code, other.code, other.said) == (2, 2, "")
    assert leader.last_line.startswith("onecycle: rank 1 " if rank == OTHER else f"onecycle: {place.path}/runs/")
    assert "cannot be written (No space left on device); make room there" in leader.last_line
    require_undisturbed_after_going_on(place, undisturbed)
