from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onecycle.distributed.deterministic_reduce import _Subtree, _subtrees_of_ranks, _total, merged


def divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


@given(shards=st.integers(1, 40), seed=st.integers(0, 100))
def test_the_sum_has_the_same_bits_for_any_number_of_processes(shards: int, seed: int) -> None:
    leaves = torch.randn(shards, 3, generator=torch.Generator().manual_seed(seed)) * torch.logspace(0, 6, 3)

    def total(of_process: Sequence[range]) -> torch.Tensor:
        return _total(
            subtree
            for shards_of_one in of_process
            for subtree in merged(_Subtree(shard, 1, leaves[shard].clone()) for shard in shards_of_one)
        )

    expected = total([range(shards)])
    for processes in divisors(shards):
        each = shards // processes
        assert torch.equal(total([range(start, start + each) for start in range(0, shards, each)]), expected)


@pytest.mark.parametrize(("shards", "ranks", "sent"), [(8, 2, 1), (8, 8, 1), (12, 3, 1), (12, 4, 2), (6, 2, 2)])
def test_a_process_with_a_whole_subtree_sends_one_sum(shards: int, ranks: int, sent: int) -> None:
    assert max(map(len, _subtrees_of_ranks(shards, ranks))) == sent
