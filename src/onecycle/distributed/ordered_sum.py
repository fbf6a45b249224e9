"""Sums over all shards of a batch in the order of one binary tree, whoever has which of them."""

from collections.abc import Iterable
from functools import cache, reduce
from itertools import chain, pairwise
from typing import Any, NamedTuple

import torch
from torch import distributed

from onecycle.distributed import ranks


class OrderedSum:
    """A sum over all shards of vectors of one length.

    Each process adds up what it can of the tree. Every process then gets its slice of that from all, adds these to the
    end, and all get all slices: no more is sent than by any other all-reduce, where each has a whole part of the tree.
    """

    def __init__(self, length: int, shards: int, device: torch.device) -> None:
        self._others = ranks.several()
        self._shards = shards
        size = ranks.current().size
        self._slice = -(-length // size)
        self._length = size * self._slice
        self._device = device
        self._blocks: list[_Block] = []
        self._sent = self._received = self._result = torch.empty(0)
        self._scattering: Any = None
        self._gathering: Any = None

    def zeros(self) -> torch.Tensor:
        return torch.zeros(self._length, device=self._device)

    def add(self, shard: int, values: torch.Tensor) -> None:
        """Add those of one of this process' shards, which come in their order. Their memory is then the sum's own."""
        self._blocks = merged([*self._blocks, _Block(shard, 1, values)])
        if self._others and shard == self._others.block(self._shards)[-1]:
            self._scatter(self._others)

    def advance(self) -> bool:
        """Send this process' slice of the sum, if all that belongs to it has come; whether it is on its way.

        Several sums must be sent in one order by all processes: none before one that comes before it.
        """
        if self._scattering and self._scattering.is_completed():
            self.gather()
        return self._gathering is not None

    def gather(self) -> None:
        """Send this process' slice of the sum, as soon as all that belongs to it has come."""
        if self._others and not self._gathering:
            self._others.wait(self._scattering)
            parts = chain.from_iterable(_tree(self._shards, self._others.size))
            blocks = [_Block(*place, values) for place, values in zip(parts, self._received, strict=True)]
            whole = torch.empty(self._others.size, self._slice, device=self._device)
            self._gathering = distributed.all_gather(
                list(whole), _total(blocks), group=self._others.groups[1], async_op=True
            )
            self._result = whole.view(-1)

    def result(self) -> torch.Tensor:
        """The sum `[N]`, with something more at its end."""
        if not self._others:
            return _total(self._blocks)
        self.gather()
        self._others.wait(self._gathering)
        return self._result

    def _scatter(self, others: ranks.Several) -> None:
        trees = _tree(self._shards, others.size)
        mine = [block.values.view(others.size, self._slice) for block in self._blocks]
        self._sent = torch.stack(mine, dim=1) if len(mine) > 1 else mine[0]  # [ranks, blocks, slice]
        self._received = self._sent.new_empty(sum(map(len, trees)), self._slice)
        self._scattering = distributed.all_to_all_single(
            self._received.view(-1),
            self._sent.view(-1),
            [len(tree) * self._slice for tree in trees],
            [len(mine) * self._slice] * others.size,
            group=others.groups[0],
            async_op=True,
        )


class _Block(NamedTuple):
    """The sum of `values` over so many shards from `start` on."""

    start: int
    shards: int
    values: torch.Tensor


def merged(blocks: Iterable[_Block]) -> list[_Block]:
    """`blocks` of shards that follow each other, with all pairs added that are the two halves of one in a binary tree.

    The tree is that of all numbers from 0 on: it has a block wherever its length is a power of two and its start a
    multiple of that. Values are added in place.
    """
    done: list[_Block] = []
    for block in blocks:
        done.append(block)
        while len(done) > 1 and done[-2].shards == done[-1].shards and done[-2].start % (2 * done[-1].shards) == 0:
            right, left = done.pop(), done.pop()
            done.append(_Block(left.start, 2 * left.shards, left.values.add_(right.values)))
    return done


def _total(blocks: Iterable[_Block]) -> torch.Tensor:
    return reduce(torch.add, [block.values for block in merged(blocks)])


@cache
def _tree(shards: int, size: int) -> list[list[tuple[int, int]]]:
    """The parts of the tree that each of `size` ranks has to send, as their start and their number of shards."""
    nothing = torch.empty(0)
    return [
        [(block.start, block.shards) for block in merged(_Block(shard, 1, nothing) for shard in range(*of_rank))]
        for of_rank in pairwise(shards * rank // size for rank in range(size + 1))
    ]
