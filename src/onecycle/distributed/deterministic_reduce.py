"""Sum over all shards of a batch in a fixed order. The bits of the sum do not depend on the number of processes."""

from collections.abc import Iterable
from functools import cache, reduce
from itertools import chain, pairwise
from typing import Any, NamedTuple

import torch
from torch import distributed

from onecycle.distributed.process_group import GlooProcessGroup, ProcessGroup


class DeterministicSum:
    """The sum of one vector from each shard. The vectors are added along one binary tree over all shards.

    Every process adds up the subtrees of its own shards. An all-to-all then gives each process one slice of every
    subtree's sum. Each process adds up its slices, and an all-gather sends the results to all processes. When the
    shards of a process form one whole subtree, the sum transfers no more bytes than an ordinary all-reduce.
    """

    def __init__(self, length: int, shards: int, device: torch.device, group: ProcessGroup) -> None:
        self._group = group if isinstance(group, GlooProcessGroup) else None
        self._shards = shards
        self._slice = -(-length // group.size)
        self._length = group.size * self._slice
        self._device = device
        self._subtrees: list[_Subtree] = []
        self._sent = self._received = self._result = torch.empty(0)
        self._scattering: Any = None
        self._gathering: Any = None

    def zeros(self) -> torch.Tensor:
        """A vector of zeros for one shard.

        Its length is the constructor's `length`, rounded up to a multiple of the number of processes.
        """
        return torch.zeros(self._length, device=self._device)

    def add(self, shard: int, values: torch.Tensor) -> None:
        """Add the `values` of `shard`. Call in ascending order of shards. The sum reuses the memory of `values`."""
        self._subtrees = merged([*self._subtrees, _Subtree(shard, 1, values)])
        if self._group and shard == self._group.shard_range(self._shards)[-1]:
            self._scatter(self._group)

    def advance(self) -> bool:
        """Start the all-gather if the all-to-all is done. Returns whether the all-gather has started.

        All processes must start the all-gathers of several sums in the same order.
        """
        if self._scattering and self._scattering.is_completed():
            self.gather()
        return self._gathering is not None

    def gather(self) -> None:
        """Wait for the all-to-all, then start the all-gather."""
        if self._group and not self._gathering:
            self._group.wait(self._scattering)
            places = chain.from_iterable(_subtrees_of_ranks(self._shards, self._group.size))
            subtrees = [_Subtree(*place, values) for place, values in zip(places, self._received, strict=True)]
            whole = torch.empty(self._group.size, self._slice, device=self._device)
            self._gathering = distributed.all_gather(
                list(whole), _total(subtrees), group=self._group.channels[1], async_op=True
            )
            self._result = whole.view(-1)

    def result(self) -> torch.Tensor:
        """The sum, float32 `[N]`. N is the length of the vectors from `zeros`."""
        if not self._group:
            return _total(self._subtrees)
        self.gather()
        self._group.wait(self._gathering)
        return self._result

    def _scatter(self, group: GlooProcessGroup) -> None:
        of_ranks = _subtrees_of_ranks(self._shards, group.size)
        mine = [subtree.values.view(group.size, self._slice) for subtree in self._subtrees]
        self._sent = torch.stack(mine, dim=1) if len(mine) > 1 else mine[0]  # [ranks, subtrees, slice]
        self._received = self._sent.new_empty(sum(map(len, of_ranks)), self._slice)
        self._scattering = distributed.all_to_all_single(
            self._received.view(-1),
            self._sent.view(-1),
            [len(subtrees) * self._slice for subtrees in of_ranks],
            [len(mine) * self._slice] * group.size,
            group=group.channels[0],
            async_op=True,
        )


class _Subtree(NamedTuple):
    """The sum of the values of `shards` consecutive shards, starting at shard `start`."""

    start: int
    shards: int
    values: torch.Tensor


def merged(subtrees: Iterable[_Subtree]) -> list[_Subtree]:
    """Merge siblings among `subtrees` until no siblings are left. Adds values in place.

    `subtrees` must cover consecutive shards. In the tree, for every power of two L, a subtree of L shards starts at
    every multiple of L.
    """
    done: list[_Subtree] = []
    for subtree in subtrees:
        done.append(subtree)
        while len(done) > 1 and done[-2].shards == done[-1].shards and done[-2].start % (2 * done[-1].shards) == 0:
            right, left = done.pop(), done.pop()
            done.append(_Subtree(left.start, 2 * left.shards, left.values.add_(right.values)))
    return done


def _total(subtrees: Iterable[_Subtree]) -> torch.Tensor:
    return reduce(torch.add, [subtree.values for subtree in merged(subtrees)])


@cache
def _subtrees_of_ranks(shards: int, size: int) -> list[list[tuple[int, int]]]:
    """For each of `size` ranks, the subtrees that the rank sends, each as (first shard, number of shards)."""
    nothing = torch.empty(0)
    return [
        [(tree.start, tree.shards) for tree in merged(_Subtree(shard, 1, nothing) for shard in range(*of_rank))]
        for of_rank in pairwise(shards * rank // size for rank in range(size + 1))
    ]
