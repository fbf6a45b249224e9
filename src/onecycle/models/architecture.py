"""The architecture of a network: what is needed to build the network before its weights are loaded."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self, get_args

from onecycle.core.config import Activation, Config, Network
from onecycle.models.custom_resnet import CustomResNet
from onecycle.models.model_composite import ModelComposite
from onecycle.models.whitened_convnet import WhitenedConvNet


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What is needed to rebuild a network, apart from the number of classes and the input size."""

    network: Network = "custom_resnet"
    widths: tuple[int, ...] = (64, 256, 256)  # channels of the whitened network's groups
    activation: Activation = "relu"  # of the whitened network only

    @classmethod
    def of(cls, config: Config) -> Self:
        """The architecture that `config` describes."""
        return cls(network=config.network, widths=config.widths, activation=config.activation)

    def build(self, classes: int, input_size: int) -> ModelComposite:
        """Build the network with random weights.

        Raises:
            InputError: for fewer than two classes or an input size that is too small.
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
            ValueError: for an unknown network or activation.
        """
        network, widths, activation = values["network"], tuple(values["widths"]), values["activation"]
        if network not in get_args(Network) or len(widths) != 3 or not all(isinstance(width, int) for width in widths):
            raise ValueError(f"there is no network {network!r} with widths {widths}")
        if activation not in get_args(Activation):
            raise ValueError(f"there is no activation {activation!r}")
        return cls(network=network, widths=widths, activation=activation)
