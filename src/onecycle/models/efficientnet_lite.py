"""EfficientNet-Lite0 without its last layer: the backbone of the recipe `transfer`.

Sources: Tan & Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", arXiv 1905.11946.
The Lite variant, which has neither squeeze-and-excitation nor swish, is from
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite.
"""

import torch
from torch import nn
from torch.nn import functional

CHANNELS = 1280  # the last feature map has this many channels
# The original code normalizes images with MEAN_RGB and STDDEV_RGB. Here these values are divided by 255, because pixels
# are from 0 to 1.
MEAN, STD = 127 / 255, 128 / 255
# Each stage is (expansion, kernel size, stride of its first block, output channels, blocks).
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class EfficientNetLite0(nn.Module):
    """Maps normalized float images `[B,3,S,S]` to the last feature map `[B,1280,h,w]`, where h = w = ⌈S / 32⌉."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(3, 32, 3, stride=2)
        blocks, inputs = [], 32
        for expansion, kernel, stride, outputs, count in STAGES:
            for number in range(count):
                blocks.append(Block(inputs, outputs, expansion, kernel, stride if number == 0 else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.last = convolution(inputs, CHANNELS, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.last(self.blocks(self.stem(images)))
        return features


class Block(nn.Module):
    """An inverted residual block: expand the channels, convolve each channel, and project to `outputs` channels.

    The input is added to the output if both have the same shape.
    Source: Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", section 3.
    """

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        expanded = inputs * expansion
        expand = [convolution(inputs, expanded, 1)] if expansion > 1 else []
        self.branch = nn.Sequential(
            *expand,
            convolution(expanded, expanded, kernel, stride=stride, groups=expanded),
            nn.Conv2d(expanded, outputs, 1, bias=False),
            norm(outputs),
        )
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        branch: torch.Tensor = self.branch(features)
        return features + branch if self.is_residual else branch


class SamePaddedConv2d(nn.Conv2d):
    """A convolution whose output has ⌈size / stride⌉ pixels a side.

    If the total padding of the height or the width is odd, the bottom or the right gets the extra pixel, as in
    TensorFlow.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        padding: list[int] = []
        for size, kernel, stride in zip(input.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(functional.pad(input, padding))


def convolution(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution, batch norm and ReLU6: `[B,inputs,H,W]` to `[B,outputs,⌈H/stride⌉,⌈W/stride⌉]`."""
    if stride == 1:  # the padding is the same on all sides, and PyTorch adds it without a copy
        layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    else:
        layer = SamePaddedConv2d(inputs, outputs, kernel, stride=stride, groups=groups, bias=False)
    return nn.Sequential(layer, norm(outputs), nn.ReLU6())


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
