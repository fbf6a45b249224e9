"""Stop or kill runs with several processes. Resume them with fewer or more processes, or on other machines."""

import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import NETWORK, Command, run_in, small, start, train
from studies import bits

OPTIONS = [*NETWORK, *small(epochs=6)]
FIRST_EPOCH = " 1/6 "


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return bits(train(tmp_path_factory.mktemp("undisturbed"), *OPTIONS))


@pytest.fixture
def endpoint() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def started() -> Iterator[list[Command]]:
    """A list for the commands that a test starts. Commands that still run after the test are killed."""
    commands: list[Command] = []
    yield commands
    for command in commands:
        if command.process.poll() is None:
            command.kill()


@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_all_processes_after_the_same_step_and_fewer_resume(
    tmp_path: Path, undisturbed: dict[str, Any], number: int, code: int
) -> None:
    command = start(tmp_path, "onecycle", "train", *OPTIONS, "--processes", "2")
    command.wait_for_output(FIRST_EPOCH)
    if number == signal.SIGINT:  # Ctrl-C in a terminal sends SIGINT to all processes
        os.killpg(command.process.pid, number)
    else:
        command.process.terminate()
    assert command.end() == code, command.output
    last = command.output.splitlines()[-1]
    assert last.startswith("onecycle: interrupted; `onecycle train --resume runs/"), command.output
    run = run_in(tmp_path)
    resumed = train(tmp_path, "--resume", str(run.path.relative_to(tmp_path)))
    assert bits(resumed) == undisturbed


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_the_error_names_a_killed_process_and_more_processes_resume(
    tmp_path: Path, undisturbed: dict[str, Any], rank: int
) -> None:
    command = start(tmp_path, "onecycle", "train", *OPTIONS, "--processes", "2")
    command.wait_for_output(FIRST_EPOCH)
    os.kill(command.ranks()[rank], signal.SIGKILL)
    assert command.end() == 2
    assert f"rank {rank} (process" in command.output.splitlines()[-1], command.output
    run = run_in(tmp_path).path.relative_to(tmp_path)
    if rank == 1:  # rank 0, the main process, is still alive and reports the run folder
        assert f"`onecycle train --resume {run}` continues the run from there" in command.output, command.output
    resumed = train(tmp_path, "--resume", str(run), "--processes", "4")
    assert bits(resumed) == undisturbed


@pytest.mark.long
def test_torchrun_restarts_a_killed_process_and_the_run_resumes(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2"]
    command = start(tmp_path, *torchrun, "-m", "onecycle", "train", *OPTIONS)
    command.wait_for_output(FIRST_EPOCH)
    os.kill(command.ranks()[1], signal.SIGKILL)
    assert command.end() == 0, command.output
    assert "Resuming runs/" in command.output
    assert bits(run_in(tmp_path)) == undisturbed


def machine(folder: Path, endpoint: str, least: int, *options: str, restarts: int = 3) -> Command:
    """Start training on one of two machines. The machines share no disk: each has its own working folder."""
    size = ["--nnodes", f"{least}:2", "--nproc-per-node", "1", "--max-restarts", str(restarts)]
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", "job"]
    # Both machines have the same address, so torchrun cannot tell which machine hosts the rendezvous.
    is_host = str(folder.name == "first").lower()
    timeouts = ["--rdzv-conf", f"last_call_timeout=1,join_timeout=60,is_host={is_host}"]
    return start(folder, "torch.distributed.run", *size, *rendezvous, *timeouts, "-m", "onecycle", "train", *options)


@pytest.mark.long
def test_when_a_machine_fails_the_other_resumes_alone(
    tmp_path: Path, undisturbed: dict[str, Any], endpoint: str, started: list[Command]
) -> None:
    first = machine(tmp_path / "first", endpoint, 1, *OPTIONS)
    started.append(first)
    second = machine(tmp_path / "second", endpoint, 1, *OPTIONS)
    started.append(second)
    first.wait_for_output(FIRST_EPOCH)
    second.kill()  # the first machine must survive: it hosts the rendezvous and has the checkpoint
    assert first.end() == 0, first.output
    assert "Resuming runs/" in first.output
    assert bits(run_in(tmp_path / "first")) == undisturbed


@pytest.mark.long
def test_machines_without_a_shared_disk_resume_from_the_one_with_the_run_folder(
    tmp_path: Path, undisturbed: dict[str, Any], endpoint: str, started: list[Command]
) -> None:
    first_start = start(tmp_path / "second", "onecycle", "train", *OPTIONS)
    first_start.wait_for_output(FIRST_EPOCH)
    first_start.process.terminate()
    assert first_start.end() == 143
    run = run_in(tmp_path / "second").path.relative_to(tmp_path / "second")
    started += [machine(tmp_path / name, endpoint, 2, "--resume", str(run)) for name in ("first", "second")]
    for command in started:
        assert command.end() == 0, command.output
    assert bits(run_in(tmp_path / "second")) == undisturbed
    assert not (tmp_path / "first" / "runs").exists(), "only the main process writes"


@pytest.mark.long
def test_a_run_folder_that_no_machine_has_is_an_error_of_one_line(
    tmp_path: Path, endpoint: str, started: list[Command]
) -> None:
    options = ["--resume", "runs/none"]
    started += [machine(tmp_path / name, endpoint, 2, *options, restarts=0) for name in ("first", "second")]
    for command in started:
        assert command.end() != 0
    errors = [line for command in started for line in command.output.splitlines() if line.startswith("onecycle: ")]
    message = "onecycle: there is no run folder runs/none on any of the machines; check the name"
    assert set(errors) == {message}, started[0].output


@pytest.mark.long
def test_a_run_resumes_only_with_the_same_data(tmp_path: Path) -> None:
    command = start(tmp_path, "onecycle", "train", *OPTIONS, "--processes", "2")
    command.wait_for_output(FIRST_EPOCH)
    command.process.terminate()
    assert command.end() == 143
    run = str(run_in(tmp_path).path.relative_to(tmp_path))
    resumed = start(tmp_path, "onecycle", "train", "--resume", run, "--limit", "80", "--processes", "2")
    assert resumed.end() == 2
    assert "limit was 90 and is 80" in resumed.output.splitlines()[-1]
    shutil.rmtree(tmp_path / "runs")
