"""A small network that learns CIFAR-10 in minutes: a fixed whitening layer and three groups of two convolutions.

Source: Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv 2404.00498, section 3; with a ReLU
or a hardswish, which cost a CPU less, for its GELU.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import nn

from onecycle.core.config import SMALLEST_SIZE, Activation
from onecycle.core.errors import InputError
from onecycle.models.model_composite import ModelComposite
from onecycle.models.whitening import whitening_filters

ACTIVATIONS: Mapping[Activation, Callable[[], nn.Module]] = {"relu": nn.ReLU, "hardswish": nn.Hardswish}
PATCH = 2  # side of the whitened patches
LOGIT_SCALE = 1 / 9  # logits that begin small let the filters learn before the network is sure; as in Page 2018


class WhitenedConvNet(ModelComposite):
    """Float images `[B,3,S,S]`, of any size from 9×9 up, to logits `[B,classes]`.

    Norms learn biases and no scales. It learns fastest after `whiten` and `pass_inputs_on`.

    Raises:
        InputError: for fewer than two classes or images under 9×9.
    """

    def __init__(
        self,
        classes: int = 10,
        input_size: int = 32,
        widths: Sequence[int] = (64, 256, 256),
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        if classes < 2:
            raise InputError(f"the network was asked for {classes} classes; it needs at least 2")
        if input_size < SMALLEST_SIZE:  # of which patches and three poolings leave one pixel
            raise InputError(
                f"the network takes patches and halves its input three times: images of {input_size}×{input_size} are "
                f"too small, use {SMALLEST_SIZE}×{SMALLEST_SIZE} or more"
            )
        filters = 2 * 3 * PATCH**2  # each whitened direction and its opposite, of which a ReLU passes one
        made = ACTIVATIONS[activation]
        self.whitening = nn.Conv2d(3, filters, PATCH)
        self.activation = made()
        self.groups = nn.Sequential(*(group(*sides, made) for sides in pairwise((filters, *widths))))
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(widths[-1], classes, bias=False)

    @torch.no_grad()
    def whiten(self, images: torch.Tensor) -> None:
        """Fix the first layer's filters: they whiten patches such as those of `images` `[N,3,H,W]`, normalized."""
        filters = whitening_filters(images, PATCH)
        self.whitening.weight.copy_(torch.cat([filters, -filters]))
        self.fix_filters()

    def fix_filters(self) -> None:
        """Let the first layer's filters stay as they are."""
        self.whitening.weight.requires_grad_(False)

    @torch.no_grad()
    def pass_inputs_on(self) -> None:
        """Let the first outputs of every 3×3 convolution be its inputs as they are; what it adds to them is learned."""
        for layer in self.groups.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.dirac_(layer.weight[: layer.in_channels])

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The last map, `[B,256,3,3]` of images of 32×32."""
        features: torch.Tensor = self.activation(self.whitening(images))  # [B,24,31,31]
        features = self.groups(features)  # [B,64,15,15], [B,256,7,7], [B,256,3,3]
        return features

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Logits `[B,classes]`."""
        logits: torch.Tensor = self.linear(self.flatten(self.pool(features))) * LOGIT_SCALE
        return logits


def group(inputs: int, outputs: int, activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Two 3×3 convolutions, normalized and activated, the first pooled: `[B,inputs,H,W]` to `[B,outputs,H/2,W/2]`."""
    return nn.Sequential(
        convolution(inputs, outputs),
        nn.MaxPool2d(2),
        biased_norm(outputs),
        activation(),
        convolution(outputs, outputs),
        biased_norm(outputs),
        activation(),
    )


def convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3×3 convolution of stride 1 that keeps the map's size."""
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)


def biased_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm that learns no scale: the filters before it are kept at one length, and the loss does not see it."""
    layer = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    layer.weight.requires_grad_(False)
    return layer
