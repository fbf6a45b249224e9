"""3×3 convolution by other means where the usual kernels starve: products of matrices, and a CPU's matrix unit.

On maps of up to 8×8 the weight gradient of oneDNN's bfloat16 convolution is far slower than a plain matrix product of
the same size, and on maps of up to 4×4 the output and the input gradient are, too. Unfolding the patches costs less
than that. A CPU with a matrix unit (AMX) does without patches, and gains on larger maps as well. What was measured
stands in benchmarks/NOTES.md.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from onecycle.compute.kernels import tiles
from onecycle.compute.kernels.hooks import hooked

_Operation = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# Pixels of the largest map
LARGEST_FOR_TILES = 8 * 8  # whose output and input gradient are computed on the matrix unit; the weight gradient always
LARGEST_FOR_PRODUCTS = 8 * 8  # whose weight gradient is computed by products
LARGEST_FOR_ALL_PRODUCTS = 4 * 4  # whose output and input gradient are, too
_ROWS = 512  # transposed at once: a block of so many rows stays in the cache


def unfold_patches(images: torch.Tensor) -> torch.Tensor:
    """The 3×3 patch around every pixel, zero beyond the border: `[B,C,H,W]` to `[B*H*W, 3*3*C]`, channels fastest."""
    batch, channels, height, width = images.shape
    padded = functional.pad(images.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()  # [B,H+2,W+2,C]
    b, h, w, c = padded.stride()
    patches = padded.as_strided((batch, height, width, 3, 3, channels), (b, h, w, h, w, c))
    return patches.reshape(batch * height * width, 9 * channels)


def _convolve_by_products(images: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    batch, _, height, width = images.shape
    rows = unfold_patches(images) @ weight.permute(2, 3, 1, 0).flatten(end_dim=2)  # [B*H*W, outputs]
    return rows.view(batch, height, width, -1).permute(0, 3, 1, 2)  # channels-last


def _convolve_usually(images: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return functional.conv2d(images, weight, padding=1)


def _weight_gradient_by_products(images: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The weight gradient `[outputs,C,3,3]`, from the input `[B,C,H,W]` and the output's gradient `[B,outputs,H,W]`."""
    outputs = gradient.shape[1]
    rows = gradient.permute(0, 2, 3, 1).reshape(-1, outputs)  # [B*H*W, outputs]
    # Handed a transposed view, the product would transpose it slowly.
    columns = rows.new_empty(outputs, len(rows))
    for start in range(0, len(rows), _ROWS):
        columns[:, start : start + _ROWS] = rows[start : start + _ROWS].t()
    return (columns @ unfold_patches(images)).view(outputs, 3, 3, -1).permute(0, 3, 1, 2)


class _Convolve(torch.autograd.Function):
    """A convolution by `convolve`, and its gradients by that and `weight_gradient`."""

    @staticmethod
    def forward(
        ctx: Any, images: torch.Tensor, weight: torch.Tensor, convolve: _Operation, weight_gradient: _Operation
    ) -> torch.Tensor:
        ctx.save_for_backward(images, weight)
        ctx.convolve, ctx.weight_gradient = convolve, weight_gradient
        return convolve(images, weight.to(images.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        images, weight = ctx.saved_tensors
        (gradient,) = gradients
        of_images = of_weight = None
        if ctx.needs_input_grad[0]:
            # The convolution of the output's gradient with the filters turned by 180°.
            of_images = ctx.convolve(gradient, weight.to(gradient.dtype).flip(2, 3).transpose(0, 1))
        if ctx.needs_input_grad[1]:
            of_weight = ctx.weight_gradient(images, gradient)
        return of_images, of_weight, None, None


class FastConv2d(nn.Conv2d):
    """A 3×3 convolution (stride 1, padding 1, no bias, one group) that computes as suits the size of the map.

    It shares the weight of the layer it was made from, and agrees with it up to rounding. The weight must not change
    between the forward and the backward pass.
    """

    products = False  # of matrices, on small maps
    matrix_unit = False  # all of it on small maps, the weight gradient on any

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
    def sharing(cls, layer: nn.Conv2d, *, products: bool, matrix_unit: bool) -> "FastConv2d":
        """The stand-in for `layer`, on the same weight, with the means it may use."""
        stand_in = cls(layer.in_channels, layer.out_channels, 3, padding=1, bias=False, device="meta")
        stand_in.weight = layer.weight
        stand_in.products, stand_in.matrix_unit = products, matrix_unit
        return stand_in.train(layer.training)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        device = input.device.type
        # Autocast does not reach inside an autograd function: do here what it does for a convolution.
        cast = torch.is_autocast_enabled(device) and input.dtype != torch.float64
        images = input.to(torch.get_autocast_dtype(device)) if cast else input
        fits = input.dim() == 4 and input.numel() > 0 and input.shape[1] == self.in_channels
        if not fits or not (cast or input.dtype == self.weight.dtype):
            return super().forward(input)
        pixels = input.shape[-2] * input.shape[-1]
        convolve: _Operation = _convolve_usually
        if self.matrix_unit and tiles.takes(images):
            weight_gradient = tiles.weight_gradient
            if pixels <= LARGEST_FOR_TILES:
                convolve = tiles.convolve
        elif self.products and pixels <= LARGEST_FOR_PRODUCTS:
            weight_gradient = _weight_gradient_by_products
            if pixels <= LARGEST_FOR_ALL_PRODUCTS:
                convolve = _convolve_by_products
        else:
            return super().forward(input)
        result: torch.Tensor = _Convolve.apply(images, self.weight, convolve, weight_gradient)  # type: ignore[no-untyped-call]
        return result
