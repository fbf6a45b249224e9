"""The configuration of a run: all groups of options in one object. `recipes` defines the named configurations."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from onecycle.core.errors import InputError, OnecycleError
from onecycle.core.older_records import with_current_names
from onecycle.core.option_groups import (
    AugmentationConfig,
    BatchedAugmentationConfig,
    ComputeConfig,
    DataConfig,
    NetworkConfig,
    OpenConfig,
    OptimizationConfig,
    OutputConfig,
    PretrainedNetworkConfig,
    RobustnessConfig,
    TrainingConfig,
    WhitenedNetworkConfig,
)
from onecycle.core.own_network import is_own_network
from onecycle.core.regular_files import read_regular
from onecycle.core.validated import OptionGroup

_MOST_BYTES = 2**20  # limit for the size of a saved configuration; a usual one has less than 2**11 bytes

GROUPS = (
    DataConfig,
    TrainingConfig,
    OptimizationConfig,
    NetworkConfig,
    PretrainedNetworkConfig,
    WhitenedNetworkConfig,
    AugmentationConfig,
    BatchedAugmentationConfig,
    RobustnessConfig,
    ComputeConfig,
    OutputConfig,
)


@dataclass(frozen=True, kw_only=True)
class Config(  # the groups are in reverse order, because a dataclass puts the fields of its last base first
    OpenConfig,
    OutputConfig,
    ComputeConfig,
    RobustnessConfig,
    BatchedAugmentationConfig,
    AugmentationConfig,
    WhitenedNetworkConfig,
    PretrainedNetworkConfig,
    NetworkConfig,
    OptimizationConfig,
    TrainingConfig,
    DataConfig,
):
    """The whole configuration of a run: the fields of all groups in one object.

    A function that needs only one group takes an argument of that group's type.
    `dataclasses.replace(BASELINE, epochs=12)` makes a variant of the baseline.

    Raises:
        InputError: when a value is not allowed; the message names the option, the value and what is allowed.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("shards", self.shards <= self.batch_size, f"at most --batch-size, which is {self.batch_size}")
        if self.augmentation == "albumentations":
            self._require_defaults("albumentations", BatchedAugmentationConfig())
        if self.network != "whitened_convnet":
            name = {"custom_resnet": "the custom ResNet", "pretrained": "a pretrained network"}.get(
                self.network, "your own network"
            )
            self._require("optimizer", self.optimizer == "adam", f"adam with {name}")
            self._require_defaults(name, WhitenedNetworkConfig())
        if self.network != "pretrained":
            self._require_defaults("a network that is not pretrained", PretrainedNetworkConfig())
        elif self.freeze_backbone:
            self._require("augmentation", self.augmentation == "batched", "batched with a frozen backbone")
        if not is_own_network(self.network):
            self._require("network_sha256", self.network_sha256 is None, "unset without a network of your own")
        is_last = not self.sizes or self.sizes[-1] == self.size or "sizes" in self.from_data
        self._require("sizes", is_last, f"sizes that end with --size; use --sizes {self.size}, or several")
        if self.optimizer == "adam":
            self._require("bias_lr_scale", self.bias_lr_scale == 1, "1 with adam")
            self._require("whitening_epochs", self.whitening_epochs is None, "unset with adam")

    def _require_defaults(self, reason: str, defaults: OptionGroup) -> None:
        for field, value in vars(defaults).items():
            self._require(field, getattr(self, field) == value, f"{value} with {reason}")

    def to_json(self) -> dict[str, Any]:
        lists = {field: list(getattr(self, field)) for field in _LISTS}
        return {**asdict(self), **lists, "out": str(self.out)}

    def defining_values(self) -> dict[str, Any]:
        """The fields that the result of a run depends on, with their values."""
        return {name: value for name, value in self.to_json().items() if name not in _WITHOUT_EFFECT}

    def leads_to(self, recorded: "Config") -> bool:
        """Whether a run that starts with this configuration can record the configuration `recorded`.

        A run determines open values before it records them: the options in `from_data`, and missing SHA-256 digests.
        All other values that the result depends on must be equal in both configurations.
        """
        theirs = recorded.defining_values()
        names: list[str] = list(self.from_data)
        if self.init and not self.init_sha256:
            names.append("init_sha256")
        if is_own_network(self.network) and not self.network_sha256:
            names.append("network_sha256")
        worked_out: dict[str, Any] = {"from_data": [], **{name: theirs[name] for name in names}}
        has_same_start = (self.init is None) == (recorded.init is None)
        return has_same_start and self.defining_values() | worked_out == theirs

    def resolved_as(self, recorded: "Config") -> "Config":
        """A copy of `recorded`, with this configuration's values of the fields that do not change a run's result.

        Returns this configuration unchanged if `leads_to(recorded)` is false.
        """
        if not self.leads_to(recorded):
            return self
        return replace(recorded, **{name: getattr(self, name) for name in _WITHOUT_EFFECT})

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            InputError: for an unknown field or a value that is not allowed.
        """
        known = sorted(field.name for field in fields(cls))
        if unknown := sorted(values.keys() - set(known)):
            raise InputError(f"configuration field {unknown[0]!r} is unknown; the fields are {', '.join(known)}")
        values = dict(values)
        if isinstance(out := values.get("out"), str):
            values["out"] = Path(out)
        for field in _LISTS:
            if isinstance(values.get(field), list):
                values[field] = tuple(values[field])
        return cls(**values)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load the configuration from the `config.json` of a run.

        Raises:
            InputError: when the file cannot be read or does not contain a configuration.
        """
        try:
            values = json.loads(read_regular(path, _MOST_BYTES))
        except OSError as error:
            raise InputError(
                f"cannot read the configuration {path}: {error.strerror}; give the config.json of a run"
            ) from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not a configuration: {error}; give the config.json of a run") from error
        if not isinstance(values, dict):
            raise InputError(
                f"{path} is not a configuration: it must hold one JSON object; give the config.json of a run"
            )
        try:
            return cls.from_json(with_current_names(values))
        except OnecycleError as error:
            raise InputError(f"{path}: {error}") from error


_LISTS = ("widths", "sizes", "from_data")  # these fields are lists in JSON, and tuples in a configuration

# These fields do not change the result of a run. `data`, `labels` and `init` only tell where the data set and the
# weights are. A fingerprint identifies the content of the data set, and `init_sha256` identifies the weights.
_WITHOUT_EFFECT = ("data", "labels", "init", "workers", "out", "report", "tensorboard")
