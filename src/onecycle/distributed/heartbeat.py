"""Heartbeats and small values that the processes of a run exchange through a shared store."""

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
from typing import Any, NoReturn

from torch.distributed import (  # type: ignore[attr-defined]
    PrefixStore,
    destroy_process_group,
    is_initialized,
)

from onecycle.core.errors import InputError, OnecycleError, PeerError, StorageError
from onecycle.distributed.store import StorePlace
from onecycle.distributed.watchdog import Watchdog

HEARTBEAT_SECONDS = 2.0
# A process is lost after this long without a heartbeat. In this time, TCP can resend a lost packet at 25 s and at 51 s.
SILENT_SECONDS = 55.0
START_SECONDS = 300.0  # all processes must start within this time
_POLL_SECONDS = 0.02, 0.5  # the first and the longest pause between two checks of the store
_FAILED = 10**9  # a process that ends with an error adds this to its heartbeat counter
_KINDS: Mapping[str, type[OnecycleError]] = {kind.__name__: kind for kind in (InputError, StorageError, PeerError)}


class Heartbeat:
    """Connects this process to the other processes of the torchrun job, and tracks which of them are alive.

    The heartbeat thread increments this process's heartbeat counter in the store, and reads the counters of the other
    processes. Only the heartbeat thread uses the store, because a call to the store blocks forever when the network
    link is cut. The main thread waits for answers from the heartbeat thread, and raises an error when none come. The
    watchdog detects when the main thread has stalled. The heartbeat thread then tells the other processes.
    """

    def __init__(self) -> None:
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.place = StorePlace.of_job(self.rank)
        self.names = [f"rank {rank}" for rank in range(self.size)]
        self._requests: queue.Queue[tuple[Callable[[Any], Any], queue.Queue[Any]]] = queue.Queue()
        self._heartbeats = [0] * self.size
        self._store_answered = time.monotonic()
        self._last_heard = [self._store_answered] * self.size  # when the counter of each rank last increased
        self._is_joined = self._is_broken = False
        self.watchdog = Watchdog()
        self._ended = threading.Event()
        try:
            # The store ends when `_server` is deleted, so the heartbeat holds a reference to `_server`.
            self._server = self._connect(is_server=True) if self.place.is_hosted_here else None
            self._store = self._connect()
        except RuntimeError as error:
            raise PeerError(f"no other process was found through {self.place}: {error}") from error
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._start = self._join()
        self._store = PrefixStore(self._start, self._store)
        self._last_heard = [time.monotonic()] * self.size
        self._is_joined = True
        self.put(f"name/{self.rank}", json.dumps([socket.gethostname(), os.getpid()]).encode())
        names = {rank: f"name/{rank}" for rank in range(self.size)}
        places = [json.loads(name) for name in self.wait_for(names)]
        self.names = [f"rank {rank} ({host}, process {number})" for rank, (host, number) in enumerate(places)]
        self.hosts = [host for host, _ in places]

    def new_store(self) -> Any:
        """Another connection to the store, for torch.distributed's own use."""
        return PrefixStore(f"{self._start}/torch", self._connect())

    def _connect(self, *, is_server: bool = False) -> Any:
        return self.place.connect(size=self.size, timeout=timedelta(seconds=START_SECONDS), is_server=is_server)

    def _join(self) -> str:
        """Agree on a key prefix for this start of the job, because the store may still hold keys of an earlier start.

        Every process writes a random word. Rank 0 collects the words until each process has found its own word in the
        collection. The prefix is a hash of the collection.
        """
        mine = uuid.uuid4().hex
        self.put(f"word/{self.rank}", mine.encode())
        words = [f"word/{rank}" for rank in range(self.size)]
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.rank == 0 and self._has(words):
                self.put("words", b" ".join(self._values(words)))
            collected = self._values(["words"])[0] if self._has(["words"]) else b""
            if mine in collected.decode().split():
                name = hashlib.sha256(collected).hexdigest()[:16]
                self.put(f"{name}/found/{self.rank}", b"")
                if self.rank == 0 and self._has([f"{name}/found/{rank}" for rank in range(self.size)]):
                    self.put(f"{name}/started", b"")
                if self._has([f"{name}/started"]):
                    return name
            time.sleep(_POLL_SECONDS[0])
        raise PeerError(
            f"not all of the {self.size} processes started within {START_SECONDS:.0f} s; check the other machines"
        )

    def put(self, key: str, value: bytes) -> None:
        """Publish `value` under the name `key`."""
        self._ask(lambda store: store.set(key, value))

    def wait_for(self, keys: Mapping[int, str]) -> list[bytes]:
        """Wait until all `keys` are published, and return their values. `keys` maps each rank to the key it publishes.

        After a long wait, the lowest rank that is not late prints which processes are late.

        Raises:
            PeerError: when a process is lost or stalled.
            OnecycleError: when another process ended with an error.
        """
        pause, longest = _POLL_SECONDS
        patient_until = time.monotonic() + SILENT_SECONDS
        with self.watchdog.paused():
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
        """Check that every other process still sends heartbeats and has not failed.

        Raises:
            PeerError: when a process is silent or stalled, or has itself lost a process.
            OnecycleError: when a process ended with another error. The raised error has the same type, and its
                message names the process.
        """
        self._require_launcher()
        now = time.monotonic()
        # If this process's own heartbeats do not come back, the store itself does not answer.
        if now - min(self._store_answered, self._last_heard[self.rank]) > SILENT_SECONDS:
            raise self._peer_error(
                f"{self.place}, through which the processes find each other, has not answered "
                f"for {SILENT_SECONDS:.0f} s; check that machine and the link to it"
            )
        for rank, heartbeats in enumerate(self._heartbeats):
            if heartbeats >= _FAILED and rank != self.rank:
                self._is_broken = True
                self._raise_error_of(rank)
        silent = [
            name for name, heard in zip(self.names, self._last_heard, strict=True) if now - heard > SILENT_SECONDS
        ]
        if silent:
            raise self._peer_error(
                f"{' and '.join(silent)} did not answer for {SILENT_SECONDS:.0f} s; check each named machine "
                "and the link to it"
            )

    def _require_launcher(self) -> None:
        if self.place.is_abandoned:
            raise self._peer_error(
                "the process that started the others is gone; `onecycle train --resume` with the run folder continues "
                "from the last checkpoint"
            )

    def raise_lost(
        self,
        cause: BaseException | None = None,
        otherwise: str = "the values they exchange do not arrive; check the links between them",
    ) -> NoReturn:
        """Raise the error for a lost connection.

        The message names the processes that are gone. If all are alive, it gives `otherwise` as the reason.

        Raises:
            OnecycleError: always.
        """
        before: list[int] = []
        # Heartbeats count in the second wait. In the first, the last heartbeat of a lost process may still arrive.
        for periods in (1.5, 2.5):
            before = list(self._heartbeats)
            deadline = time.monotonic() + periods * HEARTBEAT_SECONDS
            while time.monotonic() < deadline:
                self.require_alive()
                time.sleep(HEARTBEAT_SECONDS / 10)
        if self._heartbeats[self.rank] == before[self.rank]:
            raise self._peer_error(f"{self.place}, through which the processes find each other, is gone")
        gone = [self.names[rank] for rank in range(self.size) if self._heartbeats[rank] == before[rank]]
        if not gone:
            raise self._peer_error(f"the processes are alive, but {otherwise}") from cause
        raise self._peer_error(f"{' and '.join(gone)} {'is' if len(gone) == 1 else 'are'} gone") from cause

    def publish_error(self, error: OnecycleError) -> None:
        """Publish the error that ends this process, so that the other processes end with the same error."""
        with suppress(OnecycleError):
            self._ask(lambda store: self._publish_error(store, error))

    def announce_end(self) -> None:
        """Announce that the main process has cleaned up after an error and is about to print the error."""
        with suppress(OnecycleError):
            self.put("main process ends", b"")

    def wait_for_end_of(self, main_rank: int, seconds: float) -> bool:
        """Wait at most `seconds` for the main process to announce its end. Returns whether it has announced its end.

        The wait also ends when the main process has stalled or sends no heartbeats. Without this wait, this process
        would end first, and the launcher would then end the main process, too.
        """
        deadline = time.monotonic() + seconds
        with suppress(OnecycleError):
            while time.monotonic() < min(deadline, self._last_heard[main_rank] + 3 * HEARTBEAT_SECONDS):
                if self._ask(lambda store: store.check([f"stalled/{main_rank}"])):
                    return False
                if self._ask(lambda store: store.check(["main process ends"])):
                    self._ended.set()  # stop using the store, which may end with the main process
                    time.sleep(HEARTBEAT_SECONDS)  # give the main process time to print its error
                    return True
                time.sleep(HEARTBEAT_SECONDS / 10)
        return False

    def leave(self, exit_code: int) -> None:
        """Stop the heartbeats, because this process is about to end with `exit_code`."""
        if self.place.is_hosted_here:
            # The store ends with this process. Wait, because other processes may still read the error from the store.
            time.sleep(1.5 * HEARTBEAT_SECONDS)
        self._ended.set()
        self._requests.put((lambda store: None, queue.Queue()))  # this empty request wakes the heartbeat thread
        self._thread.join(HEARTBEAT_SECONDS)
        if self._is_broken:  # avoid a normal exit, in which gloo would wait for the lost processes
            atexit.register(_exit_at_once, exit_code)
        elif is_initialized():
            with suppress(RuntimeError):
                destroy_process_group()

    def _peer_error(self, message: str) -> PeerError:
        self._is_broken = True
        return PeerError(message)

    def _publish_error(self, store: Any, error: OnecycleError) -> None:
        kind = next(name for name, kind in _KINDS.items() if isinstance(error, kind))
        store.set(f"error/{self.rank}", json.dumps([kind, str(error)]))
        store.add(f"heartbeat/{self.rank}", _FAILED)

    def _raise_error_of(self, rank: int) -> NoReturn:
        (published,) = self._ask(lambda store: store.multi_get([f"error/{rank}"]))
        kind, message = json.loads(published)
        raise _KINDS[kind](message if message.startswith("rank ") else f"{self.names[rank]}: {message}")

    def _ask(self, request: Callable[[Any], Any]) -> Any:
        """Let the heartbeat thread call `request` with the store, and return the result."""
        self._require_launcher()
        answers: queue.Queue[Any] = queue.Queue()
        self._requests.put((request, answers))
        with self.watchdog.paused():
            while True:
                try:
                    answer = answers.get(timeout=1)
                except queue.Empty:
                    if time.monotonic() - self._store_answered > SILENT_SECONDS:
                        self.require_alive()
                    continue
                if isinstance(answer, Exception):
                    raise self._peer_error(
                        f"{self.place}, through which the processes find each other, is gone"
                    ) from answer
                return answer

    def _run(self) -> None:
        due = 0.0
        while not self._ended.is_set():
            if self._is_joined and time.monotonic() >= due:
                due = time.monotonic() + HEARTBEAT_SECONDS
                with suppress(RuntimeError):
                    self._exchange_heartbeats()
            try:
                request, answers = self._requests.get(timeout=max(0.1, due - time.monotonic()))
            except queue.Empty:
                continue
            try:
                answers.put(request(self._store))
                self._store_answered = time.monotonic()
            except RuntimeError as error:
                answers.put(error)

    def _exchange_heartbeats(self) -> None:
        for rank in range(self.size):
            heartbeats = self._store.add(f"heartbeat/{rank}", int(rank == self.rank))  # adding 0 only reads
            if heartbeats != self._heartbeats[rank]:
                self._heartbeats[rank], self._last_heard[rank] = heartbeats, time.monotonic()
        self._store_answered = time.monotonic()
        if self.watchdog.has_stalled(SILENT_SECONDS):
            stalled = f"has made no progress for {SILENT_SECONDS:.0f} s; check its disk and its data"
            self._store.set(f"stalled/{self.rank}", "")
            self._publish_error(self._store, PeerError(f"{self.names[self.rank]} {stalled}"))


def _exit_at_once(exit_code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
