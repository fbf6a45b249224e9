"""Which network a run trains."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self, get_args

from onecycle.core.config import Activation, Config, Network
from onecycle.models.custom_resnet import CustomResNet
from onecycle.models.model_composite import ModelComposite
from onecycle.models.whitened_convnet import WhitenedConvNet


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What is needed to build a network again for its weights, beside the number of classes and the input size."""

    network: Network = "custom_resnet"
    widths: tuple[int, ...] = (64, 256, 256)  # of the whitened network's groups
    activation: Activation = "relu"  # of the whitened network

    @classmethod
    def of(cls, config: Config) -> Self:
        """The network that `config` describes."""
        return cls(network=config.network, widths=config.widths, activation=config.activation)

    def build(self, classes: int, input_size: int) -> ModelComposite:
        """The network, with random weights.

        Raises:
            InputError: for too few classes or too small images.
        """
        if self.network == "custom_resnet":
            return CustomResNet(classes, input_size)
        return WhitenedConvNet(classes, input_size, self.widths, self.activation)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            ValueError: when it is of no network that there is.
        """
        network, widths, activation = values["network"], tuple(values["widths"]), values["activation"]
        if network not in get_args(Network) or len(widths) != 3 or not all(isinstance(width, int) for width in widths):
            raise ValueError(f"there is no network {network!r} of widths {widths}")
        if activation not in get_args(Activation):
            raise ValueError(f"there is no activation {activation!r}")
        return cls(network=network, widths=widths, activation=activation)
