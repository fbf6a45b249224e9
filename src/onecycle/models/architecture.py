"""The architecture of a network: what is needed to build the network before its weights are loaded."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Self

import torch

from onecycle.core.config import WIDEST, Activation, Config, Network
from onecycle.core.validated import Between, validated
from onecycle.models.custom_resnet import CustomResNet
from onecycle.models.model_composite import ModelComposite
from onecycle.models.whitened_convnet import WhitenedConvNet

_Width = Annotated[int, Between(1, WIDEST)]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What is needed to rebuild a network, apart from the number of classes and the input size."""

    network: Network = "custom_resnet"
    widths: tuple[_Width, _Width, _Width] = (64, 256, 256)  # channels of the whitened network's groups
    activation: Activation = "relu"  # of the whitened network only

    @classmethod
    def of(cls, config: Config) -> Self:
        """The architecture that `config` describes."""
        first, second, third = config.widths
        return cls(network=config.network, widths=(first, second, third), activation=config.activation)

    def build(self, classes: int, input_size: int) -> ModelComposite:
        """Build the network with random weights.

        Raises:
            InputError: for fewer than two classes or an input size that is too small.
        """
        if self.network == "custom_resnet":
            return CustomResNet(classes, input_size)
        return WhitenedConvNet(classes, input_size, self.widths, self.activation)

    def head(self, classes: int, input_size: int) -> set[str]:
        """The names of the tensors whose shape depends on the number of classes. Torch's random state stays as it is.

        Raises:
            InputError: as `build`.
        """
        with torch.random.fork_rng(devices=[]):
            one, other = (self.build(count, input_size).state_dict() for count in (classes, classes + 1))
        return {name for name in one if one[name].shape != other[name].shape}

    def __str__(self) -> str:
        """The options that choose this network."""
        if self.network == "custom_resnet":
            return "--network custom_resnet"
        widths = " ".join(map(str, self.widths))
        return f"--network {self.network} --widths {widths} --activation {self.activation}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            ValueError: for an unknown network or activation, or a width that is not allowed.
        """
        return validated(cls, values)
