"""The other processes of a run: whether they live, and small values from them, through the store that they share."""

import atexit
import hashlib
import os
import queue
import socket
import struct
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from torch.distributed import (  # type: ignore[attr-defined]
    PrefixStore,
    TCPStore,
    destroy_process_group,
    is_initialized,
)

from onecycle.errors import InputError

BEAT_SECONDS = 2.0
SILENT_SECONDS = 50.0  # after which a process that does not beat is given up
BEGINNING_SECONDS = 300.0  # in which all must have been started
_POLL_SECONDS = 0.02, 0.5  # at first, and at the most
_LEAST_SECONDS = 0.01  # of a processor, by which a process that computes is told from one that hangs
_GONE = 10**9  # what a process that leaves with an error adds to its beats
_ADDRESS_OF = 0x8915  # an interface: SIOCGIFADDR of Linux


class Peers:
    """The processes that were started together, from what torchrun tells each of them by its environment.

    A thread beats for this process and listens to the others. It alone talks to the store, which blocks for good when
    a link is cut: whoever waits for it notices. `computes` says that this process is between two sums: it does not beat
    then while it does nothing.
    """

    def __init__(self) -> None:
        self.computes = False
        self._spent = 0.0  # seconds of a processor, when it last beat
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._master = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._hosts_store = self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        self.names = [f"rank {rank}" for rank in range(self.size)]
        self._requests: queue.Queue[tuple[Callable[[Any], Any], queue.Queue[Any]]] = queue.Queue()
        self._beats = [0] * self.size
        self._listened = time.monotonic()  # when the store last answered
        self._heard = [self._listened] * self.size  # when the beats of each last grew
        self._met = self._broken = False
        self._ended = threading.Event()
        try:
            self._store = self._connect()
        except RuntimeError as error:
            where = f"{self._master[0]}:{self._master[1]}"
            raise InputError(f"the other processes are not found through {where}: {error}") from error
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        self._start = self._meet()
        self._store = PrefixStore(self._start, self._store)
        self._heard = [time.monotonic()] * self.size
        self._met = True
        self.put(f"name/{self.rank}", f"rank {self.rank} ({socket.gethostname()}, process {os.getpid()})".encode())
        names = self.wait_for([f"name/{rank}" for rank in range(self.size)])
        self.names = [name.decode() for name in names]

    def store(self) -> Any:
        """Another connection to the store, for torch.distributed's own use."""
        return PrefixStore(f"{self._start}/torch", self._connect())

    def _connect(self) -> Any:
        limit, hosts = timedelta(seconds=BEGINNING_SECONDS), self._hosts_store
        return TCPStore(*self._master, self.size, hosts, limit, wait_for_workers=False, multi_tenant=True)

    def _meet(self) -> str:
        """A name for this start of all processes: in the store the keys of an earlier one may still be there.

        Each says a word of its own. The first rank gathers these, until each process has found its own among them.
        """
        mine = uuid.uuid4().hex
        self.put(f"word/{self.rank}", mine.encode())
        words = [f"word/{rank}" for rank in range(self.size)]
        deadline = time.monotonic() + BEGINNING_SECONDS
        while time.monotonic() < deadline:
            if self.rank == 0 and self._has(words):
                self.put("words", b" ".join(self._values(words)))
            said = self._values(["words"])[0] if self._has(["words"]) else b""
            if mine in said.decode().split():
                name = hashlib.sha256(said).hexdigest()[:16]
                self.put(f"{name}/found/{self.rank}", b"")
                if self.rank == 0 and self._has([f"{name}/found/{rank}" for rank in range(self.size)]):
                    self.put(f"{name}/begun", b"")
                if self._has([f"{name}/begun"]):
                    return name
            time.sleep(_POLL_SECONDS[0])
        raise InputError(
            f"of {self.size} processes not all have come within {BEGINNING_SECONDS:.0f} s; look at the others"
        )

    def put(self, key: str, value: bytes) -> None:
        """Tell the others `value` under the name `key`."""
        self._ask(lambda store: store.set(key, value))

    def wait_for(self, keys: Sequence[str]) -> list[bytes]:
        """What was put under each of `keys`, as soon as all of it is there.

        Raises:
            InputError: when a process has gone, was ended by an error or does not answer.
        """
        pause, longest = _POLL_SECONDS
        while not self._has(keys):
            self.require_alive()
            time.sleep(pause)
            pause = min(1.5 * pause, longest)
        return self._values(keys)

    def _has(self, keys: Sequence[str]) -> bool:
        return bool(self._ask(lambda store: store.check(list(keys))))

    def _values(self, keys: Sequence[str]) -> list[bytes]:
        values: list[bytes] = self._ask(lambda store: store.multi_get(list(keys)))
        return values

    def require_alive(self) -> None:
        """Notice when another process has gone or does not answer.

        Raises:
            InputError: then.
        """
        now = time.monotonic()
        if now - min(self._listened, self._heard[self.rank]) > SILENT_SECONDS:  # not even this process' own beats
            raise self._break(
                f"{self._master[0]}:{self._master[1]}, through which the processes find each other, has not answered "
                f"for {SILENT_SECONDS:.0f} s; look at that machine and the link to it"
            )
        for rank, beats in enumerate(self._beats):
            if beats >= _GONE and rank != self.rank:
                raise self._break(self._last_words(rank))
        silent = [name for name, heard in zip(self.names, self._heard, strict=True) if now - heard > SILENT_SECONDS]
        if silent:
            raise self._break(
                f"{' and '.join(silent)} did not answer for {SILENT_SECONDS:.0f} s; look at that machine and the link "
                "to it"
            )

    def lost(self) -> InputError:
        """The error to raise when a connection to another process was lost: it says which one has gone."""
        before: list[int] = []
        for beats in (1.5, 2.5):  # the last beat of one that has gone is heard in the first
            before = list(self._beats)
            deadline = time.monotonic() + beats * BEAT_SECONDS
            while time.monotonic() < deadline:
                try:
                    self.require_alive()
                except InputError as error:
                    return error
                time.sleep(BEAT_SECONDS / 10)
        if self._beats[self.rank] == before[self.rank]:
            return self._break(f"{self._master[0]}, through which the processes find each other, has gone")
        gone = [self.names[rank] for rank in range(self.size) if self._beats[rank] == before[rank]]
        if not gone:
            return self._break("the processes live, but what they sum up does not come; look at the links between them")
        return self._break(f"{' and '.join(gone)} {'has' if len(gone) == 1 else 'have'} gone")

    def told_by_leader(self, message: str, *, leads: bool) -> bool:
        """Tell the others why this process ends with an error; whether the one that leads says so, too."""
        with suppress(InputError):
            self._ask(lambda store: store.set(f"words/{self.rank}", message))
            self._ask(lambda store: store.add(f"beat/{self.rank}", _GONE))
            if leads:
                self.tell()
                return False
            return self.wait_until_told(3 * BEAT_SECONDS)
        return False

    def tell(self) -> None:
        """Say that this process, which leads, has done all that it does before it ends, but for a last line."""
        with suppress(InputError):
            self._ask(lambda store: store.set("told", "yes"))
            if self._hosts_store:  # which ends with this process
                time.sleep(BEAT_SECONDS / 2)

    def wait_until_told(self, seconds: float) -> bool:
        """Wait that long at the most for the process that leads: whoever started them ends all with the first."""
        deadline = time.monotonic() + seconds
        with suppress(InputError):
            while time.monotonic() < deadline:
                if self._ask(lambda store: store.check(["told"])):
                    time.sleep(BEAT_SECONDS)  # for its last line
                    return True
                time.sleep(BEAT_SECONDS / 10)
        return False

    def leave(self) -> None:
        """Say no more."""
        self._ended.set()
        self._requests.put((lambda store: None, queue.Queue()))  # so that it wakes
        self._thread.join(BEAT_SECONDS)
        if self._broken:  # gloo would wait for those that have gone, and cannot be told not to
            atexit.register(_end_at_once)
        elif is_initialized():
            with suppress(RuntimeError):
                destroy_process_group()

    def _break(self, message: str) -> InputError:
        self._broken = True
        return InputError(message)

    def _last_words(self, rank: int) -> str:
        said = self._ask(lambda store: store.multi_get([f"words/{rank}"]))[0].decode()
        return said if said.startswith("rank ") else f"{self.names[rank]}: {said}"

    def _ask(self, request: Callable[[Any], Any]) -> Any:
        """What `request` gives for the store."""
        self.computes = False
        answers: queue.Queue[Any] = queue.Queue()
        self._requests.put((request, answers))
        while True:
            try:
                answer = answers.get(timeout=1)
            except queue.Empty:
                if time.monotonic() - self._listened > SILENT_SECONDS:
                    self.require_alive()
                continue
            if isinstance(answer, Exception):
                raise self._break(
                    f"{self._master[0]}:{self._master[1]}, through which the processes find each other, has gone"
                ) from answer
            return answer

    def _beat(self) -> None:
        due = 0.0
        while not self._ended.is_set():
            if self._met and time.monotonic() >= due:
                due = time.monotonic() + BEAT_SECONDS
                with suppress(RuntimeError):
                    self._listen()
            try:
                request, answers = self._requests.get(timeout=max(0.1, due - time.monotonic()))
            except queue.Empty:
                continue
            try:
                answers.put(request(self._store))
                self._listened = time.monotonic()
            except RuntimeError as error:
                answers.put(error)

    def _listen(self) -> None:
        spent = time.process_time() - time.thread_time()  # this thread's own is not the process'
        lives = not self.computes or spent - self._spent > _LEAST_SECONDS
        if lives:
            self._spent = spent
        for rank in range(self.size):
            # To add nothing asks how many there are.
            beats = self._store.add(f"beat/{rank}", int(lives and rank == self.rank))
            if beats != self._beats[rank] or rank == self.rank:
                self._beats[rank], self._heard[rank] = beats, time.monotonic()
        self._listened = time.monotonic()


def _end_at_once() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)


def interface_towards(host: str) -> str | None:
    """The name of the network interface through which `host` is reached, where that is another machine."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # which sends nothing
            address = probe.getsockname()[0]
            if address.startswith("127."):
                return None
            for _, name in socket.if_nameindex():
                with suppress(OSError):  # one without an address
                    request = struct.pack("256s", name.encode()[:15])
                    if socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _ADDRESS_OF, request)[20:24]) == address:
                        return name
    except OSError:
        pass
    return None
