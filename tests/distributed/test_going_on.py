"""Runs of several processes that are stopped, killed and started again, on fewer or on other machines."""

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
    """What a test starts, and may leave to be ended."""
    commands: list[Command] = []
    yield commands
    for command in commands:
        if command.process.poll() is None:
            command.kill()


@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_all_processes_after_the_same_step_and_fewer_go_on(
    tmp_path: Path, undisturbed: dict[str, Any], number: int, code: int
) -> None:
    command = start(tmp_path, "onecycle", "train", *OPTIONS, "--processes", "2")
    command.wait_until_said(FIRST_EPOCH)
    if number == signal.SIGINT:  # as from a terminal, to all
        os.killpg(command.process.pid, number)
    else:
        command.process.terminate()
    assert command.end() == code, command.said
    last = command.said.splitlines()[-1]
    assert last.startswith("onecycle: interrupted; `onecycle train --resume runs/"), command.said
    run = run_in(tmp_path)
    resumed = train(tmp_path, "--resume", str(run.path.relative_to(tmp_path)))
    assert bits(resumed) == undisturbed


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_is_named_and_more_go_on(
    tmp_path: Path, undisturbed: dict[str, Any], rank: int
) -> None:
    command = start(tmp_path, "onecycle", "train", *OPTIONS, "--processes", "2")
    command.wait_until_said(FIRST_EPOCH)
    os.kill(command.ranks()[rank], signal.SIGKILL)
    assert command.end() == 2
    assert f"rank {rank} (process" in command.said.splitlines()[-1], command.said
    run = run_in(tmp_path).path.relative_to(tmp_path)
    if rank == 1:  # the one that leads lives, and knows
        assert f"`onecycle train --resume {run}` goes on from there" in command.said, command.said
    resumed = train(tmp_path, "--resume", str(run), "--processes", "4")
    assert bits(resumed) == undisturbed


@pytest.mark.long
def test_torchrun_starts_again_what_was_killed_and_the_run_goes_on(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2"]
    command = start(tmp_path, *torchrun, "-m", "onecycle", "train", *OPTIONS)
    command.wait_until_said(FIRST_EPOCH)
    os.kill(command.ranks()[1], signal.SIGKILL)
    assert command.end() == 0, command.said
    assert "Resuming runs/" in command.said
    assert bits(run_in(tmp_path)) == undisturbed


def machine(folder: Path, endpoint: str, least: int, *options: str, restarts: int = 3) -> Command:
    """One of two machines, which share no disk: each has its own working folder."""
    where = ["--nnodes", f"{least}:2", "--nproc-per-node", "1", "--max-restarts", str(restarts)]
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", "job"]
    is_host = str(folder.name == "first").lower()  # on one address, either would take itself for it
    quickly = ["--rdzv-conf", f"last_call_timeout=1,join_timeout=60,is_host={is_host}"]
    return start(folder, "torch.distributed.run", *where, *rendezvous, *quickly, "-m", "onecycle", "train", *options)


@pytest.mark.long
def test_when_a_machine_dies_the_other_goes_on_alone(
    tmp_path: Path, undisturbed: dict[str, Any], endpoint: str, started: list[Command]
) -> None:
    first = machine(tmp_path / "first", endpoint, 1, *OPTIONS)
    started.append(first)
    second = machine(tmp_path / "second", endpoint, 1, *OPTIONS)
    started.append(second)
    first.wait_until_said(FIRST_EPOCH)  # the rendezvous is the first's, and so is the disk with the checkpoint
    second.kill()
    assert first.end() == 0, first.said
    assert "Resuming runs/" in first.said
    assert bits(run_in(tmp_path / "first")) == undisturbed


@pytest.mark.long
def test_machines_that_share_no_disk_go_on_from_the_one_that_has_the_run(
    tmp_path: Path, undisturbed: dict[str, Any], endpoint: str, started: list[Command]
) -> None:
    begun = start(tmp_path / "second", "onecycle", "train", *OPTIONS)
    begun.wait_until_said(FIRST_EPOCH)
    begun.process.terminate()
    assert begun.end() == 143
    run = run_in(tmp_path / "second").path.relative_to(tmp_path / "second")
    started += [machine(tmp_path / name, endpoint, 2, "--resume", str(run)) for name in ("first", "second")]
    for command in started:
        assert command.end() == 0, command.said
    assert bits(run_in(tmp_path / "second")) == undisturbed
    assert not (tmp_path / "first" / "runs").exists(), "who does not lead writes nothing"


@pytest.mark.long
def test_machines_of_which_none_has_the_run_say_so_in_one_line(
    tmp_path: Path, endpoint: str, started: list[Command]
) -> None:
    options = ["--resume", "runs/none"]
    started += [machine(tmp_path / name, endpoint, 2, *options, restarts=0) for name in ("first", "second")]
    for command in started:
        assert command.end() != 0
    told = [line for command in started for line in command.said.splitlines() if line.startswith("onecycle: ")]
    assert set(told) == {"onecycle: there is no run folder runs/none on any of the machines"}, started[0].said


@pytest.mark.long
def test_a_run_is_taken_up_where_its_data_are_the_same_only(tmp_path: Path) -> None:
    command = start(tmp_path, "onecycle", "train", *OPTIONS, "--processes", "2")
    command.wait_until_said(FIRST_EPOCH)
    command.process.terminate()
    assert command.end() == 143
    run = str(run_in(tmp_path).path.relative_to(tmp_path))
    again = start(tmp_path, "onecycle", "train", "--resume", run, "--limit", "80", "--processes", "2")
    assert again.end() == 2
    assert "limit was 90 and is 80" in again.said.splitlines()[-1]
    shutil.rmtree(tmp_path / "runs")
