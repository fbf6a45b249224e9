"""The skip connection of residual networks (He et al. 2016, "Deep Residual Learning for Image Recognition")."""

import torch
from torch import nn


class Residual(nn.Module):
    """A skip connection: adds the input of `branch` to its output. Both have the shape `[B,channels,H,W]`."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        branch: torch.Tensor = self.branch(features)
        return features + branch
