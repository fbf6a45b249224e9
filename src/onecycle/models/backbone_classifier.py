"""A pretrained backbone with a new last layer: the network of the recipe `transfer`."""

from typing import Self

import torch
from torch import nn
from torch.nn import functional

from onecycle.core.errors import InputError
from onecycle.models.model_composite import ModelComposite


class Head(ModelComposite):
    """The trained part of a `BackboneClassifier`: the last layers of a backbone (`tuned`) and a new linear layer.

    Maps the output of the frozen layers `[B,c,h,w]` to logits `[B,classes]`. `tuned` gives a map `[B,channels,h,w]`.
    If only the linear layer is trained, `tuned` is `nn.Identity()`. The input of the linear layer is the mean of each
    channel.

    The tuned layers stay in evaluation mode, so their batch norm keeps the statistics of the images that the backbone
    was trained on. The statistics of a few images would be poor.
    """

    def __init__(self, tuned: nn.Module, channels: int, classes: int) -> None:
        super().__init__()
        self.tuned = tuned.eval()
        self.linear = nn.Linear(channels, classes)

    def train(self, mode: bool = True) -> Self:
        """Set the mode. The tuned layers stay in evaluation mode."""
        super().train(mode)
        self.tuned.eval()
        return self

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The last feature map `[B,channels,h,w]`. Here `images` are the output of the frozen layers."""
        features: torch.Tensor = self.tuned(images)
        return features

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """The logits `[B,classes]` for the feature map."""
        logits: torch.Tensor = self.linear(pooled(features).flatten(1))
        return logits


class BackboneClassifier(ModelComposite):
    """The frozen layers of a backbone and a `Head`. They map float images `[B,3,S,S]` to logits `[B,classes]`.

    The frozen layers never change. So training can compute their output once for each image, and then train the head
    alone on these outputs.

    Raises:
        InputError: for fewer than two classes.
    """

    def __init__(self, frozen: nn.Module, tuned: nn.Module, channels: int, classes: int) -> None:
        super().__init__()
        if classes < 2:
            raise InputError(f"the network needs at least 2 classes, not {classes}")
        self.frozen = frozen.requires_grad_(False).eval()
        self.head = Head(tuned, channels, classes)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the head. The frozen layers stay in evaluation mode."""
        super().train(mode)
        self.frozen.eval()
        return self

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The last feature map, `[B,1280,7,7]` from EfficientNet-Lite0 for images of 224×224."""
        return self.head.features(self.frozen(images))

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """The logits `[B,classes]` for the feature map."""
        return self.head.classify(features)

    def inputs_of_head(self, images: torch.Tensor) -> torch.Tensor:
        """The input of the head for `images` `[B,3,S,S]`.

        It is the output `[B,c,h,w]` of the frozen layers. If the head tunes no layers of the backbone, it is the mean
        `[B,c,1,1]` of each channel of this output.
        """
        maps: torch.Tensor = self.frozen(images)
        return pooled(maps) if isinstance(self.head.tuned, nn.Identity) else maps


def pooled(features: torch.Tensor) -> torch.Tensor:
    """The mean of each channel of feature maps: `[B,channels,h,w]` to `[B,channels,1,1]`."""
    return functional.adaptive_avg_pool2d(features, 1)
