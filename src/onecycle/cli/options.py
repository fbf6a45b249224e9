"""Options that several commands share: the configuration in groups, and the engine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from onecycle.core.config import Config
from onecycle.core.errors import InputError
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

_GROUPS = {
    name: Group(name, sort_key=number)
    for number, name in enumerate(
        (
            "Data",
            "Training",
            "Network",
            "Augmentation",
            "Compute",
            "Output",
            "Optimization",
            "Pretrained network",
            "Whitened network",
            "Batched augmentation",
            "Robustness",
        )
    )
}
_RARE = ("Optimization", "Pretrained network", "Whitened network", "Batched augmentation", "Robustness")
MORE_OPTIONS = "More options (optimization, networks, batched augmentation, robustness): --help-all."
TRAIN_OPTIONS = "All configuration options of `onecycle train` also apply; --help-all lists them."


def _panel(name: str) -> Parameter:
    return Parameter(name="*", group=_GROUPS[name])


def choose_shown_groups(command: str, *, all_groups: bool) -> None:
    """Choose which groups of options the help of `command` shows, so that the help fits on a screen."""
    for name, group in _GROUPS.items():
        object.__setattr__(group, "_show", all_groups or (command == "train" and name not in _RARE))


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class RunOptions:
    """The configuration as options. Each field is a group of options with its own panel in the help."""

    data: Annotated[DataConfig, _panel("Data")] = DataConfig()
    training: Annotated[TrainingConfig, _panel("Training")] = TrainingConfig()
    network: Annotated[NetworkConfig, _panel("Network")] = NetworkConfig()
    augmentation: Annotated[AugmentationConfig, _panel("Augmentation")] = AugmentationConfig()
    compute: Annotated[ComputeConfig, _panel("Compute")] = ComputeConfig()
    output: Annotated[OutputConfig, _panel("Output")] = OutputConfig()
    optimization: Annotated[OptimizationConfig, _panel("Optimization")] = OptimizationConfig()
    pretrained_network: Annotated[PretrainedNetworkConfig, _panel("Pretrained network")] = PretrainedNetworkConfig()
    whitened_network: Annotated[WhitenedNetworkConfig, _panel("Whitened network")] = WhitenedNetworkConfig()
    batched_augmentation: Annotated[BatchedAugmentationConfig, _panel("Batched augmentation")] = (
        BatchedAugmentationConfig()
    )
    robustness: Annotated[RobustnessConfig, _panel("Robustness")] = RobustnessConfig()
    open: Annotated[OpenConfig, Parameter(name="*", show=False)] = OpenConfig()  # `cli.defaults` fills it in

    def config(self) -> Config:
        """The configuration that the options describe.

        Raises:
            InputError: when values of different groups contradict each other.
        """
        return Config(**{name: value for group in vars(self).values() for name, value in vars(group).items()})


Settings = Annotated[RunOptions, Parameter(name="*")]


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class EngineOptions:
    """Where the work is done: in this process, or on a Ray cluster."""

    engine: Literal["local", "ray"] = "local"
    """local (one after another in this process) or ray (on the nodes of a Ray cluster)."""

    address: str | None = None
    """The Ray cluster as host:port; by default $RAY_ADDRESS, else Ray on this machine alone."""

    def __post_init__(self) -> None:
        if self.address and self.engine != "ray":
            raise InputError("--address is the address of a Ray cluster; add --engine ray")


DEFAULT_ENGINE = EngineOptions()
EngineSettings = Annotated[EngineOptions, Parameter(name="*", group=Group("Engine", sort_key=10))]

OwnNetwork = Annotated[
    str | None,
    Parameter(
        name="--network",
        help="The code of your own network, as for `onecycle train`. It is only loaded if you name it.",
    ),
]
Run = Annotated[
    Path | None, Parameter(help="The run folder; by default the network for CIFAR-10 that comes with onecycle.")
]
