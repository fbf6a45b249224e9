"""kill -9 at any instant: the run goes on to the same bits."""

import itertools
import random
import shutil
from collections.abc import Callable
from typing import Any

import pytest
from planted import Fault
from small_runs import PATIENCE, SMALL, Place, Reference, bits, two_at_a_time


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.long), 2])
def test_a_run_killed_at_a_random_instant_goes_on_to_the_same_bits(
    reference: Reference,
    new_place: Callable[[object], Place],
    whole: bool,
    figures: dict[str, Any],
    workers: int,
) -> None:
    def killed(number: int) -> Place:
        for attempt in itertools.count():
            place = new_place(f"{number}-{attempt}")
            instant = random.Random(f"{workers} {number} {attempt}").uniform(0, reference.seconds)
            ended = place.start(*SMALL, "--workers", str(workers)).end(kill_after=instant)
            if ended.code != 0:  # else it was faster than the kill
                break
        assert ended.code == -9, ended.said
        return place

    def kill(number: int) -> dict[str, bool]:
        place = killed(number)
        run = place.run
        told = {"before anything was saved": run is None or not (run.saved or run.complete)}
        if not (run and run.complete):
            resumed = place.onecycle(*place.resume)
            assert resumed.code == 0, resumed.said
            told["resumed within an epoch"] = ", step " in resumed.said
        told["bit-identical"] = bits(place) == reference.bits
        shutil.rmtree(place.path)
        return told

    kills = two_at_a_time(kill, range(50 if whole else 1))
    kinds = ("bit-identical", "before anything was saved", "resumed within an epoch")
    counted = {kind: sum(told.get(kind, False) for told in kills) for kind in kinds}
    figures[f"kills at random instants, {workers} workers"] = {"kills": len(kills), **counted}
    assert counted["bit-identical"] == len(kills)


@pytest.mark.long
def test_a_run_killed_again_and_again_goes_on_to_the_same_bits(
    reference: Reference, place: Place, whole: bool, figures: dict[str, Any]
) -> None:
    kills = 10 if whole else 2
    for _ in range(kills):
        # In its second step each time, when the first is saved.
        ended = place.onecycle(
            *place.resume, faults=[Fault("onecycle.run.autosave.RunState.after_step", "kill", 2)], save_seconds=0
        )
        assert ended.code == -9
    assert place.onecycle(*place.resume).code == 0
    assert bits(place) == reference.bits
    figures["kills in one run, one after another"] = {"kills": kills, "bit-identical": True}


@pytest.mark.long
def test_a_run_of_the_specified_network_killed_within_an_epoch_goes_on_to_the_same_bits(
    reference: Reference, new_place: Callable[[object], Place]
) -> None:
    """With Adam, whose moments are laid out in memory like the filters."""
    whole, place = new_place("whole"), new_place("killed")
    baseline = ["train", "--data", "digits", "--limit", "40", "--epochs", "2", "--batch-size", "8", "--out", "runs"]
    rates = ["--lr-min", "1e-5", "--lr-max", "2e-3"]
    assert whole.onecycle(*baseline, *rates).code == 0
    killed = place.onecycle(
        *baseline, *rates, faults=[Fault("onecycle.run.autosave.RunState.after_step", "kill", 4)], save_seconds=0
    )
    assert killed.code == -9
    assert place.onecycle(*place.resume).code == 0
    assert bits(place) == bits(whole)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(("os.replace", "kill"), id="renaming", marks=pytest.mark.long),
        pytest.param(("os.fsync", "tear"), id="flushing"),
    ],
)
def test_a_run_killed_inside_any_write_goes_on_to_the_same_bits(
    reference: Reference,
    new_place: Callable[[object], Place],
    whole: bool,
    figures: dict[str, Any],
    fault: tuple[str, str],
) -> None:
    def kill(call: int) -> bool:
        place = new_place(call)
        assert place.onecycle(*SMALL, faults=[Fault(*fault, call)], save_seconds=PATIENCE).code == -9
        if not (place.run and place.run.complete):  # as after its last write
            assert place.onecycle(*place.resume).code == 0
        identical = bits(place) == reference.bits
        shutil.rmtree(place.path)
        return identical

    writes = range(1, reference.place.calls(fault[0]) + 1)
    identical = two_at_a_time(kill, writes if whole else random.Random(0).sample(writes, 1))
    figures[f"kills at each {fault[0]} of a run"] = {"kills": len(identical), "bit-identical": sum(identical)}
    assert all(identical)
