"""3×3 convolutions where PyTorch's own kernels are slow, computed by Winograd's algorithm, im2col GEMM or AMX kernels.

Winograd's algorithm needs a quarter of the products of a direct convolution. It is the fastest on CPUs without matrix
extensions. For bfloat16, oneDNN's convolution is slower than a matrix product (GEMM) of the same size in two cases. On
feature maps up to 8×8, it computes the weight gradient far more slowly. On maps up to 4×4, it also computes the output
and the gradient of the input more slowly. The matrix product needs unfolded patches (im2col), but unfolding costs less
than the product saves. The AMX kernels do not unfold patches, so they are also faster on larger maps: for
the weight gradient on maps of any size, and for the output and the gradient of the input on maps up to 8×8.
docs/performance.md has the measurements.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from onecycle.compute.kernels import amx, winograd
from onecycle.compute.kernels.hooks import hooked

_Operation = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# Each kernel is used for feature maps of at most this many pixels. For the weight gradient, AMX has no limit.
AMX_MOST_PIXELS = 8 * 8  # largest feature map for which AMX computes the output and the gradient of the input
GEMM_WEIGHT_MOST_PIXELS = 8 * 8  # largest feature map whose weight gradient is computed with im2col GEMM
GEMM_MOST_PIXELS = 4 * 4  # largest feature map for which im2col GEMM computes the output and the gradient of the input
_ROWS = 512  # rows to transpose at a time; this many rows stay in the CPU cache


def unfold_patches(images: torch.Tensor) -> torch.Tensor:
    """Unfold `[B,C,H,W]` into the zero-padded 3×3 patch around every pixel: `[B*H*W, 3*3*C]`, channels innermost."""
    batch, channels, height, width = images.shape
    padded = functional.pad(images.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()  # [B,H+2,W+2,C]
    b, h, w, c = padded.stride()
    patches = padded.as_strided((batch, height, width, 3, 3, channels), (b, h, w, h, w, c))
    return patches.reshape(batch * height * width, 9 * channels)


def _convolve_by_gemm(images: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    batch, _, height, width = images.shape
    rows = unfold_patches(images) @ weight.to(images.dtype).permute(2, 3, 1, 0).flatten(end_dim=2)  # [B*H*W, outputs]
    return rows.view(batch, height, width, -1).permute(0, 3, 1, 2)  # channels-last


def _convolve_by_pytorch(images: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return functional.conv2d(images, weight.to(images.dtype), padding=1)


def _weight_gradient_by_gemm(images: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The weight gradient `[outputs,C,3,3]`, from the input `[B,C,H,W]` and the output's gradient `[B,outputs,H,W]`."""
    outputs = gradient.shape[1]
    rows = gradient.permute(0, 2, 3, 1).reshape(-1, outputs)  # [B*H*W, outputs]
    # Transpose in blocks here, because the matrix product would transpose a view more slowly.
    columns = rows.new_empty(outputs, len(rows))
    for start in range(0, len(rows), _ROWS):
        columns[:, start : start + _ROWS] = rows[start : start + _ROWS].t()
    return (columns @ unfold_patches(images)).view(outputs, 3, 3, -1).permute(0, 3, 1, 2)


class _Convolve(torch.autograd.Function):
    """A convolution.

    `convolve` computes the output and the gradient of the input. `weight_gradient` computes the gradient of the weight.
    """

    @staticmethod
    def forward(
        ctx: Any, images: torch.Tensor, weight: torch.Tensor, convolve: _Operation, weight_gradient: _Operation
    ) -> torch.Tensor:
        ctx.save_for_backward(images, weight)
        ctx.convolve, ctx.weight_gradient = convolve, weight_gradient
        return convolve(images, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        images, weight = ctx.saved_tensors
        (gradient,) = gradients
        of_images = of_weight = None
        if ctx.needs_input_grad[0]:
            # The input gradient is the output gradient, convolved with the filters rotated by 180°.
            of_images = ctx.convolve(gradient, weight.flip(2, 3).transpose(0, 1))
        if ctx.needs_input_grad[1]:
            of_weight = ctx.weight_gradient(images, gradient)
        return of_images, of_weight, None, None


class FastConv2d(nn.Conv2d):
    """A 3×3 convolution (stride 1, padding 1, no bias, one group), computed by the fastest of the allowed kernels.

    It shares the weight of the layer that it replaces, and agrees with that layer up to rounding. The weight must not
    change between the forward and the backward pass.
    """

    winograd = False
    im2col_gemm = False
    amx = False

    @classmethod
    def replaces(cls, layer: nn.Module) -> bool:
        """Whether this class can replace `layer`."""
        return (
            type(layer) is nn.Conv2d
            and (layer.kernel_size, layer.stride, layer.padding) == ((3, 3), (1, 1), (1, 1))
            and (layer.dilation, layer.groups, layer.bias, layer.padding_mode) == ((1, 1), 1, None, "zeros")
            and not hooked(layer)
        )

    @classmethod
    def sharing(cls, layer: nn.Conv2d, *, winograd: bool, im2col_gemm: bool, amx: bool) -> "FastConv2d":
        """A replacement for `layer` with the same weight. The other arguments say which kernels it may use."""
        replacement = cls(layer.in_channels, layer.out_channels, 3, padding=1, bias=False, device="meta")
        replacement.weight = layer.weight
        replacement.winograd, replacement.im2col_gemm, replacement.amx = winograd, im2col_gemm, amx
        return replacement.train(layer.training)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        device = input.device.type
        # Autocast does not reach inside an autograd function, so cast here as autocast would.
        cast = torch.is_autocast_enabled(device) and input.dtype != torch.float64
        images = input.to(torch.get_autocast_dtype(device)) if cast else input
        fits = input.dim() == 4 and input.numel() > 0 and input.shape[1] == self.in_channels
        if not fits or not (cast or input.dtype == self.weight.dtype):
            return super().forward(input)
        pixels = input.shape[-2] * input.shape[-1]
        convolve: _Operation = _convolve_by_pytorch
        if self.winograd and winograd.supports(images, self.out_channels):
            convolve, weight_gradient = winograd.convolve, winograd.weight_gradient
        elif self.amx and amx.supports(images):
            weight_gradient = amx.weight_gradient
            if pixels <= AMX_MOST_PIXELS:
                convolve = amx.convolve
        elif self.im2col_gemm and pixels <= GEMM_WEIGHT_MOST_PIXELS:
            weight_gradient = _weight_gradient_by_gemm
            if pixels <= GEMM_MOST_PIXELS:
                convolve = _convolve_by_gemm
        else:
            return super().forward(input)
        result: torch.Tensor = _Convolve.apply(images, self.weight, convolve, weight_gradient)  # type: ignore[no-untyped-call]
        return result
