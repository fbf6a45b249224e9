"""Networks that are small enough for a test."""

import torch
from torch import nn


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
