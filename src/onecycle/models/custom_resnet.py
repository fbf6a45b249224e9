"""The custom ResNet of David C. Page's DAWNBench entry ("How to Train Your ResNet", 2018), layer for layer."""

import torch
from torch import nn

from onecycle.core.errors import InputError
from onecycle.models.model_composite import ModelComposite
from onecycle.models.residual import Residual

SMALLEST_INPUT = 8  # pixels; the network halves the map three times


class CustomResNet(ModelComposite):
    """A small, wide ResNet. It maps float images `[B,3,S,S]` to logits `[B,classes]`.

    The layers are a preparation layer, a pooled layer with a residual block, a pooled layer, and a pooled layer with a
    residual block. Then come max-pooling over the remaining map (4×4 for 32×32 images) and a linear layer without bias.
    With 10 classes the network has 6,573,120 parameters.

    Raises:
        InputError: for fewer than two classes or images under 8×8.
    """

    def __init__(self, classes: int = 10, input_size: int = 32) -> None:
        super().__init__()
        if classes < 2:
            raise InputError(f"the network needs at least 2 classes, not {classes}")
        if input_size < SMALLEST_INPUT:
            raise InputError(
                f"images of {input_size}×{input_size} are too small: the network halves them three times; use "
                f"{SMALLEST_INPUT}×{SMALLEST_INPUT} or more"
            )
        self.input_size = input_size
        self.preparation = convolution(3, 64)
        self.layer1 = nn.Sequential(convolution(64, 128, pool=True), residual_block(128))
        self.layer2 = convolution(128, 256, pool=True)
        self.layer3 = nn.Sequential(convolution(256, 512, pool=True), residual_block(512))
        self.pool = nn.MaxPool2d(input_size // 8)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(512, classes, bias=False)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The last feature map, `[B,512,4,4]` for images of 32×32.

        Raises:
            InputError: when the images do not have the size that the network was built for.
        """
        size = self.input_size
        if images.shape[1:] != (3, size, size):
            raise InputError(f"the network takes images [B,3,{size},{size}], not {list(images.shape)}")
        features: torch.Tensor = self.preparation(images)  # [B,64,32,32]
        features = self.layer1(features)  # [B,128,16,16]
        features = self.layer2(features)  # [B,256,8,8]
        features = self.layer3(features)  # [B,512,4,4]
        return features

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Logits `[B,classes]`."""
        logits: torch.Tensor = self.linear(self.flatten(self.pool(features)))
        return logits


def residual_block(channels: int) -> Residual:
    """Two 3×3 convolutions whose output is added to their input `[B,channels,H,W]`."""
    return Residual(nn.Sequential(convolution(channels, channels), convolution(channels, channels)))


def convolution(inputs: int, outputs: int, *, pool: bool = False) -> nn.Sequential:
    """3×3 convolution, max-pooling by 2 if `pool`, batch norm, ReLU: `[B,inputs,H,W]` to `[B,outputs,…]`."""
    # Pooling comes before batch norm, which then processes only a quarter of the values.
    pooling = [nn.MaxPool2d(2)] if pool else []
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False),
        *pooling,
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )
