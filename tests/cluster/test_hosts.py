"""The virtual hosts behave like real machines."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import hosts
import pytest
from hosts import Host, NotStarted, need

StartHosts = Callable[..., list[Host]]

# The first host receives data. The second host sends the data and prints how long that took.
RECEIVE = """
import socket
connection, _ = socket.create_server(("", 9000)).accept()
while connection.recv(1 << 20):
    pass
connection.sendall(b"all")
"""
SEND = """
import socket, sys, time
while True:
    try:
        connection = socket.create_connection((sys.argv[1], 9000))
        break
    except ConnectionRefusedError:
        time.sleep(0.02)
began = time.perf_counter()
connection.sendall(bytes(int(sys.argv[2])))
connection.shutdown(socket.SHUT_WR)
assert connection.recv(3) == b"all"
print(time.perf_counter() - began)
"""
# One host waits for data. The other host connects and sends nothing.
WAIT = """
import socket, sys
connection, _ = socket.create_server(("", 9000)).accept()
print("connected", flush=True)
connection.settimeout(float(sys.argv[1]))
try:
    print("connection closed" if connection.recv(1) == b"" else "data received")
except ConnectionResetError:
    print("connection closed")
except TimeoutError:
    print("no notification")
"""
CONNECT = SEND.partition("began")[0] + "time.sleep(1000)"
MAKE_HOSTS = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from hosts import hosts
with hosts(2, Path(sys.argv[2])) as built:
    for host in built:
        host.run("sh", "-c", sys.argv[3])
    print("created", flush=True)
    time.sleep(1000)
"""


def daemon(folder: Path) -> str:
    """A shell command that starts a daemon in a session of its own, with `folder` in its command line."""
    return f"setsid sh -c 'sleep 1000; : {folder}' >/dev/null 2>&1 &"


def processes_of(folder: Path) -> list[str]:
    """The command lines of all processes on this machine whose command line contains `folder`."""
    listed = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if str(folder) in line]


def network() -> str:
    return subprocess.run(["ip", "-oneline", "link"], capture_output=True, text=True, check=True).stdout


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def answers(host: Host, other: Host, seconds: float) -> bool:
    """Whether `host` reaches `other` within `seconds`. No server listens, so the reply is "Connection refused"."""
    connect = f"import socket; socket.create_connection(({other.address!r}, 9), {seconds})"
    return "Connection refused" in host.run("sh", "-c", f'{sys.executable} -c "{connect}" 2>&1 || true')


def test_hosts_have_names_and_find_each_other_by_them(start_hosts: StartHosts) -> None:
    names = "import socket, sys; print(socket.gethostname(), *map(socket.gethostbyname, sys.argv[1:]))"
    for host in start_hosts(2):
        own = {"node1": "127.0.1.1 10.77.0.2", "node2": "10.77.0.1 127.0.1.1"}[host.name]
        assert host.run(sys.executable, "-c", names, "node1", "node2").split("\n")[0] == f"{host.name} {own}"


def test_a_host_sees_only_its_own_processes_and_network(start_hosts: StartHosts) -> None:
    first, _ = start_hosts(2)
    assert first.run("ps", "-e", "-o", "pid=,comm=").split()[:2] == ["1", "sh"]
    assert str(os.getpid()) not in first.run("ps", "-e", "-o", "pid=").split()
    assert [line.split()[1] for line in first.run("ip", "-oneline", "-4", "address").splitlines()] == ["lo", "eth0"]


def test_other_networks_are_unreachable_without_delay(start_hosts: StartHosts) -> None:
    (host,) = start_hosts(1)
    began = time.perf_counter()
    outside = "import socket; socket.create_connection(('192.0.2.1', 443))"
    assert "Network is unreachable" in host.run("sh", "-c", f'{sys.executable} -c "{outside}" 2>&1 || true')
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(("megabits_per_second", "megabytes"), [(100, 5), (1000, 50)])
def test_a_limited_cable_carries_as_much_as_configured(
    start_hosts: StartHosts, megabits_per_second: int, megabytes: int
) -> None:
    first, second = start_hosts(2, megabits_per_second=megabits_per_second)
    carried = 0.0
    for _ in range(10):  # a busy machine may be slower than the cable
        receiving = first.start(sys.executable, "-c", RECEIVE)
        seconds = float(second.run(sys.executable, "-c", SEND, first.address, str(megabytes * 10**6)))
        assert receiving.end(60) == 0
        carried = megabytes * 8 / seconds
        assert carried <= megabits_per_second
        if carried > 0.8 * megabits_per_second:
            return
    raise AssertionError(f"the cable carried {carried} Mbit/s")


def test_an_unplugged_cable_carries_nothing_until_it_is_reconnected(start_hosts: StartHosts) -> None:
    first, second = start_hosts(2)
    assert answers(first, second, 5)
    second.cut()
    assert not answers(first, second, 0.5)
    second.join()
    assert answers(first, second, 5)


def test_data_sent_while_the_cable_is_unplugged_arrives_later(start_hosts: StartHosts) -> None:
    first, second = start_hosts(2, megabits_per_second=100)
    receiving = first.start(sys.executable, "-c", RECEIVE)
    sending = second.start(sys.executable, "-c", SEND, first.address, str(30 * 10**6))
    time.sleep(0.5)
    second.cut()
    time.sleep(0.5)
    assert sending.process.poll() is None
    second.join()
    assert sending.end(60) == receiving.end(60) == 0, sending.output


@pytest.mark.parametrize(
    ("end", "neighbor", "seconds"), [(Host.crash, "connection closed", 60), (Host.lose_power, "no notification", 1)]
)
def test_a_host_that_ends_takes_its_processes_with_it_and_notifies_others_unless_it_loses_power(
    start_hosts: StartHosts, tmp_path: Path, end: Callable[[Host], None], neighbor: str, seconds: int
) -> None:
    first, second = start_hosts(2)
    waiting = first.start(sys.executable, "-c", WAIT, str(seconds))
    second.start(sys.executable, "-c", CONNECT, first.address)
    second.run("sh", "-c", daemon(tmp_path / "second"))
    wait_until(lambda: "connected" in waiting.output and bool(processes_of(tmp_path / "second")))
    end(second)
    assert processes_of(tmp_path / "second") == []
    assert waiting.end(60) == 0
    assert waiting.output.splitlines() == ["connected", neighbor]


def test_a_restarted_host_has_none_of_its_old_processes(start_hosts: StartHosts, tmp_path: Path) -> None:
    first, second = start_hosts(2)
    second.run("sh", "-c", daemon(tmp_path / "second"))
    wait_until(lambda: bool(processes_of(tmp_path / "second")))
    second.restart()
    wait_until(lambda: processes_of(tmp_path / "second") == [])
    assert answers(first, second, 5)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_program_that_created_the_hosts(
    start_hosts: StartHosts, tmp_path: Path, sent: signal.Signals
) -> None:
    start_hosts(0)  # skips the test if virtual hosts cannot be started here
    before = network()
    arguments = [Path(hosts.__file__).parent, tmp_path, daemon(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-c", MAKE_HOSTS, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as program:
        assert program.stdout is not None and program.stdout.readline() == b"created\n"
        assert len(processes_of(tmp_path)) > 4
        program.send_signal(sent)
    wait_until(lambda: processes_of(tmp_path) == [])
    assert network() == before


def test_a_missing_program_is_named_with_the_package_that_contains_it() -> None:
    need(sh="dash")
    with pytest.raises(NotStarted, match=r"not installed: slurmd9, munged9; run apt-get install munge9 slurm9"):
        need(sh="dash", slurmd9="slurm9", munged9="munge9")
