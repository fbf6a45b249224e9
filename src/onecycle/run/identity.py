"""The values that determine the results of a run, bit for bit, and a check that these values have not changed."""

from collections.abc import Mapping
from typing import Any

from onecycle.core.errors import InputError
from onecycle.models import BackboneClassifier
from onecycle.models.backbones import fingerprint
from onecycle.run.build import Experiment
from onecycle.run.environment import COMPUTING, versions

_REASONS = {
    "epochs": "the learning rate of every step depends on it, so this would be another run",
}


def identity(experiment: Experiment) -> dict[str, Any]:
    """All values that determine the results of a run, bit for bit: configuration, data, versions and compute plan."""
    validation = experiment.dataset.validation
    return {
        **experiment.config.defining_values(),
        "data": experiment.dataset.fingerprint,
        **({} if validation is None else {"validation set": validation.fingerprint}),
        **versions(COMPUTING),
        **_of_backbone(experiment),
        **{f"compute_plan.{name}": value for name, value in experiment.plan.to_json().items()},
    }


def _of_backbone(experiment: Experiment) -> dict[str, str]:
    """The fingerprint of pretrained layers. They come from outside the run."""
    model = experiment.model
    if not isinstance(model, BackboneClassifier):
        return {}
    return {"backbone_weights": fingerprint(experiment.config.backbone, model.backbone)}


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line of text for each value that differs."""
    names = [name for name in (*then, *(now.keys() - then.keys())) if then.get(name) != now.get(name)]
    return [
        f"{name} was {then.get(name)} and is {now.get(name)}" + (f" ({_REASONS[name]})" if name in _REASONS else "")
        for name in names
    ]


def require_same(then: Mapping[str, Any], now: Mapping[str, Any], message: str) -> None:
    """Check that `then` and `now` are equal. The text of the error starts with `message`.

    Raises:
        InputError: when values differ. The error lists all differences.
    """
    if found := differences(then, now):
        raise InputError(f"{message}: {'; '.join(found)}; undo this, or start a new run")
