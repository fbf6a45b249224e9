"""What must hold of the processes that compute a run together."""

from collections.abc import Mapping, Sequence
from typing import Any

from onecycle.core import signals
from onecycle.core.errors import InputError
from onecycle.distributed import ranks


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
    of_all: Sequence[Mapping[str, Any]] = ranks.current().of_all(dict(what))
    names = dict.fromkeys(name for values in of_all for name in values)
    if differing := [name for name in names if any(values.get(name) != of_all[0].get(name) for values in of_all)]:
        told = "; ".join(_by_rank(name, [values.get(name) for values in of_all]) for name in differing)
        raise InputError(f"the processes do not compute the same: {told}; make these the same everywhere")


def agree_to_stop() -> None:
    """Let a signal that has come to one process stop all, where each is about to check whether to stop.

    Raises:
        InputError: as `ranks.Ranks.of_all`.
    """
    if number := max(ranks.current().of_all(signals.received())):
        signals.agree(number)


def _by_rank(name: str, values: Sequence[Any]) -> str:
    ranks_of: dict[str, list[str]] = {}
    for rank, value in enumerate(values):
        ranks_of.setdefault(str(value), []).append(str(rank))
    parts = [f"{value} on rank{'s' * (len(which) > 1)} {', '.join(which)}" for value, which in ranks_of.items()]
    return f"{name} is {' and '.join(parts)}"
