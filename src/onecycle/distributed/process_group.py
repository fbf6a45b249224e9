"""The processes that compute one run together, and what they exchange.

torchrun, or `onecycle train --processes`, gives every process a rank. Small values go through a store of
torch.distributed. A process waits for a value as long as the sender is alive, even if the sender reads data for
minutes. Tensors go through gloo. A single process is rank 0 of 1.
"""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from onecycle.core import signals
from onecycle.core.errors import OnecycleError, PeerError, ReportedElsewhere
from onecycle.distributed import heartbeat, job
from onecycle.distributed.heartbeat import Heartbeat
from onecycle.distributed.network_interfaces import interface_towards

# Other processes wait this long for the main process to save. Launchers send SIGKILL 30 s after SIGTERM.
SAVING_SECONDS = 25.0
LONGEST_SECONDS = 300.0  # timeout of a collective

T = TypeVar("T")


class ProcessGroup:
    """The processes of a run. This base class is for a run in a single process, where collectives return at once.

    `GlooProcessGroup` is the group of several processes. The process whose `rank` is `main_rank` is the main process:
    only it writes the run folder and prints.
    """

    rank = 0
    size = 1
    main_rank = 0
    names: Sequence[str] = ("rank 0",)

    @property
    def is_main_process(self) -> bool:
        return self.rank == self.main_rank

    def shard_range(self, count: int) -> range:
        """This rank's share of `count` consecutive items."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def all_gather_object(self, value: Any) -> list[Any]:
        """The `value` of every rank, in the order of the ranks. Values must be serializable as JSON.

        Raises:
            PeerError: when a process is lost; the message names it.
        """
        return [value]

    def broadcast_object(self, make: Callable[[], T]) -> T:
        """The result of `make` on the main process. The result must be serializable as JSON.

        Raises:
            PeerError: when a process is lost.
        """
        return make()

    def broadcast_bytes(self, content: bytes) -> bytes:
        """The `content` that the main process passes. The `content` of other processes is ignored.

        Raises:
            PeerError: when a process is lost.
        """
        return content

    def all_gather(self, values: torch.Tensor) -> torch.Tensor:
        """The rows `[n,…]` of all ranks, in the order of the ranks. The number of rows may differ between ranks.

        Raises:
            PeerError: when a process is lost.
        """
        return values

    def all_reduce_max(self, value: int) -> int:
        """The largest `value` of all ranks.

        Raises:
            PeerError: when a process is lost.
        """
        return value

    def wait_for_main_process(self) -> None:
        """On the main process, announce the end of the run. On the other processes, wait for this announcement.

        Raises:
            PeerError: when a process is lost.
        """

    def watch_progress(self) -> AbstractContextManager[None]:
        """Inside the block, a watchdog tells the other processes if this process stalls outside collectives."""
        return nullcontext()


SINGLE_PROCESS = ProcessGroup()


class GlooProcessGroup(ProcessGroup):
    """A group of several processes that exchange tensors through gloo."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat
        self.rank, self.size, self.names = heartbeat.rank, heartbeat.size, heartbeat.names
        self.channels: list[Any] = []  # two torch process groups, each with all processes
        self._collectives = 0

    def connect(self) -> None:
        """Connect this process to each of the others through gloo.

        Raises:
            PeerError: when a process is lost or cannot be reached.
        """
        thread = threading.Thread(target=self._connect, daemon=True)
        thread.start()  # a thread, because connecting may block forever
        until = time.monotonic() + heartbeat.SILENT_SECONDS
        while thread.is_alive() and time.monotonic() < until:
            thread.join(1)
            self._heartbeat.require_alive()
        if len(self.channels) < 2:
            interface = os.environ.get("GLOO_SOCKET_IFNAME", "of this machine's name")
            self._heartbeat.raise_lost(
                otherwise=f"they cannot connect through the network interface {interface}; open all ports between "
                "them in the firewall, or set $GLOO_SOCKET_IFNAME to another interface"
            )

    def _connect(self) -> None:
        limit = timedelta(seconds=LONGEST_SECONDS)
        with suppress(RuntimeError):
            distributed.init_process_group(
                "gloo", store=self._heartbeat.new_store(), rank=self.rank, world_size=self.size, timeout=limit
            )
            # Each channel runs its own collectives in order. Two channels can be busy at the same time.
            self.channels = [distributed.group.WORLD, distributed.new_group(backend="gloo", timeout=limit)]

    def all_gather_object(self, value: Any) -> list[Any]:
        self._collectives += 1
        keys = {rank: f"{self._collectives}/{rank}" for rank in range(self.size)}
        self._heartbeat.put(keys[self.rank], json.dumps(value).encode())
        return [json.loads(content) for content in self._heartbeat.wait_for(keys)]

    def broadcast_object(self, make: Callable[[], T]) -> T:
        self._collectives += 1
        key = f"{self._collectives}/main"
        if self.is_main_process:
            self._heartbeat.put(key, json.dumps(make()).encode())
        value: T = json.loads(self._heartbeat.wait_for({self.main_rank: key})[0])
        return value

    def broadcast_bytes(self, content: bytes) -> bytes:
        length = self.broadcast_object(lambda: len(content))
        if not length:
            return b""
        is_sender = self.is_main_process
        values = torch.frombuffer(bytearray(content), dtype=torch.uint8) if is_sender else torch.empty(length).byte()
        self.wait(distributed.broadcast(values, self.main_rank, group=self.channels[0], async_op=True))
        return values.numpy().tobytes()

    def all_gather(self, values: torch.Tensor) -> torch.Tensor:
        shapes = self.all_gather_object(list(values.shape))
        counts = [shape[0] for shape in shapes]
        padded = values.new_zeros(next(shape for shape in shapes if shape[0] == max(counts)))
        if len(values):  # an empty `values` may have another `shape[1:]` than `padded`, and then cannot be copied
            padded[: len(values)] = values
        rows = [torch.empty_like(padded) for _ in counts]
        self.wait(distributed.all_gather(rows, padded, group=self.channels[0], async_op=True))
        return torch.cat([part[:count] for part, count in zip(rows, counts, strict=True)])

    def all_reduce_max(self, value: int) -> int:
        values = torch.tensor([value])
        self.wait(distributed.all_reduce(values, distributed.ReduceOp.MAX, group=self.channels[0], async_op=True))
        return int(values)

    def wait_for_main_process(self) -> None:
        if self.is_main_process:
            self._heartbeat.put("done", b"")
        else:
            self._heartbeat.wait_for({self.main_rank: "done"})

    def watch_progress(self) -> AbstractContextManager[None]:
        return self._heartbeat.watchdog.armed()

    def wait(self, work: Any) -> None:
        """Wait for an asynchronous collective on one of the `channels`, and check that all processes stay alive.

        Raises:
            PeerError: when a process is lost.
        """
        with self._heartbeat.watchdog.paused():
            while not work.is_completed():
                with suppress(RuntimeError):  # `wait` raises it if the collective is not complete after a second
                    work.wait(timedelta(seconds=1))
                self._heartbeat.require_alive()
            try:
                work.wait()
            except RuntimeError as error:
                self._heartbeat.raise_lost(error)


