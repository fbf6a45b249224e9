"""Checks that all processes of a run compute the same thing."""

from collections.abc import Mapping, Sequence
from typing import Any

from onecycle.core import signals
from onecycle.core.errors import InputError
from onecycle.distributed.process_group import ProcessGroup


def require_divisible(shards: int, processes: int) -> None:
    """Check that every process gets the same number of shards.

    Raises:
        InputError: when `shards` is not a multiple of `processes`.
    """
    if shards % processes:
        possible = [str(size) for size in range(1, shards + 1) if shards % size == 0]
        raise InputError(
            f"--shards is {shards}, which {processes} processes cannot share evenly; use {' or '.join(possible)} "
            f"processes, or set --shards to a multiple of {processes}"
        )


def require_consistent(values: Mapping[str, Any], group: ProcessGroup) -> None:
    """Check that every process of `group` has the same `values`.

    Raises:
        InputError: when values differ. The message lists each value with its ranks.
        PeerError: when a process is lost.
    """
    gathered: Sequence[Mapping[str, Any]] = group.all_gather_object(dict(values))
    names = dict.fromkeys(name for of_rank in gathered for name in of_rank)
    if differing := [name for name in names if any(each.get(name) != gathered[0].get(name) for each in gathered)]:
        differences = "; ".join(_by_rank(name, [each.get(name) for each in gathered]) for name in differing)
        raise InputError(f"the processes differ: {differences}; make these the same on all of them")


def agree_to_stop(group: ProcessGroup) -> None:
    """If any process of `group` has received a signal, make all processes stop at their next check for signals.

    Raises:
        PeerError: when a process is lost.
    """
    if number := group.all_reduce_max(signals.received()):
        signals.agree(number)


def _by_rank(name: str, values: Sequence[Any]) -> str:
    ranks_of: dict[str, list[str]] = {}
    for rank, value in enumerate(values):
        ranks_of.setdefault(str(value), []).append(str(rank))
    parts = [f"{value} on rank{'s' * (len(ranks) > 1)} {', '.join(ranks)}" for value, ranks in ranks_of.items()]
    return f"{name} is {' and '.join(parts)}"
