"""Virtual hosts on this machine: Linux namespaces, connected to a switch by virtual cables.

A host has its own name, network, processes, `/etc/hosts`, `/run`, `$TMPDIR` and shared memory. It shares processor and
disk with this machine. The machine itself does not change. When the program ends, for any reason, its hosts end with
all their processes: the first process of each host waits on a pipe and ends when the pipe closes. Needs Linux and root.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from studies import StartedCommand

INTERFACE = "eth0"  # the name of the network interface on every host
PREFIX = "10.77.0"
SWITCH = f"{PREFIX}.254"
OWN_TMP = "/run/tmp"

# The first process of a host must reap orphaned processes. This shell does so, and ends when the program that started
# it ends. `Host.restart` also kills the process `cat`, so the loop starts a new one.
_UNTIL_THE_PIPE_ENDS = "exec 3<&0; echo ready; until { cat <&3 >/dev/null & wait $!; }; do :; done"
# resolv.conf is empty, because lookups would wait for a name server that is out of reach. It is mounted before /run,
# because it may be a link into the machine's /run.
_HOST = (
    'set -e; hostname "$0"; ip link set lo up; mount --bind "$1" /etc/hosts;'
    "[ ! -e /etc/resolv.conf ] || mount --bind /dev/null /etc/resolv.conf;"
    f"mount -t tmpfs run /run; mount -t tmpfs shm /dev/shm; mkdir {OWN_TMP};" + _UNTIL_THE_PIPE_ENDS
)
# With IP forwarding, a host that contacts an address outside this network learns at once that it is unreachable.
_SWITCH = (
    "set -e; ip link set lo up; ip link add name switch type bridge; ip link set dev switch up;"
    f"ip addr add {SWITCH}/24 dev switch; echo 1 > /proc/sys/net/ipv4/ip_forward;" + _UNTIL_THE_PIPE_ENDS
)

_OWN = ("--net", "--pid", "--mount", "--mount-proc", "--uts", "--ipc")

Holder = subprocess.Popen[bytes]


class NotStarted(Exception):
    """This machine cannot provide the hosts or a cluster on them. The message says why, and what to do."""


def need(**packages: str) -> None:
    """Check that programs are installed. `packages` maps each program to its Debian package.

    Raises:
        NotStarted: when a program is missing.
    """
    missing = {program: package for program, package in packages.items() if shutil.which(program) is None}
    if missing:
        to_install = " ".join(sorted(set(missing.values())))
        raise NotStarted(f"not installed: {', '.join(missing)}; run apt-get install {to_install}")


@dataclass(frozen=True)
class Host:
    name: str
    address: str
    _holder: Holder
    _switch: Holder
    _folder: Path
    _started: list[StartedCommand] = field(default_factory=list)

    def command(self, *arguments: str | Path, folder: Path | None = None) -> list[str]:
        """The command line that runs `arguments` on the host, in `folder` or the current folder."""
        entered = ["nsenter", f"--target={self._holder.pid}", "--net", "--mount", "--uts", "--ipc"]
        children = f"--pid=/proc/{self._holder.pid}/ns/pid_for_children"
        return [*entered, children, "env", f"--chdir={folder or Path.cwd()}", *map(str, arguments)]

    def start(
        self, *arguments: str | Path, folder: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> StartedCommand:
        """Start a command. Its PATH begins with the folder of this Python, and it uses no proxy."""
        variables = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        variables |= {"PATH": f"{Path(sys.executable).parent}:{variables['PATH']}", "TMPDIR": OWN_TMP}
        log = self._folder / f"{self.name}-{len(self._started)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.command(*arguments, folder=folder),
                env=variables | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started = StartedCommand(process, log)
        self._started.append(started)
        return started

    def run(
        self,
        *arguments: str | Path,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        seconds: float = 60,
    ) -> str:
        """The output of a command, which must succeed within `seconds`."""
        started = self.start(*arguments, folder=folder, environment=environment)
        code = started.end(seconds)
        assert code == 0, f"{' '.join(map(str, arguments))} ended with {code}:\n{started.output}"
        return started.output

    def cut(self) -> None:
        """Disconnect the host's port from the switch. No packet arrives any more, and neither side is notified."""
        _network(self._switch, "ip", "link", "set", "dev", self.name, "nomaster")

    def join(self) -> None:
        """Reconnect the host."""
        _network(self._switch, "ip", "link", "set", "dev", self.name, "master", "switch")

    def restart(self) -> None:
        """Kill all processes of the host, as a restart does. The host keeps its network and its files."""
        self.run("sh", "-c", "kill -9 -1")

    def crash(self) -> None:
        """Kill the host with all its processes. The kernel closes the connections, so the other hosts are notified."""
        _release(self._holder)
        for started in self._started:
            started.process.wait()

    def lose_power(self) -> None:
        """Kill the host with all its processes. The other hosts are not notified."""
        self.cut()
        self.crash()


@contextmanager
def hosts(number: int, folder: Path, *, megabits_per_second: int | None = None) -> Iterator[list[Host]]:
    """Create `number` hosts, `node1` and so on. Cables carry at most `megabits_per_second` in each direction.

    Hosts find each other by name and by address. As on Debian, each resolves its own name to 127.0.1.1. The output of
    commands is written into `folder`.

    Raises:
        NotStarted: without root, without `ip`, or when the kernel lacks a feature.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        raise NotStarted("network namespaces need Linux and root; run this as root on Linux")
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
    """Connect the holder's `INTERFACE` to the switch's `port` by a cable."""
    _network(switch, *f"ip link add name {port} type veth peer name {INTERFACE} netns {holder.pid}".split())
    _network(switch, *f"ip link set dev {port} master switch".split())
    _network(holder, *f"ip addr add {address}/24 dev {INTERFACE}".split())
    for end, device in ((switch, port), (holder, INTERFACE)):
        if megabits_per_second is not None:
            # `burst` is the number of bytes that the cable carries in 4 ms, one tick of the kernel's clock. It is at
            # least 64 KiB, because the kernel sends that much at once.
            burst = max(65536, megabits_per_second * 500)
            limit = f"rate {megabits_per_second}mbit burst {burst} latency 50ms"
            _network(end, *f"tc qdisc add dev {device} root tbf {limit}".split())
        _network(end, "ip", "link", "set", "dev", device, "up")
    _network(holder, *f"ip route add default via {SWITCH}".split())


@contextmanager
def _held(script: str, *arguments: str | Path, own: tuple[str, ...]) -> Iterator[Holder]:
    """Create namespaces and a process that holds them. The process ends when this program ends."""
    holder = subprocess.Popen(
        ["unshare", *own, "--fork", "--kill-child", "sh", "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C reaches only this program, which then ends the process
    )
    try:
        assert holder.stdout is not None and holder.stderr is not None
        if holder.stdout.readline() != b"ready\n":
            raise NotStarted(f"the kernel cannot create namespaces: {holder.stderr.read().decode().strip()}")
        yield holder
    finally:
        _release(holder)


def _release(holder: Holder) -> None:
    """End the process that holds the namespaces and all processes in them, and wait until they have ended."""
    for pipe in (holder.stdin, holder.stdout, holder.stderr):
        assert pipe is not None
        pipe.close()
    holder.wait()


def _network(holder: Holder, *command: str) -> None:
    """Run `command` in the network of `holder`. The command may refer to other holders by their process ids."""
    done = subprocess.run(["nsenter", f"--target={holder.pid}", "--net", *command], capture_output=True, text=True)
    if done.returncode:
        raise NotStarted(f"{' '.join(command)}: {done.stderr.strip()}")
