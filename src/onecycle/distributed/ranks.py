"""Several processes that compute one run: who they are, what they tell each other, and who of them leads.

Whoever starts them (torchrun, or `onecycle train --processes`) gives each a rank. Small values go through the store of
torch.distributed, which bears with a process that reads its data for minutes as long as it lives; sums go through gloo.
A process that is alone is rank 0 of 1, and all of this is trivial for it.
"""

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from onecycle import interruption
from onecycle.distributed import job
from onecycle.distributed.interfaces import interface_towards
from onecycle.distributed.peers import Peers
from onecycle.errors import InputError, LostError, Silent

SAVING_SECONDS = 25.0  # for the one that leads to save, when all are told to stop; after 30 they are ended
LONGEST_SECONDS = 300.0  # that processes which live are waited for in a sum, or to connect

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

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self.rank, self.size, self.names = peers.rank, peers.size, peers.names
        self._asked = 0
        limit = timedelta(seconds=LONGEST_SECONDS)
        try:
            distributed.init_process_group(
                "gloo", store=peers.store(), rank=self.rank, world_size=self.size, timeout=limit
            )
            # Two, so that the sums of two kinds that go on at once each keep their own order.
            self.groups = [distributed.group.WORLD, distributed.new_group(backend="gloo", timeout=limit)]
        except RuntimeError as error:
            raise peers.lost() from error

    def of_all(self, value: Any) -> list[Any]:
        self._asked += 1
        keys = [f"{self._asked}/{rank}" for rank in range(self.size)]
        self._peers.put(keys[self.rank], json.dumps(value).encode())
        return [json.loads(content) for content in self._peers.wait_for(keys)]

    def from_leader(self, make: Callable[[], T]) -> T:
        self._asked += 1
        key = f"{self._asked}/leader"
        if self.leads:
            self._peers.put(key, json.dumps(make()).encode())
        value: T = json.loads(self._peers.wait_for([key])[0])
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
            self._peers.tell()
        else:
            self._peers.wait_for(["told"])

    def expect_soon(self, soon: bool) -> None:
        self._peers.expected_soon = soon

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
    peers = Peers()
    if "GLOO_SOCKET_IFNAME" not in os.environ and (interface := _interface_towards_others(peers)):
        os.environ["GLOO_SOCKET_IFNAME"] = interface  # else gloo takes that of this machine's name, which may be lo
    _current = ranks = Several(peers)
    with interruption.together():
        try:
            yield ranks
        except interruption.Interrupted as stopped:
            if ranks.leads:
                peers.tell()
                raise
            with interruption.held():
                if not interruption.agreed():  # the others know nothing of it
                    peers.say_last(LostError(f"was told to stop by {signal.Signals(stopped.number).name}"))
                peers.wait_until_told(SAVING_SECONDS, ranks.leader)
            raise Silent(stopped.exit_code) from None
        except InputError as error:
            if _told_by_leader(error, peers, ranks):
                raise Silent(2) from error
            raise
        except Exception as error:  # a worker that died, say: with its traceback, here
            _told_by_leader(LostError(f"{type(error).__name__}: {error}"), peers, ranks)
            raise
        finally:
            peers.leave()
            _current = _alone


def _told_by_leader(error: InputError, peers: Peers, ranks: Ranks) -> bool:
    """Tell the others why this process ends with an error; whether the one that leads says so, too."""
    with interruption.held():  # whoever started them ends all of them with the first
        peers.say_last(error)
        if ranks.leads:
            peers.tell()
            return False
        return peers.wait_until_told(SAVING_SECONDS, ranks.leader)


def _interface_towards_others(peers: Peers) -> str | None:
    others = [host for host in (os.environ["MASTER_ADDR"], *peers.hosts) if host != socket.gethostname()]
    return next(filter(None, map(interface_towards, others)), None)


def require_even(shards: int, processes: int) -> None:
    """Refuse so many shards where they cannot be shared out evenly.

    Raises:
        InputError: then.
    """
    if shards % processes:
        possible = [str(size) for size in range(1, shards + 1) if shards % size == 0]
        raise InputError(
            f"--shards is {shards}, and {processes} processes cannot share them out evenly; take "
            f"{' or '.join(possible)}, or give a multiple of {processes} for --shards"
        )


def require_alike(what: Mapping[str, Any]) -> None:
    """Refuse to compute with ranks that differ in any of `what`.

    Raises:
        InputError: with each value that is not the same everywhere, and the ranks that have it.
    """
    ranks = current()
    of_all: Sequence[Mapping[str, Any]] = ranks.of_all(dict(what))
    names = dict.fromkeys(name for values in of_all for name in values)
    if differing := [name for name in names if any(values.get(name) != of_all[0].get(name) for values in of_all)]:
        told = "; ".join(_by_rank(name, [values.get(name) for values in of_all]) for name in differing)
        raise InputError(f"the processes do not compute the same: {told}; make these the same everywhere")


def agree_to_stop() -> None:
    """Let a signal that has come to one process stop all, where each is about to check whether to stop.

    Raises:
        InputError: as `Ranks.of_all`.
    """
    if number := max(current().of_all(interruption.received())):
        interruption.agree(number)


def _by_rank(name: str, values: Sequence[Any]) -> str:
    ranks: dict[str, list[str]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(str(value), []).append(str(rank))
    parts = [f"{value} on rank{'s' * (len(which) > 1)} {', '.join(which)}" for value, which in ranks.items()]
    return f"{name} is {' and '.join(parts)}"
