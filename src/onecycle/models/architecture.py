"""The architecture of a network: what is needed to build the network before its weights are loaded."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Self, get_args

import torch

from onecycle.core.config import Config
from onecycle.core.errors import InputError
from onecycle.core.option_groups import EFFICIENTNET_LITE0, WIDEST, Activation, IncludedNetwork
from onecycle.core.own_network import is_own_network
from onecycle.core.validated import Between, validated
from onecycle.models import backbones
from onecycle.models.backbone_classifier import BackboneClassifier
from onecycle.models.custom_resnet import CustomResNet
from onecycle.models.model_composite import ModelComposite
from onecycle.models.own_network import OwnNetwork
from onecycle.models.whitened_convnet import WhitenedConvNet

_Width = Annotated[int, Between(1, WIDEST)]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The settings that define a network, apart from the number of classes and the input size."""

    network: str = "custom_resnet"  # an included network, or the name of the user's own network
    widths: tuple[_Width, _Width, _Width] = (64, 256, 256)  # channels of the three groups in the whitened network
    activation: Activation = "relu"  # only for the whitened network
    residual: bool = False  # only for the whitened network
    backbone: str = EFFICIENTNET_LITE0  # only for the pretrained network
    network_sha256: str | None = None  # only for the user's own network: digest of its source file

    def __post_init__(self) -> None:
        if self.is_own != (self.network_sha256 is not None):
            raise ValueError("network_sha256 must be set for the user's own network, and unset for an included network")
        if not self.is_own and self.network not in get_args(IncludedNetwork):
            raise ValueError(
                f"network is {self.network[:60]!r}; it must be one of {', '.join(get_args(IncludedNetwork))}"
            )

    @property
    def is_own(self) -> bool:
        """Whether the user's own code builds the network. Otherwise the network is included in onecycle."""
        return is_own_network(self.network)

    @classmethod
    def of(cls, config: Config) -> Self:
        """The architecture that `config` describes."""
        first, second, third = config.widths
        return cls(
            network=config.network,
            widths=(first, second, third),
            activation=config.activation,
            residual=config.residual,
            network_sha256=config.network_sha256,
            backbone=config.backbone,
        )

    def build(self, classes: int, input_size: int, own: OwnNetwork | None = None) -> ModelComposite:
        """Build the network with random weights. Included networks do not need `own`, the code of the user's network.

        Raises:
            InputError: for fewer than two classes, an input size that is too small, or a backbone that cannot be built.
                For the user's own network, also when its code is missing, fails, or is not the code used in training.
        """
        if self.is_own:
            if own is None:
                raise InputError(f"the code of {self.network} is missing; add --network {shlex.quote(self.network)}")
            if own.sha256 != self.network_sha256:
                raise InputError(
                    f"the code of --network {own.name} has the SHA-256 {own.sha256[:12]}…, and the network was trained "
                    f"with {str(self.network_sha256)[:12]}…; restore that code"
                )
            return own.build(classes, input_size)
        if self.network == "pretrained":
            backbone = backbones.build(self.backbone)
            return BackboneClassifier(backbone.network, backbone.channels, classes)
        if self.network == "custom_resnet":
            return CustomResNet(classes, input_size)
        return WhitenedConvNet(classes, input_size, self.widths, self.activation, self.residual)

    def head(self, classes: int, input_size: int, own: OwnNetwork | None = None) -> set[str]:
        """The names of the tensors whose shape depends on the number of classes. Torch's random state stays as it is.

        Raises:
            InputError: in the same cases as `build`.
        """
        with torch.random.fork_rng(devices=[]):
            one, other = (self.build(count, input_size, own).state_dict() for count in (classes, classes + 1))
        return {name for name in one if one[name].shape != other[name].shape}

    def __str__(self) -> str:
        """The command-line options that select this network."""
        if self.network == "pretrained":
            return f"--network {self.network} --backbone {self.backbone}"
        if self.network != "whitened_convnet":
            return f"--network {shlex.quote(self.network)}"
        widths = " ".join(map(str, self.widths))
        residual = " --residual" if self.residual else ""
        return f"--network {self.network} --widths {widths} --activation {self.activation}{residual}"

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        if not self.is_own:
            # Earlier versions of onecycle cannot load a file with this field.
            del values["network_sha256"]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            ValueError: for an unknown network or activation, or a width that is not allowed.
        """
        return validated(cls, values)