@contextmanager
def init() -> Iterator[ProcessGroup]:
    """Join the process group that torchrun's environment variables describe. Without torchrun, use `SINGLE_PROCESS`.

    When several processes fail, only the main process reports the error.

    Raises:
        PeerError: when another process is lost.
        OnecycleError: when another process ended with an error.
        ReportedElsewhere: when the main process reports why this process ends.
    """
    if not job.is_part() or int(os.environ["WORLD_SIZE"]) == 1:
        yield SINGLE_PROCESS
        return
    heartbeat = Heartbeat()
    if "GLOO_SOCKET_IFNAME" not in os.environ and (interface := _interface_towards_others(heartbeat)):
        # By default, gloo uses the interface of the host name, which may be the loopback interface.
        os.environ["GLOO_SOCKET_IFNAME"] = interface
    group = GlooProcessGroup(heartbeat)
    exit_code = 1
    with signals.together():
        try:
            group.connect()
            yield group
            exit_code = 0
        except signals.Interrupted as stopped:
            exit_code = stopped.exit_code
            reason = PeerError(f"received {signal.Signals(stopped.number).name}")
            _is_reported_elsewhere(None if signals.agreed() else reason, heartbeat, group)
            if group.is_main_process:
                raise
            raise ReportedElsewhere(exit_code) from None
        except OnecycleError as error:
            exit_code = 2
            if _is_reported_elsewhere(error, heartbeat, group):
                raise ReportedElsewhere(exit_code) from error
            raise
        except Exception as error:  # for example, a data worker died; this process prints the traceback
            exit_code = 2 if isinstance(error, OSError) else 1
            _is_reported_elsewhere(PeerError(f"{type(error).__name__}: {error}"), heartbeat, group)
            raise
        finally:
            with signals.held():
                heartbeat.leave(exit_code)


def _is_reported_elsewhere(error: OnecycleError | None, heartbeat: Heartbeat, group: ProcessGroup) -> bool:
    """Publish the `error` that ends this process. Returns whether the main process reports why this process ends.

    `error` is None if the other processes already know why this process ends. Then nothing is published.
    """
    with signals.held():  # ignore the signal that a launcher sends to all processes when the first one ends
        if error:
            heartbeat.publish_error(error)
        if group.is_main_process:
            heartbeat.announce_end()
            return False
        return heartbeat.wait_for_end_of(group.main_rank, SAVING_SECONDS)


def _interface_towards_others(heartbeat: Heartbeat) -> str | None:
    hosts = [host for host in (heartbeat.place.host, *heartbeat.hosts) if host != socket.gethostname()]
    return next(filter(None, map(interface_towards, hosts)), None)
