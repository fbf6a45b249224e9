"""A frozen backbone with a trainable linear head: the network of the recipe `transfer`."""

from typing import Self

import torch
from torch import nn
from torch.nn import functional

from onecycle.core.errors import InputError
from onecycle.models.model_composite import ModelComposite


class LinearHead(ModelComposite):
    """Maps the pooled features of a backbone `[B,channels]` to logits `[B,classes]`."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits `[B,classes]` of pooled features `[B,channels]`, which take the place of images."""
        logits: torch.Tensor = self.linear(images)
        return logits


class BackboneClassifier(ModelComposite):
    """Maps float images `[B,3,S,S]` to logits `[B,classes]`: backbone, mean over the feature map, linear head.

    The backbone is frozen. It stays in evaluation mode, so its batch norm keeps the statistics of its own training
    images. The head can therefore be trained alone, on pooled features that are computed once.

    `backbone` maps images to the feature map `[B,channels,h,w]`.

    Raises:
        InputError: for fewer than two classes.
    """

    def __init__(self, backbone: nn.Module, channels: int, classes: int) -> None:
        super().__init__()
        if classes < 2:
            raise InputError(f"the network needs at least 2 classes, not {classes}")
        self.backbone = backbone.requires_grad_(False).eval()
        self.head = LinearHead(channels, classes)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the head. The backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The feature map of the backbone, `[B,1280,7,7]` from EfficientNet-Lite0 for images of 224×224."""
        features: torch.Tensor = self.backbone(images)
        return features

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """The logits `[B,classes]` for the feature map."""
        logits: torch.Tensor = self.head(pooled(features))
        return logits


def pooled(features: torch.Tensor) -> torch.Tensor:
    """The mean of each channel of feature maps: `[B,channels,h,w]` to `[B,channels]`."""
    return functional.adaptive_avg_pool2d(features, 1).flatten(1)
