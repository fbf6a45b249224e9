"""The skip connection of residual networks (He et al. 2016, "Deep Residual Learning for Image Recognition")."""

import torch
from torch import nn


class Residual(nn.Module):
    """A skip connection: adds the output of `branch` to its input `[B,channels,H,W]`, which has the same shape."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        branch: torch.Tensor = self.branch(features)
        return features + branch
