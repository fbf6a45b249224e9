"""Several processes that compute one run: who they are, what they tell each other, and who of them leads.

Whoever starts them (torchrun, or `onecycle train --processes`) gives each a rank. Small values go through the store of
torch.distributed, which bears with a process that reads its data for minutes as long as it lives; sums go through gloo.
A process that is alone is rank 0 of 1, and all of this is trivial for it.
"""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from onecycle.core import signals
from onecycle.core.errors import InputError, LostError, Silent
from onecycle.distributed import job, peers
from onecycle.distributed.interfaces import interface_towards
from onecycle.distributed.peers import Peers

SAVING_SECONDS = 25.0  # for the one that leads to save, when all are told to stop; after 30 they are ended
LONGEST_SECONDS = 300.0  # that processes which live are waited for in a sum

T = TypeVar("T")


class Ranks:
    """A process that is alone; `rank` of `size`, and `leader` is the rank of the one that writes and draws."""

    rank = 0
    size = 1
    leader = 0
    names: Sequence[str] = ("rank 0",)

    @property
    def leads(self) -> bool:
        return self.rank == self.leader

    def block(self, count: int) -> range:
        """Which of `count` things in a row are this rank's."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def of_all(self, value: Any) -> list[Any]:
        """The `value` of each rank; plain values, which JSON can hold.

        Raises:
            InputError: when a rank has gone or does not answer; the message names it.
        """
        return [value]

    def from_leader(self, make: Callable[[], T]) -> T:
        """What `make` makes on the rank that leads; plain values.

        Raises:
            InputError: as `of_all`.
        """
        return make()

    def bytes_from_leader(self, content: bytes) -> bytes:
        """The `content` that the rank that leads has.

        Raises:
            InputError: as `of_all`.
        """
        return content

    def concatenated(self, values: torch.Tensor) -> torch.Tensor:
        """The rows `[n,…]` of all ranks, in their order; they may have different numbers of them.

        Raises:
            InputError: as `of_all`.
        """
        return values

    def end_together(self) -> None:
        """Say that the run is done, as the rank that leads; wait until it is, as another.

        Raises:
            InputError: as `of_all`.
        """

    def expect_soon(self, soon: bool) -> None:
        """Say whether the others may expect a sum of this rank soon: who computes nothing for long then hangs."""


class Several(Ranks):
    """A process that has others beside it."""

    def __init__(self, others: Peers) -> None:
        self._peers = others
        self.rank, self.size, self.names = others.rank, others.size, others.names
        self.groups: list[Any] = []
        self._asked = 0

    def connect(self) -> None:
        """Connect this process to each of the others, for sums.

        Raises:
            InputError: when one of them has gone, does not answer or cannot be reached.
        """
        thread = threading.Thread(target=self._connect, daemon=True)
        thread.start()  # which may wait for good
        until = time.monotonic() + peers.SILENT_SECONDS
        while thread.is_alive() and time.monotonic() < until:
            thread.join(1)
            self._peers.require_alive()
        if len(self.groups) < 2:
            interface = os.environ.get("GLOO_SOCKET_IFNAME", "of this machine's name")
            raise self._peers.lost(
                f"they do not reach each other through the network interface {interface}; look at the firewall, which "
                "must let through all ports between them, and at $GLOO_SOCKET_IFNAME"
            )

    def _connect(self) -> None:
        limit = timedelta(seconds=LONGEST_SECONDS)
        with suppress(RuntimeError):
            distributed.init_process_group(
                "gloo", store=self._peers.store(), rank=self.rank, world_size=self.size, timeout=limit
            )
            # Two, so that the sums of two kinds that go on at once each keep their own order.
            self.groups = [distributed.group.WORLD, distributed.new_group(backend="gloo", timeout=limit)]

    def of_all(self, value: Any) -> list[Any]:
        self._asked += 1
        keys = {rank: f"{self._asked}/{rank}" for rank in range(self.size)}
        self._peers.put(keys[self.rank], json.dumps(value).encode())
        return [json.loads(content) for content in self._peers.wait_for(keys)]

    def from_leader(self, make: Callable[[], T]) -> T:
        self._asked += 1
        key = f"{self._asked}/leader"
        if self.leads:
            self._peers.put(key, json.dumps(make()).encode())
        value: T = json.loads(self._peers.wait_for({self.leader: key})[0])
        return value

    def bytes_from_leader(self, content: bytes) -> bytes:
        length = self.from_leader(lambda: len(content))
        if not length:
            return b""
        values = torch.frombuffer(bytearray(content), dtype=torch.uint8) if self.leads else torch.empty(length).byte()
        self.wait(distributed.broadcast(values, self.leader, group=self.groups[0], async_op=True))
        return values.numpy().tobytes()

    def concatenated(self, values: torch.Tensor) -> torch.Tensor:
        shapes = self.of_all(list(values.shape))
        counts = [shape[0] for shape in shapes]
        padded = values.new_zeros(next(shape for shape in shapes if shape[0] == max(counts)))
        if len(values):  # else it has not the others' shape
            padded[: len(values)] = values
        rows = [torch.empty_like(padded) for _ in counts]
        self.wait(distributed.all_gather(rows, padded, group=self.groups[0], async_op=True))
        return torch.cat([part[:count] for part, count in zip(rows, counts, strict=True)])

    def end_together(self) -> None:
        if self.leads:
            self._peers.put("done", b"")
        else:
            self._peers.wait_for({self.leader: "done"})

    def expect_soon(self, soon: bool) -> None:
        self._peers.watch.expected_soon = soon

    def wait(self, work: Any) -> None:
        """Wait for what was begun in one of the `groups`, as long as all the others live.

        Raises:
            InputError: when one of them has gone or does not answer.
        """
        self.expect_soon(False)
        while not work.is_completed():
            with suppress(RuntimeError):  # it takes longer
                work.wait(timedelta(seconds=1))
            self._peers.require_alive()
        try:
            work.wait()
        except RuntimeError as error:
            raise self._peers.lost() from error


_alone = Ranks()
_current = _alone


def current() -> Ranks:
    """This process among those that compute its run."""
    return _current


def several() -> Several | None:
    """The same, where there are others."""
    return _current if isinstance(_current, Several) else None


@contextmanager
def joined() -> Iterator[Ranks]:
    """Inside, this process is one of those that it was started with. An error that several meet is told by one.

    Raises:
        InputError: when one of the others has gone, does not answer or was ended by an error of its own.
        Silent: when another one tells why this one ends.
    """
    global _current
    if not job.is_part() or int(os.environ["WORLD_SIZE"]) == 1 or _current is not _alone:
        yield _current
        return
    others = Peers()
    if "GLOO_SOCKET_IFNAME" not in os.environ and (interface := _interface_towards_others(others)):
        os.environ["GLOO_SOCKET_IFNAME"] = interface  # else gloo takes that of this machine's name, which may be lo
    _current = ranks = Several(others)
    exit_code = 1
    with signals.together():
        try:
            ranks.connect()
            yield ranks
            exit_code = 0
        except signals.Interrupted as stopped:
            exit_code = stopped.exit_code
            why = LostError(f"was told to stop by {signal.Signals(stopped.number).name}")
            _told_by_leader(None if signals.agreed() else why, others, ranks)
            if ranks.leads:
                raise
            raise Silent(exit_code) from None
        except InputError as error:
            exit_code = 2
            if _told_by_leader(error, others, ranks):
                raise Silent(exit_code) from error
            raise
        except Exception as error:  # a worker that died, say: with its traceback, here
            exit_code = 2 if isinstance(error, OSError) else 1
            _told_by_leader(LostError(f"{type(error).__name__}: {error}"), others, ranks)
            raise
        finally:
            with signals.held():
                others.leave(exit_code)
            _current = _alone


def _told_by_leader(why: InputError | None, others: Peers, ranks: Ranks) -> bool:
    """Tell the others why this process ends, unless they know; whether the one that leads says so, too."""
    with signals.held():  # whoever started them ends all of them with the first
        if why:
            others.say_last(why)
        if ranks.leads:
            others.tell()
            return False
        return others.wait_until_told(SAVING_SECONDS, ranks.leader)


def _interface_towards_others(others: Peers) -> str | None:
    hosts = [host for host in (os.environ["MASTER_ADDR"], *others.hosts) if host != socket.gethostname()]
    return next(filter(None, map(interface_towards, hosts)), None)
