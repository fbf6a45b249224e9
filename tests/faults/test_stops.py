"""Tests of SIGINT and SIGTERM in every phase of a run, of a second signal, and of two processes that use one run."""

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
from small_runs import PATIENCE, REPORTED, SMALL, Reference, Workspace, bits

PHASES = {
    "reading the data": ("onecycle.run.build.load_data", 1),
    "creating the folder": ("onecycle.run.setup._describe", 1),
    "the first step": ("onecycle.run.autosave.RunState.after_step", 1),
    "a later step": ("onecycle.run.autosave.RunState.after_step", 8),
    "the last step of an epoch": ("onecycle.run.autosave.RunState.after_step", 5),
    "evaluation": ("onecycle.models.ModelComposite.evaluation_step", 2),
    "saving": ("onecycle.run.autosave.save_checkpoint", 1),
    "the end of an epoch": ("onecycle.run.autosave.RunState.after_epoch", 2),
    "writing the result": ("onecycle.run.results.write", 1),
    "drawing": ("onecycle.report.plots.draw", 1),
    "interpretation": ("onecycle.predict.explain.interpret", 1),
    "writing the report": ("onecycle.report.write", 1),
}
WITH_REPORT = ("the first step", "interpretation", "writing the report")
# The shortest run that starts with the LR finder.
SMALLEST_WITH_FINDER = [*FINDABLE, "--epochs", "1", "--out", "runs"]
SAMPLE = [("a later step", "SIGTERM"), ("writing the report", "SIGINT")]
CODES = {"SIGINT": 130, "SIGTERM": 143}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """With --whole, test both signals in every phase. Otherwise test only the cases in `SAMPLE`."""
    if "phase" in metafunc.fixturenames:
        whole = metafunc.config.getoption("--whole", default=False)
        metafunc.parametrize(("phase", "name"), list(itertools.product(PHASES, CODES)) if whole else SAMPLE)


def test_a_run_that_a_signal_stops_says_how_to_resume_and_resumes_to_the_same_bits(
    reference: Reference, workspace: Workspace, figures: dict[str, Any], phase: str, name: str
) -> None:
    at, call = PHASES[phase]
    command = REPORTED if phase in WITH_REPORT else SMALL
    stopped = workspace.onecycle(*command, faults=[Fault(at, name, call)], save_seconds=PATIENCE)
    assert stopped.code == CODES[name], stopped.output
    assert stopped.last_line.startswith("onecycle: interrupted")
    if workspace.run:
        assert stopped.last_line == f"onecycle: interrupted; `onecycle {' '.join(workspace.resume)}` continues the run"
        assert workspace.run.report.exists() == (command is REPORTED), "the report shows how far the run got"
    resumed = workspace.onecycle(*workspace.resume)
    assert resumed.code == 0, resumed.output
    if "step" in phase:
        resuming = f"Resuming {workspace.resume[-1]} after epoch {call // 6}, step {call - 1}\n"
        assert resuming in resumed.output, "no step is lost"
    assert bits(workspace) == reference.bits
    assert workspace.run and not workspace.run.stopped.exists()
    stops = figures.setdefault("stops by a signal, in all phases", {"stops": 0, "resumed bit-identical": 0})
    stops["stops"] += 1
    stops["resumed bit-identical"] += 1


@pytest.mark.long
def test_the_lr_finder_that_a_signal_stops_sweeps_again(
    reference: Reference, new_workspace: Callable[[object], Workspace]
) -> None:
    whole, workspace = new_workspace("whole"), new_workspace("stopped")
    found = ["train", *SMALLEST_WITH_FINDER]
    assert whole.onecycle(*found).code == 0
    stopped = workspace.onecycle(*found, faults=[Fault("onecycle.run.progress.RunProgress.sweep_step", "SIGTERM", 20)])
    message = f"onecycle: interrupted; `onecycle {' '.join(workspace.resume)}` continues the run"
    assert (stopped.code, stopped.last_line) == (143, message)
    assert workspace.onecycle(*workspace.resume).code == 0
    assert bits(workspace) == bits(whole)


def test_workers_that_get_the_signal_first_let_the_run_finish_its_step(
    reference: Reference, workspace: Workspace
) -> None:
    """Terminals and batch systems send a signal to all processes of a run, so a worker may get it first."""
    fault = Fault("onecycle.run.autosave.RunState.after_step", "SIGTERM to all", 3)
    stopped = workspace.onecycle(*SMALL, "--workers", "2", faults=[fault], save_seconds=PATIENCE)
    assert stopped.code == 143, stopped.output
    assert workspace.onecycle(*workspace.resume).code == 0
    assert bits(workspace) == reference.bits


