"""The other processes of a run: whether they live, and small values from them, through the store that they share."""

import atexit
import hashlib
import json
import math
import os
import queue
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

from torch.distributed import (  # type: ignore[attr-defined]
    PrefixStore,
    TCPStore,
    destroy_process_group,
    is_initialized,
)

from onecycle.core.errors import InputError, LostError
from onecycle.distributed.watch import Watch

BEAT_SECONDS = 2.0
SILENT_SECONDS = 55.0  # after which a process that does not beat is given up; TCP tries again after 25 and 51
BEGINNING_SECONDS = 300.0  # in which all must have been started
_POLL_SECONDS = 0.02, 0.5  # at first, and at the most
_GONE = 10**9  # what a process that leaves with an error adds to its beats


class Peers:
    """The processes that were started together, from what torchrun tells each of them by its environment.

    A thread beats for this process and listens to the others. It alone talks to the store, which blocks for good when
    a link is cut: whoever waits for it notices. It also tells the others when this process, of which they expect a sum
    soon, computes no more.
    """

    def __init__(self) -> None:
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._master = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._hosts_store = self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        self.names = [f"rank {rank}" for rank in range(self.size)]
        self._requests: queue.Queue[tuple[Callable[[Any], Any], queue.Queue[Any]]] = queue.Queue()
        self._beats = [0] * self.size
        self._listened = time.monotonic()  # when the store last answered
        self._heard = [self._listened] * self.size  # when the beats of each last grew
        self._met = self._broken = False
        self.watch = Watch()
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
        self.put(f"name/{self.rank}", json.dumps([socket.gethostname(), os.getpid()]).encode())
        names = {rank: f"name/{rank}" for rank in range(self.size)}
        said = [json.loads(name) for name in self.wait_for(names)]
        self.names = [f"rank {rank} ({host}, process {number})" for rank, (host, number) in enumerate(said)]
        self.hosts = [host for host, _ in said]

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

    def wait_for(self, keys: Mapping[int, str]) -> list[bytes]:
        """What was put under each of `keys`, by the rank that puts it there, as soon as all of it is there.

        The first of the processes that wait says whom they wait for when that takes long.

        Raises:
            LostError: when a process has gone or does not answer.
            InputError: when one was ended by an error of its own.
        """
        pause, longest = _POLL_SECONDS
        patient_until = time.monotonic() + SILENT_SECONDS
        while not self._has(keys.values()):
            self.require_alive()
            if time.monotonic() > patient_until:
                patient_until = math.inf
                late = [rank for rank, key in keys.items() if not self._has([key])]
                if late and self.rank == min(set(range(self.size)).difference(late)):
                    names = " and ".join(self.names[rank] for rank in late)
                    print(f"onecycle: waiting for {names}", file=sys.stderr, flush=True)
            time.sleep(pause)
            pause = min(1.5 * pause, longest)
        return self._values(keys.values())

    def _has(self, keys: Iterable[str]) -> bool:
        return bool(self._ask(lambda store: store.check(list(keys))))

    def _values(self, keys: Iterable[str]) -> list[bytes]:
        values: list[bytes] = self._ask(lambda store: store.multi_get(list(keys)))
        return values

    def require_alive(self) -> None:
        """Notice when another process does not answer, or was ended by an error.

        Raises:
            LostError: when it does not answer or hangs, or has lost a third.
            InputError: when it was ended by another error, with what it said.
        """
        now = time.monotonic()
        if now - min(self._listened, self._heard[self.rank]) > SILENT_SECONDS:  # not even this process' own beats
            raise self._break(
                f"{self._master[0]}:{self._master[1]}, through which the processes find each other, has not answered "
                f"for {SILENT_SECONDS:.0f} s; look at that machine and the link to it"
            )
        for rank, beats in enumerate(self._beats):
            if beats >= _GONE and rank != self.rank:
                self._broken = True
                raise self._last_words(rank)
        silent = [name for name, heard in zip(self.names, self._heard, strict=True) if now - heard > SILENT_SECONDS]
        if silent:
            raise self._break(
                f"{' and '.join(silent)} did not answer for {SILENT_SECONDS:.0f} s; look at that machine and the link "
                "to it"
            )

    def lost(self, otherwise: str = "what they sum up does not come; look at them and the links") -> InputError:
        """The error to raise when a connection to another process was lost: it says which one has gone.

        Where none has, it says `otherwise` of them.
        """
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
            return self._break(f"the processes live, but {otherwise}")
        return self._break(f"{' and '.join(gone)} {'has' if len(gone) == 1 else 'have'} gone")

    def say_last(self, error: InputError) -> None:
        """Tell the others why this process ends."""
        with suppress(InputError):
            self._ask(lambda store: self._say_last(store, error))

    def tell(self) -> None:
        """Say that this process, which leads, ends with an error, and has done all before that but for a last line."""
        with suppress(InputError):
            self.put("told", b"")

    def wait_until_told(self, seconds: float, leader: int) -> bool:
        """Wait that long at the most for the leader, if it beats: whoever started them ends all with the first."""
        deadline = time.monotonic() + seconds
        with suppress(InputError):
            while time.monotonic() < min(deadline, self._heard[leader] + 3 * BEAT_SECONDS):
                if self._ask(lambda store: store.check([f"hangs/{leader}"])):
                    return False
                if self._ask(lambda store: store.check(["told"])):
                    self._ended.set()  # the store may go with the leader
                    time.sleep(BEAT_SECONDS)  # for its last line
                    return True
                time.sleep(BEAT_SECONDS / 10)
        return False

    def leave(self, exit_code: int) -> None:
        """Say no more. This process ends soon, with `exit_code`."""
        if self._hosts_store:  # which ends with this process, and others may have to learn of the end yet
            time.sleep(1.5 * BEAT_SECONDS)
        self._ended.set()
        self._requests.put((lambda store: None, queue.Queue()))  # so that it wakes
        self._thread.join(BEAT_SECONDS)
        if self._broken:  # gloo would wait for those that have gone, and cannot be told not to
            atexit.register(_end_at_once, exit_code)
        elif is_initialized():
            with suppress(RuntimeError):
                destroy_process_group()

    def _break(self, message: str) -> LostError:
        self._broken = True
        return LostError(message)

    def _say_last(self, store: Any, error: InputError) -> None:
        store.set(f"words/{self.rank}", json.dumps([isinstance(error, LostError), str(error)]))
        store.add(f"beat/{self.rank}", _GONE)

    def _last_words(self, rank: int) -> InputError:
        (said,) = self._ask(lambda store: store.multi_get([f"words/{rank}"]))
        is_lost, message = json.loads(said)
        kind = LostError if is_lost else InputError
        return kind(message if message.startswith("rank ") else f"{self.names[rank]}: {message}")

    def _ask(self, request: Callable[[Any], Any]) -> Any:
        """What `request` gives for the store."""
        self.watch.expected_soon = False
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
        for rank in range(self.size):
            beats = self._store.add(f"beat/{rank}", int(rank == self.rank))  # to add nothing asks how many there are
            if beats != self._beats[rank]:
                self._beats[rank], self._heard[rank] = beats, time.monotonic()
        self._listened = time.monotonic()
        if self.watch.hangs(SILENT_SECONDS):
            hangs = f"has done nothing for {SILENT_SECONDS:.0f} s; look at what it waits for: its data or its disk"
            self._store.set(f"hangs/{self.rank}", "")
            self._say_last(self._store, LostError(f"{self.names[self.rank]} {hangs}"))


def _end_at_once(exit_code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
