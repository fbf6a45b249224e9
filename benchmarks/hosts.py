"""Hosts of one's own on one machine: Linux namespaces, joined by cables to a switch.

A host has its own name, network, processes, `/etc/hosts`, `/run`, `$TMPDIR` and shared memory; processor and disk are
the machine's. Nothing of the machine itself changes, and when the program ends, however it ends, so do its hosts with
all that runs in them: each is held by a process that waits for the end of a pipe. Needs Linux and root.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from studies import Running

INTERFACE = "eth0"  # of every host
PREFIX = "10.77.0"
SWITCH = f"{PREFIX}.254"
OWN_TMP = "/run/tmp"

# A shell that reaps, as the first process of a host must, and ends when what started it has ended. That cat is killed,
# with all else that runs, when a host is restarted.
_UNTIL_THE_PIPE_ENDS = "exec 3<&0; echo ready; until { cat <&3 >/dev/null & wait $!; }; do :; done"
# An empty resolv.conf: a name server that cannot be reached would be waited for. It may lie in the machine's /run.
_HOST = (
    'set -e; hostname "$0"; ip link set lo up; mount --bind "$1" /etc/hosts;'
    "[ ! -e /etc/resolv.conf ] || mount --bind /dev/null /etc/resolv.conf;"
    f"mount -t tmpfs run /run; mount -t tmpfs shm /dev/shm; mkdir {OWN_TMP};" + _UNTIL_THE_PIPE_ENDS
)
# As a router it answers at once that there is no way to the rest of the world.
_SWITCH = (
    "set -e; ip link set lo up; ip link add name switch type bridge; ip link set dev switch up;"
    f"ip addr add {SWITCH}/24 dev switch; echo 1 > /proc/sys/net/ipv4/ip_forward;" + _UNTIL_THE_PIPE_ENDS
)

_OWN = ("--net", "--pid", "--mount", "--mount-proc", "--uts", "--ipc")

Holder = subprocess.Popen[bytes]


class NotStarted(Exception):
    """Why this machine cannot hold a set-up, and what a person can do about it."""


def need(**packages: str) -> None:
    """Ask for programs by name, each with the Debian package that brings it.

    Raises:
        NotStarted: naming those that are absent.
    """
    absent = {program: package for program, package in packages.items() if shutil.which(program) is None}
    if absent:
        raise NotStarted(f"no {', '.join(absent)} here (apt-get install {' '.join(sorted(set(absent.values())))})")


@dataclass(frozen=True)
class Host:
    name: str
    address: str
    _holder: Holder
    _switch: Holder
    _folder: Path
    _started: list[Running] = field(default_factory=list)

    def command(self, *arguments: str | Path, folder: Path | None = None) -> list[str]:
        """The command line by which the machine has the host do something, in that folder."""
        entered = ["nsenter", f"--target={self._holder.pid}", "--net", "--mount", "--uts", "--ipc"]
        children = f"--pid=/proc/{self._holder.pid}/ns/pid_for_children"
        return [*entered, children, "env", f"--chdir={folder or Path.cwd()}", *map(str, arguments)]

    def start(
        self, *arguments: str | Path, folder: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> Running:
        """Start a command, which finds the programs of this Python first and knows of no proxy."""
        kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        kept |= {"PATH": f"{Path(sys.executable).parent}:{kept['PATH']}", "TMPDIR": OWN_TMP}
        log = self._folder / f"{self.name}-{len(self._started)}.log"
        with log.open("wb") as said:
            process = subprocess.Popen(
                self.command(*arguments, folder=folder),
                env=kept | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        running = Running(process, log)
        self._started.append(running)
        return running

    def run(
        self,
        *arguments: str | Path,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        seconds: float = 60,
    ) -> str:
        """What a command says that ends well within so many seconds."""
        running = self.start(*arguments, folder=folder, environment=environment)
        code = running.end(seconds)
        assert code == 0, f"{' '.join(map(str, arguments))} ended with {code}:\n{running.said}"
        return running.said

    def cut(self) -> None:
        """Cut the way somewhere behind the cable's other end: nothing arrives any more, and nobody is told."""
        _network(self._switch, "ip", "link", "set", "dev", self.name, "nomaster")

    def join(self) -> None:
        """Mend the way."""
        _network(self._switch, "ip", "link", "set", "dev", self.name, "master", "switch")

    def restart(self) -> None:
        """Everything in it is killed, and it is there again."""
        self.run("sh", "-c", "kill -9 -1")

    def crash(self) -> None:
        """Everything in it is killed. The kernel closes its connections, so the others hear of it."""
        _release(self._holder)
        for running in self._started:
            running.process.wait()

    def lose_power(self) -> None:
        """Everything in it ends, and the others hear nothing."""
        self.cut()
        self.crash()


