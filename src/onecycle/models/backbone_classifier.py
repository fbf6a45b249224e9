"""A pretrained backbone with a new last layer: the network of the recipe `transfer`."""

from typing import Self

import torch
from torch import nn
from torch.nn import functional

from onecycle.core.errors import InputError
from onecycle.models.model_composite import ModelComposite


class Head(ModelComposite):
    """The last layer of a `BackboneClassifier`. It maps feature maps `[B,channels,h,w]` to logits `[B,classes]`.

    The input of the linear layer is the mean of each channel. So the head gives the same logits for the means
    `[B,channels,1,1]`.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, classes)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The logits `[B,classes]`."""
        logits: torch.Tensor = self.linear(channel_means(features).flatten(1))
        return logits


class BackboneClassifier(ModelComposite):
    """A backbone and a `Head`. They map float images `[B,3,S,S]` to logits `[B,classes]`.

    The backbone stays in evaluation mode, so its batch norm keeps the statistics of the images that the backbone was
    trained on. The statistics of a few images would be poor.

    Raises:
        InputError: for fewer than two classes.
    """

    def __init__(self, backbone: nn.Module, channels: int, classes: int) -> None:
        super().__init__()
        if classes < 2:
            raise InputError(f"the network needs at least 2 classes, not {classes}")
        self.backbone = backbone.eval()
        self.head = Head(channels, classes)

    def freeze_backbone(self) -> None:
        """Train only the head. The features of an image are then the same in all steps."""
        self.backbone.requires_grad_(False)

    @property
    def has_frozen_backbone(self) -> bool:
        """Whether training changes only the head."""
        return not any(parameter.requires_grad for parameter in self.backbone.parameters())

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the head. The backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The last feature map, `[B,1280,4,4]` from EfficientNet-Lite0 for images of 128×128."""
        features: torch.Tensor = self.backbone(images)
        return features

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """The logits `[B,classes]` for the feature map."""
        logits: torch.Tensor = self.head(features)
        return logits


def channel_means(features: torch.Tensor) -> torch.Tensor:
    """The mean of each channel of feature maps: `[B,channels,h,w]` to `[B,channels,1,1]`."""
    return functional.adaptive_avg_pool2d(features, 1)
