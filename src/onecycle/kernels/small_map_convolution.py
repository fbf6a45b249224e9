"""3×3 convolution as matrix products, for maps so small that the usual kernels starve.

On maps of up to 8×8 the weight gradient of oneDNN's bfloat16 convolution is far slower than a plain matrix product of
the same size, and on maps of up to 4×4 the output and the input gradient are, too. Unfolding the patches costs less
than that. What was measured stands in benchmarks/NOTES.md.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from onecycle.kernels.hooks import hooked

LARGEST_FOR_ALL = 4 * 4  # pixels of the largest map whose three products are all done here
LARGEST_MAP = 8 * 8  # pixels of the largest map whose weight gradient is
_ROWS = 512  # transposed at once: a block of so many rows stays in the cache


def unfold_patches(images: torch.Tensor) -> torch.Tensor:
    """The 3×3 patch around every pixel, zero beyond the border: `[B,C,H,W]` to `[B*H*W, 3*3*C]`, channels fastest."""
    batch, channels, height, width = images.shape
    padded = functional.pad(images.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()  # [B,H+2,W+2,C]
    b, h, w, c = padded.stride()
    patches = padded.as_strided((batch, height, width, 3, 3, channels), (b, h, w, h, w, c))
    return patches.reshape(batch * height * width, 9 * channels)


def _as_images(rows: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    batch, height, width = shape
    return rows.view(batch, height, width, -1).permute(0, 3, 1, 2)  # [B*H*W,C] -> [B,C,H,W], channels-last


def _product_of_patches(gradient: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """The weight gradient `[outputs,C,3,3]` from that of the output `[B,outputs,H,W]` and the input's patches."""
    outputs = gradient.shape[1]
    rows = gradient.permute(0, 2, 3, 1).reshape(-1, outputs)  # [B*H*W, outputs]
    # Handed a transposed view, the product would transpose it slowly.
    columns = rows.new_empty(outputs, len(rows))
    for start in range(0, len(rows), _ROWS):
        columns[:, start : start + _ROWS] = rows[start : start + _ROWS].t()
    return (columns @ patches).view(outputs, 3, 3, -1).permute(0, 3, 1, 2)


class _Convolve(torch.autograd.Function):
    """Output and both gradients by products."""

    @staticmethod
    def forward(ctx: Any, images: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        outputs = weight.shape[0]
        ctx.shape = (images.shape[0], *images.shape[2:])
        patches = unfold_patches(images)  # [B*H*W, 9*C]
        ctx.save_for_backward(patches, weight)
        return _as_images(patches @ weight.permute(2, 3, 1, 0).reshape(-1, outputs), ctx.shape)

    @staticmethod
    @once_differentiable  # the patches are kept without their own history, so a second derivative would be wrong
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        patches, weight = ctx.saved_tensors
        (gradient,) = gradients
        # The input gradient is the convolution of the output gradient with the filters turned by 180°.
        turned = weight.flip(2, 3).permute(2, 3, 0, 1).reshape(-1, weight.shape[1])
        return _as_images(unfold_patches(gradient) @ turned, ctx.shape), _product_of_patches(gradient, patches)


class _ConvolveUsually(torch.autograd.Function):
    """Output and input gradient by the usual convolution, the weight gradient by a product."""

    @staticmethod
    def forward(ctx: Any, images: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(images, weight)
        return functional.conv2d(images, weight, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        images, weight = ctx.saved_tensors
        (gradient,) = gradients
        turned = weight.flip(2, 3).transpose(0, 1)
        return functional.conv2d(gradient, turned, padding=1), _product_of_patches(gradient, unfold_patches(images))


class SmallMapConv2d(nn.Conv2d):
    """A 3×3 convolution (stride 1, padding 1, no bias, one group) that multiplies matrices where the map is small.

    It shares the weight of the layer it was made from, and agrees with it up to rounding.
    """

    @classmethod
    def replaces(cls, layer: nn.Module) -> bool:
        """Whether `layer` is of the kind that this class can stand in for."""
        return (
            type(layer) is nn.Conv2d
            and (layer.kernel_size, layer.stride, layer.padding) == ((3, 3), (1, 1), (1, 1))
            and (layer.dilation, layer.groups, layer.bias, layer.padding_mode) == ((1, 1), 1, None, "zeros")
            and not hooked(layer)
        )

    @classmethod
    def sharing(cls, layer: nn.Conv2d) -> "SmallMapConv2d":
        """The stand-in for `layer`, on the same weight."""
        stand_in = cls(layer.in_channels, layer.out_channels, 3, padding=1, bias=False, device="meta")
        stand_in.weight = layer.weight
        return stand_in.train(layer.training)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        pixels = input.shape[-2] * input.shape[-1]
        if pixels > LARGEST_MAP or input.dim() != 4 or input.numel() == 0:
            return super().forward(input)
        device = input.device.type
        # Autocast does not reach inside an autograd function: do here what it does for a convolution.
        cast = torch.is_autocast_enabled(device) and input.dtype != torch.float64
        dtype = torch.get_autocast_dtype(device) if cast else input.dtype
        convolve = _Convolve if pixels <= LARGEST_FOR_ALL else _ConvolveUsually
        convolved: torch.Tensor = convolve.apply(input.to(dtype), self.weight.to(dtype))  # type: ignore[no-untyped-call]
        return convolved
