"""3×3 convolution as a matrix product, for maps so small that the usual kernels starve.

On maps of 4×4 the weight gradient of oneDNN's bfloat16 convolution is far slower than a plain matrix product of the
same size. Unfolding the patches costs little there and turns all three products of a convolution (its
output, its weight gradient, its input gradient) into plain ones.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

LARGEST_MAP = 4 * 4  # pixels; on larger maps unfolding the patches costs what the products save


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


class _Convolve(torch.autograd.Function):
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
        outputs, inputs = weight.shape[:2]
        (gradient,) = gradients
        rows = gradient.permute(0, 2, 3, 1).reshape(-1, outputs)  # [B*H*W, outputs]
        weight_gradient = (rows.t() @ patches).view(outputs, 3, 3, inputs).permute(0, 3, 1, 2)
        # The input gradient is the convolution of the output gradient with the filters turned by 180°.
        turned = weight.flip(2, 3).permute(2, 3, 0, 1).reshape(-1, inputs)
        return _as_images(unfold_patches(gradient) @ turned, ctx.shape), weight_gradient


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
            # A hook would be lost, and the weight of the old weight_norm is made by one.
            and not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks)
        )

    @classmethod
    def sharing(cls, layer: nn.Conv2d) -> "SmallMapConv2d":
        """The stand-in for `layer`, on the same weight."""
        stand_in = cls(layer.in_channels, layer.out_channels, 3, padding=1, bias=False, device="meta")
        stand_in.weight = layer.weight
        return stand_in.train(layer.training)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if input.shape[2] * input.shape[3] > LARGEST_MAP:
            return super().forward(input)
        device = input.device.type
        # Autocast does not reach inside an autograd function: do here what it does for a convolution.
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
        convolved: torch.Tensor = _Convolve.apply(input.to(dtype), self.weight.to(dtype))  # type: ignore[no-untyped-call]
        return convolved
