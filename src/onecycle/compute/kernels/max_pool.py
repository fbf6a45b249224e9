"""Max-pooling of 2×2 windows on the CPU."""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from onecycle.compute.kernels import native
from onecycle.compute.kernels.hooks import hooked


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        pooled = (batch, channels, height // 2, width // 2)
        y, place = native.empty_maps(*pooled, x.dtype), native.empty_maps(*pooled, torch.uint8)
        native.call("max_pool", x, y, place, *_sizes(x))
        ctx.save_for_backward(place)
        ctx.shape, ctx.dtype = x.shape, x.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (place,) = ctx.saved_tensors
        gradient = native.to_kernel_layout(gradients[0].to(ctx.dtype))
        result = torch.empty(ctx.shape, dtype=ctx.dtype, memory_format=torch.channels_last)
        native.call("max_pool_gradient", gradient, place, result, *_sizes(result))
        return result


def _sizes(x: torch.Tensor) -> tuple[int, int, int, int]:
    batch, channels, height, width = x.shape
    return batch, height, width, channels  # in memory order


class MaxPool2x2(nn.MaxPool2d):
    """`nn.MaxPool2d(2)`, computed by the native kernels. Unsupported inputs use PyTorch's own kernel."""

    def __init__(self) -> None:
        super().__init__(2)

    @classmethod
    def replaces(cls, layer: nn.Module) -> bool:
        """Whether this class can replace `layer`."""
        return (
            type(layer) is nn.MaxPool2d
            and (layer.kernel_size, layer.stride, layer.padding, layer.dilation) == (2, 2, 0, 1)
            and not (layer.ceil_mode or layer.return_indices or hooked(layer))
        )

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not native.supports(input) or min(input.shape[2:]) < 2:
            pooled: torch.Tensor = super().forward(input)
        else:
            pooled = _MaxPool.apply(input)  # type: ignore[no-untyped-call]
        return pooled
