"""Networks that are small enough for a test."""

import torch
from torch import nn

from onecycle.core.config import Config

# Options for a network of 8 channels, where the network is not what is tested: trained like the specified one.
NARROW = ["--network", "whitened_convnet", "--widths", "8", "8", "8"]
# The same as a configuration, on the embedded digits, to be varied by `replace`.
NARROW_CONFIG = Config(network="whitened_convnet", widths=(8, 8, 8), data="digits", workers=0)
# Options for a short run in which the LR finder's loss falls clearly: equal batches that nothing is cut out of.
FINDABLE = [
    *("--network", "whitened_convnet", "--widths", "16", "16", "16", "--augmentation", "batched", "--hole", "0"),
    *("--padding", "0", "--data", "digits", "--limit", "20", "--batch-size", "10", "--workers", "0"),
]


def convolutional() -> nn.Module:
    """A little of everything that has a state or a mode: buffers, running statistics, dropout."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, kernel_size=5, stride=4, padding=2),  # [B,8,8,8]
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
