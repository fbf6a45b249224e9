"""Networks that are small enough for a test."""

import torch
from torch import nn

from onecycle.core.config import Config

# Options for a network with 8 channels, for tests that work with any network. The options change only the network.
NARROW = ["--network", "whitened_convnet", "--widths", "8", "8", "8"]
# A configuration that trains the network of `NARROW` on the embedded digits. Tests vary it with `replace`.
NARROW_CONFIG = Config(network="whitened_convnet", widths=(8, 8, 8), data="digits", workers=0)
# Options for a short run in which the LR finder's loss falls clearly: all batches are equal, and there is no cutout.
FINDABLE = [
    *("--network", "whitened_convnet", "--widths", "16", "16", "16", "--augmentation", "batched", "--cutout", "0"),
    *("--padding", "0", "--data", "digits", "--limit", "20", "--batch-size", "10", "--workers", "0"),
]


def convolutional() -> nn.Module:
    """A network with batch normalization and dropout: its output depends on its buffers and on its mode."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, kernel_size=5, stride=4, padding=2),  # [B,8,8,8]
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
