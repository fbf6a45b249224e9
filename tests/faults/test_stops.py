"""SIGINT and SIGTERM in every phase, a second one, and two processes on one run."""

import itertools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from networks import FINDABLE
from planted import Fault
from small_runs import PATIENCE, REPORTED, SMALL, Place, Reference, bits

PHASES = {
    "reading the data": ("onecycle.run.build.load_data", 1),
    "beginning the folder": ("onecycle.run.setup._describe", 1),
    "the first step": ("onecycle.run.autosave.RunState.after_step", 1),
    "a later step": ("onecycle.run.autosave.RunState.after_step", 8),
    "the last step of an epoch": ("onecycle.run.autosave.RunState.after_step", 5),
    "evaluation": ("onecycle.models.ModelComposite.evaluation_step", 2),
    "saving": ("onecycle.run.autosave.save_state", 1),
    "the end of an epoch": ("onecycle.run.autosave.RunState.after_epoch", 2),
    "writing the result": ("onecycle.run.results.write", 1),
    "drawing": ("onecycle.report.plots.draw", 1),
    "interpretation": ("onecycle.predict.explain.interpret", 1),
    "writing the report": ("onecycle.report.write", 1),
}
WITH_REPORT = ("the first step", "interpretation", "writing the report")
# The smallest run that finds its rates.
SMALLEST_WITH_FINDER = [*FINDABLE, "--epochs", "1", "--out", "runs"]
SAMPLE = [("a later step", "SIGTERM"), ("writing the report", "SIGINT")]
CODES = {"SIGINT": 130, "SIGTERM": 143}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Both signals in every phase; but for the whole suite only a few of these."""
    if "phase" in metafunc.fixturenames:
        whole = metafunc.config.getoption("--whole", default=False)
        metafunc.parametrize(("phase", "name"), itertools.product(PHASES, CODES) if whole else SAMPLE)


def test_a_run_told_to_stop_says_how_to_go_on_and_does(
    reference: Reference, place: Place, figures: dict[str, Any], phase: str, name: str
) -> None:
    at, call = PHASES[phase]
    command = REPORTED if phase in WITH_REPORT else SMALL
    stopped = place.onecycle(*command, faults=[Fault(at, name, call)], save_seconds=PATIENCE)
    assert stopped.code == CODES[name], stopped.said
    assert stopped.last_line.startswith("onecycle: interrupted")
    if place.run:
        assert stopped.last_line == f"onecycle: interrupted; `onecycle {' '.join(place.resume)}` goes on"
        assert place.run.report.exists() == (command is REPORTED), "it says how far the run got"
    resumed = place.onecycle(*place.resume)
    assert resumed.code == 0, resumed.said
    if "step" in phase:
        assert f"Resuming {place.resume[-1]} after epoch {call // 6}, step {call - 1}\n" in resumed.said, "none is lost"
    assert bits(place) == reference.bits
    assert place.run and not place.run.stopped.exists()
    stops = figures.setdefault("stops by a signal, in all phases", {"stops": 0, "resumed bit-identical": 0})
    stops["stops"] += 1
    stops["resumed bit-identical"] += 1


@pytest.mark.long
def test_the_lr_finder_told_to_stop_sweeps_again(reference: Reference, new_place: Callable[[object], Place]) -> None:
    whole, place = new_place("whole"), new_place("stopped")
    found = ["train", *SMALLEST_WITH_FINDER]
    assert whole.onecycle(*found).code == 0
    stopped = place.onecycle(*found, faults=[Fault("onecycle.run.progress.RunProgress.sweep_step", "SIGTERM", 20)])
    goes_on = f"onecycle: interrupted; `onecycle {' '.join(place.resume)}` goes on"
    assert (stopped.code, stopped.last_line) == (143, goes_on)
    assert place.onecycle(*place.resume).code == 0
    assert bits(place) == bits(whole)


def test_workers_told_to_stop_with_the_run_let_it_end_its_step(reference: Reference, place: Place) -> None:
    """As a terminal and a batch system do: the signal goes to all processes of the run."""
    everyone = Fault("onecycle.run.autosave.RunState.after_step", "SIGTERM to all", 3)
    stopped = place.onecycle(*SMALL, "--workers", "2", faults=[everyone], save_seconds=PATIENCE)
    assert stopped.code == 143, stopped.said
    assert place.onecycle(*place.resume).code == 0
    assert bits(place) == reference.bits


@pytest.mark.long
def test_a_second_signal_ends_the_process_at_once(reference: Reference, place: Place) -> None:
    # The second comes as the first makes it save, before anything of that is written.
    first = Fault("onecycle.run.autosave.RunState.after_step", "SIGINT", 7)
    twice = [first, Fault("onecycle.run.autosave.save_state", "SIGTERM", 8)]
    noted = place.onecycle(*SMALL, faults=twice, save_seconds=0)
    assert noted.code == 143
    assert "interrupted" not in noted.said, "it had no time to say anything"
    assert place.onecycle(*place.resume).code == 0
    assert bits(place) == reference.bits


def test_two_processes_cannot_work_on_one_run(reference: Reference, place: Place) -> None:
    waiting = place.start(*SMALL, faults=[Fault("onecycle.run.autosave.RunState.after_epoch", "SIGSTOP")])
    wait_until(lambda: bool(place.run and place.run.history.exists()) or stopped(waiting.process.pid))
    second = place.onecycle(*place.resume)
    assert second.code == 2
    assert f"is in use by process {waiting.process.pid}; wait for it" in second.last_line
    os.kill(waiting.process.pid or 0, signal.SIGCONT)
    assert waiting.end().code == 0
    assert bits(place) == reference.bits


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.perf_counter() + PATIENCE
    while not holds():
        assert time.perf_counter() < deadline
        time.sleep(0.02)


def stopped(pid: int | None) -> bool:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().split()[2] == "T"


@pytest.mark.long
def test_a_dead_process_holds_no_run_though_its_workers_live_on(reference: Reference, place: Place) -> None:
    killed = place.start(
        *SMALL, "--workers", "2", faults=[Fault("onecycle.run.autosave.RunState.after_step", "kill", 8)]
    ).end()
    assert killed.code == -9
    resumed = place.onecycle(*place.resume)  # workers notice only after some seconds that their parent is dead
    assert resumed.code == 0, resumed.said
    assert bits(place) == reference.bits


def test_the_workers_of_a_killed_run_end_by_themselves(reference: Reference, place: Place) -> None:
    stop = Fault("onecycle.run.autosave.RunState.after_step", "SIGSTOP")
    waiting = place.start(*SMALL, "--workers", "2", faults=[stop])
    pid = waiting.process.pid
    wait_until(lambda: stopped(pid))
    workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(workers) == 2
    waiting.process.kill()
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))


@pytest.mark.long
def test_a_study_told_to_stop_goes_on(reference: Reference, new_place: Callable[[object], Place]) -> None:
    whole, place = new_place("whole"), new_place("stopped")
    study = ["study", *SMALL[1:], "--seeds", "2"]
    assert whole.onecycle(*study).code == 0
    stopped = place.onecycle(*study, faults=[Fault("onecycle.run.autosave.RunState.after_step", "SIGTERM", 20)])
    (folder,) = (place.path / "runs").iterdir()
    goes_on = ["study", "--resume", str(folder.relative_to(place.path))]
    assert (stopped.code, stopped.last_line) == (143, f"onecycle: interrupted; `onecycle {' '.join(goes_on)}` goes on")
    assert place.onecycle(*goes_on).code == 0
    weights = [sorted(p.path.glob("runs/*/quick/*/weights.safetensors")) for p in (whole, place)]
    assert [path.read_bytes() for path in weights[0]] == [path.read_bytes() for path in weights[1]]
    assert len(weights[0]) == 2