@contextmanager
def hosts(number: int, folder: Path, *, megabits_per_second: int | None = None) -> Iterator[list[Host]]:
    """So many hosts, `node1` and on, each with a cable, through which at most so much goes each way.

    They find each other by name and by address, and each, as Debian has it, its own name at 127.0.1.1. What they say is
    kept in `folder`.

    Raises:
        NotStarted: where there is no root, no `ip`, or a kernel without what is asked of it.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        raise NotStarted("only root on Linux can make network namespaces")
    need(ip="iproute2", tc="iproute2", unshare="util-linux", nsenter="util-linux")
    addresses = {f"node{i}": f"{PREFIX}.{i}" for i in range(1, number + 1)}
    with ExitStack() as stack:
        switch = stack.enter_context(_held(_SWITCH, own=("--net",)))
        built = []
        for name, address in addresses.items():
            others = [f"{others_address} {other}" for other, others_address in addresses.items() if other != name]
            names = folder / f"{name}-names"
            names.write_text("\n".join(["127.0.0.1 localhost", f"127.0.1.1 {name}", *others, ""]))
            holder = stack.enter_context(_held(_HOST, name, names, own=_OWN))
            _plug(holder, switch, name, address, megabits_per_second)
            built.append(Host(name, address, holder, switch, folder))
            stack.callback(built[-1].crash)
        yield built


def _plug(holder: Holder, switch: Holder, port: str, address: str, megabits_per_second: int | None) -> None:
    """A cable from the holder's `INTERFACE` to the switch's `port`."""
    _network(switch, *f"ip link add name {port} type veth peer name {INTERFACE} netns {holder.pid}".split())
    _network(switch, *f"ip link set dev {port} master switch".split())
    _network(holder, *f"ip addr add {address}/24 dev {INTERFACE}".split())
    for end, device in ((switch, port), (holder, INTERFACE)):
        if megabits_per_second is not None:
            # What comes in 4 ms, a tick of the kernel's clock, and no less than the 64 KiB that it hands on at once.
            burst = max(65536, megabits_per_second * 500)
            limit = f"rate {megabits_per_second}mbit burst {burst} latency 50ms"
            _network(end, *f"tc qdisc add dev {device} root tbf {limit}".split())
        _network(end, "ip", "link", "set", "dev", device, "up")
    _network(holder, *f"ip route add default via {SWITCH}".split())


@contextmanager
def _held(script: str, *arguments: str | Path, own: tuple[str, ...]) -> Iterator[Holder]:
    """Namespaces and the process that holds them, which lives as long as we do."""
    holder = subprocess.Popen(
        ["unshare", *own, "--fork", "--kill-child", "sh", "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for us, who then end it in order
    )
    try:
        assert holder.stdout is not None and holder.stderr is not None
        if holder.stdout.readline() != b"ready\n":
            raise NotStarted(f"the kernel makes no namespaces here: {holder.stderr.read().decode().strip()}")
        yield holder
    finally:
        _release(holder)


def _release(holder: Holder) -> None:
    """End what is held; it has ended when this returns."""
    for pipe in (holder.stdin, holder.stdout, holder.stderr):
        assert pipe is not None
        pipe.close()
    holder.wait()


def _network(holder: Holder, *command: str) -> None:
    """Change the network of `holder`, seen from the machine, by whose process ids the command may name another."""
    done = subprocess.run(["nsenter", f"--target={holder.pid}", "--net", *command], capture_output=True, text=True)
    if done.returncode:
        raise NotStarted(f"{' '.join(command)}: {done.stderr.strip()}")
