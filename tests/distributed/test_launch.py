"""The processes that `onecycle train --processes` starts talk to each other, and to nobody else."""

import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import NETWORK, PATIENCE, Command, small, start
from several import in_processes

from onecycle.distributed import job
from onecycle.distributed.process_group import ProcessGroup
from onecycle.distributed.store import StorePlace

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

LISTENS = "0A"  # the state of a listening socket in /proc/net/tcp


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """A training with two processes, which have connected."""
    command = start(
        tmp_path_factory.mktemp("launched"), "onecycle", "train", *NETWORK, *small(epochs=1000), "--processes", "2"
    )
    command.wait_for_output(" 1/1000 ")
    yield command
    command.kill()


def test_its_processes_listen_at_the_loopback_address_only(command: Command) -> None:
    listening = [place for process in (command.process.pid, *command.ranks().values()) for place in listeners(process)]
    assert {address for address, _ in listening} <= {"127.0.0.1"}


def test_the_command_itself_listens_nowhere(command: Command) -> None:
    """torch's launcher would host a store, and unpickle what other users write there."""
    assert listeners(command.process.pid) == []


def test_only_this_user_can_open_the_folder_of_the_store(command: Command) -> None:
    for process in command.ranks().values():
        file = Path(variables_of(process)[job.STORE_FILE])
        assert file.is_file() and file.stat().st_uid == os.getuid()
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_its_processes_end_if_the_command_is_killed(tmp_path: Path) -> None:
    command = start(tmp_path, "onecycle", "train", *NETWORK, *small(epochs=1000), "--processes", "2")
    command.wait_for_output(" 1/1000 ")
    processes = command.ranks().values()
    try:
        os.kill(command.process.pid, signal.SIGKILL)
        command.process.wait()
        deadline = time.monotonic() + PATIENCE
        while any(map(is_running, processes)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        os.killpg(command.process.pid, signal.SIGKILL) if any(map(is_running, processes)) else None
    assert "the process that started the others is gone; `onecycle train --resume`" in command.output


def test_the_store_of_torchruns_main_process_listens_at_the_named_address_only() -> None:
    hosts, _ = in_processes(2, addresses_of_this_process)
    assert hosts == ["127.0.0.1"]


@pytest.mark.parametrize("address", ["127.0.1.1", "192.0.2.1"], ids=["loopback of a name", "another machine's"])
def test_the_store_listens_at_all_addresses_if_others_cannot_find_the_named_one_here(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostbyname", lambda name: address)
    place = StorePlace(host="node-0", port=0)
    assert place.listener() is None


def test_a_port_in_use_is_an_error() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(RuntimeError, match="cannot listen at 127.0.0.1:.* in use"):
            StorePlace(host="localhost", port=other.getsockname()[1]).listener()


def addresses_of_this_process(group: ProcessGroup) -> list[str]:
    """The addresses at which the store of this process's job listens."""
    port = int(os.environ["MASTER_PORT"])
    return [address for address, listened in listeners(os.getpid()) if listened == port]


def is_running(process: int) -> bool:
    """Whether `process` exists and is not a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def listeners(process: int) -> list[tuple[str, int]]:
    """The addresses and ports at which `process` listens."""
    owned = {os.readlink(link) for link in Path(f"/proc/{process}/fd").iterdir() if link.is_symlink()}
    found = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{name}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == LISTENS and f"socket:[{rest[5]}]" in owned:
                address, port = local.split(":")
                raw = bytes.fromhex(address)
                text = socket.inet_ntoa(raw[::-1]) if name == "tcp" else raw.hex()
                found.append((text, int(port, 16)))
    return found


def variables_of(process: int) -> dict[str, str]:
    """The environment variables of `process`."""
    entries = Path(f"/proc/{process}/environ").read_text().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)
