"""Run examples/two_machines.sh unchanged on two virtual hosts, which share only a network."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hosts import INTERFACE, Host
from small_training import OPTIONS, THREADS, outcome, the_run
from studies import StartedCommand

StartHosts = Callable[..., list[Host]]

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "two_machines.sh"
PATIENCE = 300  # seconds


def train(hosts: list[Host], folder: Path, **variables: str) -> list[StartedCommand]:
    """Start two_machines.sh on each host, in a separate folder. Only the first host has a cached compute plan."""
    return [start(host, hosts[0], folder, **variables) for host in hosts]


def start(host: Host, first: Host, folder: Path, **variables: str) -> StartedCommand:
    own = folder / host.name
    own.mkdir(exist_ok=True)
    environment = {"FIRST": first.address, "INTERFACE": INTERFACE, "THREADS": str(THREADS)}
    if host is not first:
        environment["XDG_CACHE_HOME"] = str(own / "cache")
    return host.start("sh", SCRIPT, *OPTIONS, folder=own, environment=environment | variables)


def wait_for_epochs(command: StartedCommand, folder: Path, epochs: int) -> None:
    until = time.monotonic() + PATIENCE
    while (run := the_run(folder)) is None or not run.history.exists() or len(run.read_history()) < epochs:
        assert command.process.poll() is None and time.monotonic() < until, command.output
        time.sleep(0.05)


def train_an_epoch(hosts: list[Host], folder: Path, **variables: str) -> list[StartedCommand]:
    """Start two_machines.sh on each host, and wait until the first host has trained an epoch."""
    started = train(hosts, folder, **variables)
    wait_for_epochs(started[0], folder / hosts[0].name, 1)
    return started


def test_two_machines_have_the_result_of_one_and_only_the_first_writes(
    start_hosts: StartHosts, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    for command in train(start_hosts(2), tmp_path):
        assert command.end(PATIENCE) == 0, command.output
    assert outcome(tmp_path / "node1") == undisturbed
    assert the_run(tmp_path / "node2") is None


@pytest.mark.parametrize("seconds", [2, 30])
def test_a_cable_that_is_unplugged_for_a_while_changes_nothing(
    start_hosts: StartHosts, tmp_path: Path, undisturbed: dict[str, Any], seconds: float
) -> None:
    first, second = start_hosts(2)
    started = train_an_epoch([first, second], tmp_path)
    second.cut()
    time.sleep(seconds)
    second.join()
    for command in started:
        assert command.end(PATIENCE) == 0, command.output
    assert outcome(tmp_path / "node1") == undisturbed


def test_a_cable_that_stays_unplugged_is_reported_by_the_second_and_the_first_goes_on(
    start_hosts: StartHosts, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    first, second = start_hosts(2)
    going_on, cut_off = train_an_epoch([first, second], tmp_path, MACHINES="1:2")
    second.cut()
    until = time.monotonic() + 60
    while "has not answered for 55 s" not in cut_off.output:
        assert time.monotonic() < until, cut_off.output
        time.sleep(0.5)
    assert f"{first.address}:" in cut_off.output
    assert going_on.end(PATIENCE) == 0, going_on.output
    assert outcome(tmp_path / "node1") == undisturbed
    assert the_run(tmp_path / "node2") is None


@pytest.mark.parametrize("end", [Host.crash, Host.lose_power])
def test_with_a_minimum_of_one_machine_the_first_goes_on_without_the_second(
    start_hosts: StartHosts, tmp_path: Path, undisturbed: dict[str, Any], end: Callable[[Host], None]
) -> None:
    first, second = start_hosts(2)
    going_on, _ = train_an_epoch([first, second], tmp_path, MACHINES="1:2")
    end(second)
    assert going_on.end(PATIENCE) == 0, going_on.output
    assert outcome(tmp_path / "node1") == undisturbed


def test_when_the_first_machine_dies_the_second_ends_and_both_resume_after_a_new_start(
    start_hosts: StartHosts, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    first, second = start_hosts(2)
    _, left = train_an_epoch([first, second], tmp_path, MACHINES="1:2")
    first.restart()
    assert left.end(PATIENCE) != 0, left.output
    again = train([first, second], tmp_path, MACHINES="1:2")
    for command in again:
        assert command.end(PATIENCE) == 0, command.output
    assert "Resuming runs/" in again[0].output
    assert outcome(tmp_path / "node1") == undisturbed


@pytest.mark.parametrize("machines", ["2", "1:2"])
def test_a_restarted_machine_rejoins_the_run(
    start_hosts: StartHosts, tmp_path: Path, undisturbed: dict[str, Any], machines: str
) -> None:
    first, second = start_hosts(2)
    going_on, _ = train_an_epoch([first, second], tmp_path, MACHINES=machines)
    second.restart()
    back = start(second, first, tmp_path, MACHINES=machines)
    for command in (going_on, back):
        assert command.end(PATIENCE) == 0, command.output
    assert outcome(tmp_path / "node1") == undisturbed


def test_without_an_address_for_the_interface_the_error_names_the_variable_to_set(
    start_hosts: StartHosts, tmp_path: Path
) -> None:
    (command,) = train(start_hosts(1), tmp_path, INTERFACE="eth7")
    assert command.end(10) == 2
    assert "eth7 has no IPv4 address; name this machine's interface: INTERFACE=" in command.output


def test_without_a_first_machine_the_error_names_the_variable_to_set(start_hosts: StartHosts, tmp_path: Path) -> None:
    (command,) = train(start_hosts(1), tmp_path, FIRST="")
    assert command.end(10) == 2
    assert "FIRST: give the address of the first machine" in command.output
