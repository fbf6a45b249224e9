"""The derivative of a gradient, as a gradient penalty takes it."""

import torch
from torch import nn


def penalty_gradient(layer: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """What the squared gradient of a loss on `layer`'s output adds to the gradient of `pixels`, in their shape."""
    images = pixels.clone(memory_format=torch.preserve_format).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(images).square().sum(), images, create_graph=True)
    gradient.square().sum().backward()
    assert images.grad is not None
    return images.grad
