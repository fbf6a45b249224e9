"""What the bits of a run depend on, and whether it is what it was when the run began."""

from collections.abc import Mapping
from typing import Any

from onecycle.core.errors import InputError
from onecycle.run.build import Experiment
from onecycle.run.environment import COMPUTING, versions

_REASONS = {
    "epochs": "the rate of every step depends on their number, so a longer run is another run",
}


def identity(experiment: Experiment) -> dict[str, Any]:
    """What the bits of a run depend on, as plain values: configuration, data, versions, and the way it computes."""
    return {
        **experiment.config.defining_values(),
        "data": experiment.dataset.fingerprint,
        **versions(COMPUTING),
        **{f"acceleration.{name}": value for name, value in experiment.acceleration.to_json().items()},
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is not the same in both, in words."""
    names = [name for name in (*then, *(now.keys() - then.keys())) if then.get(name) != now.get(name)]
    return [
        f"{name} was {then.get(name)} and is {now.get(name)}" + (f" ({_REASONS[name]})" if name in _REASONS else "")
        for name in names
    ]


def require_same(then: Mapping[str, Any], now: Mapping[str, Any], what: str) -> None:
    """Refuse to go on where the two differ; `what` begins the message.

    Raises:
        InputError: with all differences.
    """
    if found := differences(then, now):
        raise InputError(f"{what}: {'; '.join(found)}")
