"""The whitened network, which learns CIFAR-10 in minutes: a whitening layer and three groups of convolutions.

Source: Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv 2404.00498, sections 3 and 4. A ReLU or a
hardswish replaces the GELU of the source, because both are faster on a CPU.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import nn

from onecycle.core.errors import InputError
from onecycle.core.option_groups import SMALLEST_SIZE, Activation
from onecycle.models.model_composite import ModelComposite
from onecycle.models.residual import Residual
from onecycle.models.whitening import whitening_filters

ACTIVATIONS: Mapping[Activation, Callable[[], nn.Module]] = {"relu": nn.ReLU, "hardswish": nn.Hardswish}
PATCH = 2  # side of the whitened patches in pixels
LOGIT_SCALE = 1 / 9  # small initial logits let the filters learn before the network is confident; as in Page 2018


class WhitenedConvNet(ModelComposite):
    """Maps float images `[B,3,S,S]`, 9×9 or larger, to logits `[B,classes]`.

    Each group has two convolutions. With `residual`, it has three convolutions and a skip connection. The norms have
    trainable biases but no trainable scales. Call `whiten` and `initialize_as_identity` before training.

    Raises:
        InputError: for fewer than two classes or images under 9×9.
    """

    def __init__(
        self,
        classes: int = 10,
        input_size: int = 32,
        widths: Sequence[int] = (64, 256, 256),
        activation: Activation = "relu",
        residual: bool = False,
    ) -> None:
        super().__init__()
        if classes < 2:
            raise InputError(f"the network needs at least 2 classes, not {classes}")
        if input_size < SMALLEST_SIZE:  # the first layer and three poolings reduce 9×9 to one pixel
            raise InputError(
                f"images of {input_size}×{input_size} are too small: the network halves them three times; use "
                f"{SMALLEST_SIZE}×{SMALLEST_SIZE} or more"
            )
        filters = 2 * 3 * PATCH**2  # filters come in pairs f and -f, because a ReLU passes only one sign
        make_activation = ACTIVATIONS[activation]
        self.whitening = nn.Conv2d(3, filters, PATCH)
        self.activation = make_activation()
        make_group = residual_group if residual else group
        self.groups = nn.Sequential(*(make_group(*sides, make_activation) for sides in pairwise((filters, *widths))))
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(widths[-1], classes, bias=False)

    @torch.no_grad()
    def whiten(self, images: torch.Tensor) -> None:
        """Set the first layer's filters to whiten the patches of normalized `images` `[N,3,H,W]`, and freeze them."""
        filters = whitening_filters(images, PATCH)
        self.whitening.weight.copy_(torch.cat([filters, -filters]))
        self.freeze_filters()

    def freeze_filters(self) -> None:
        """Freeze the first layer's filters."""
        self.whitening.weight.requires_grad_(False)

    @torch.no_grad()
    def initialize_as_identity(self) -> None:
        """Initialize every 3×3 convolution so that its first output channels copy its input (Dirac initialization)."""
        for layer in self.groups.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.dirac_(layer.weight[: layer.in_channels])

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The last feature map, `[B,256,3,3]` for images of 32×32."""
        features: torch.Tensor = self.activation(self.whitening(images))  # [B,24,31,31]
        features = self.groups(features)  # the groups give [B,64,15,15], [B,256,7,7] and [B,256,3,3]
        return features

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """The logits `[B,classes]` for the last feature map."""
        logits: torch.Tensor = self.linear(self.flatten(self.pool(features))) * LOGIT_SCALE
        return logits


def group(inputs: int, outputs: int, activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Two 3×3 convolutions with norm and activation, and one max-pooling: `[B,inputs,H,W]` to `[B,outputs,H/2,W/2]`."""
    return nn.Sequential(*pooled(inputs, outputs, activation), *same_size(outputs, activation))


def residual_group(inputs: int, outputs: int, activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Like `group`, but with a third convolution, and a skip connection around the last two convolutions."""
    branch = nn.Sequential(*same_size(outputs, activation), *same_size(outputs, activation))
    return nn.Sequential(*pooled(inputs, outputs, activation), Residual(branch))


def pooled(inputs: int, outputs: int, activation: Callable[[], nn.Module]) -> list[nn.Module]:
    """The layers of a 3×3 convolution with max-pooling, norm and activation."""
    return [convolution(inputs, outputs), nn.MaxPool2d(2), biased_norm(outputs), activation()]


def same_size(channels: int, activation: Callable[[], nn.Module]) -> list[nn.Module]:
    """The layers of a 3×3 convolution with norm and activation."""
    return [convolution(channels, channels), biased_norm(channels), activation()]


def convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3×3 convolution that keeps the size of the map."""
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)


def biased_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm without a trainable scale, because Muon keeps the preceding filters at a fixed length."""
    layer = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    layer.weight.requires_grad_(False)
    return layer
