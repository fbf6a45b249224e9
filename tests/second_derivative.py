"""A gradient penalty, which needs second derivatives."""

import torch
from torch import nn


def penalty_gradient(layer: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """The gradient of a penalty with respect to `pixels`, in the shape of `pixels`.

    The loss is the sum of the squared outputs of `layer`. The penalty is the squared norm of the loss's gradient.
    """
    images = pixels.clone(memory_format=torch.preserve_format).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(images).square().sum(), images, create_graph=True)
    gradient.square().sum().backward()
    assert images.grad is not None
    return images.grad