@pytest.mark.long
def test_a_second_signal_ends_the_process_at_once(reference: Reference, workspace: Workspace) -> None:
    # The first signal makes the run save. The second signal arrives before the checkpoint is written.
    first = Fault("onecycle.run.autosave.RunState.after_step", "SIGINT", 7)
    twice = [first, Fault("onecycle.run.autosave.save_checkpoint", "SIGTERM", 8)]
    stopped = workspace.onecycle(*SMALL, faults=twice, save_seconds=0)
    assert stopped.code == 143
    assert "interrupted" not in stopped.output, "it ends before it can print anything"
    assert workspace.onecycle(*workspace.resume).code == 0
    assert bits(workspace) == reference.bits


def test_two_processes_cannot_work_on_the_same_run(reference: Reference, workspace: Workspace) -> None:
    waiting = workspace.start(*SMALL, faults=[Fault("onecycle.run.autosave.RunState.after_epoch", "SIGSTOP")])
    wait_until(lambda: bool(workspace.run and workspace.run.history.exists()) or is_stopped(waiting.process.pid))
    second = workspace.onecycle(*workspace.resume)
    assert second.code == 2
    assert f"process {waiting.process.pid} is using {workspace.resume[-1]}; wait for it" in second.last_line
    os.kill(waiting.process.pid or 0, signal.SIGCONT)
    assert waiting.end().code == 0
    assert bits(workspace) == reference.bits


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.perf_counter() + PATIENCE
    while not holds():
        assert time.perf_counter() < deadline
        time.sleep(0.02)


def is_stopped(pid: int | None) -> bool:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().split()[2] == "T"


@pytest.mark.long
def test_a_dead_process_holds_no_lock_although_its_workers_live_on(reference: Reference, workspace: Workspace) -> None:
    killed = workspace.start(
        *SMALL, "--workers", "2", faults=[Fault("onecycle.run.autosave.RunState.after_step", "kill", 8)]
    ).end()
    assert killed.code == -9
    resumed = workspace.onecycle(*workspace.resume)  # the workers of the killed process run for seconds more
    assert resumed.code == 0, resumed.output
    assert bits(workspace) == reference.bits


def test_the_workers_of_a_killed_run_end_by_themselves(reference: Reference, workspace: Workspace) -> None:
    stop = Fault("onecycle.run.autosave.RunState.after_step", "SIGSTOP")
    waiting = workspace.start(*SMALL, "--workers", "2", faults=[stop])
    pid = waiting.process.pid
    wait_until(lambda: is_stopped(pid))
    workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(workers) == 2
    waiting.process.kill()
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))


def test_a_run_whose_worker_was_killed_ends_with_one_line_and_resumes(
    reference: Reference, workspace: Workspace
) -> None:
    """As the kernel does when the memory is full."""
    stop = Fault("onecycle.run.autosave.RunState.after_step", "SIGSTOP", 8)
    waiting = workspace.start(*SMALL, "--workers", "2", faults=[stop])
    pid = waiting.process.pid or 0
    wait_until(lambda: is_stopped(pid))
    worker, _ = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(int(worker), signal.SIGKILL)
    os.kill(pid, signal.SIGCONT)
    ended = waiting.end()
    assert ended.code == 2
    assert "onecycle: a worker process that augments images was killed by SIGKILL; " in ended.last_line
    assert f"The last checkpoint is intact: `onecycle {' '.join(workspace.resume)}` continues" in ended.last_line
    assert workspace.onecycle(*workspace.resume).code == 0
    assert bits(workspace) == reference.bits


@pytest.mark.long
def test_a_study_that_a_signal_stops_resumes_to_the_same_bits(
    reference: Reference, new_workspace: Callable[[object], Workspace]
) -> None:
    whole, workspace = new_workspace("whole"), new_workspace("stopped")
    study = ["study", *SMALL[1:], "--seeds", "2"]
    assert whole.onecycle(*study).code == 0
    stopped = workspace.onecycle(*study, faults=[Fault("onecycle.run.autosave.RunState.after_step", "SIGTERM", 20)])
    (folder,) = (workspace.path / "runs").iterdir()
    resume = ["study", "--resume", str(folder.relative_to(workspace.path))]
    assert (stopped.code, stopped.last_line) == (
        143,
        f"onecycle: interrupted; `onecycle {' '.join(resume)}` continues the study",
    )
    assert workspace.onecycle(*resume).code == 0
    weights = [sorted(p.path.glob("runs/*/quick/*/weights.safetensors")) for p in (whole, workspace)]
    assert [path.read_bytes() for path in weights[0]] == [path.read_bytes() for path in weights[1]]
    assert len(weights[0]) == 2
