"""Batch norm and an activation as one layer, in bfloat16 on the CPU: two passes over the map, two for its gradient."""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from onecycle.compute.kernels import native
from onecycle.compute.kernels.hooks import hooked

ACTIVATIONS = {nn.ReLU: functional.relu, nn.Hardswish: functional.hardswish}


class _NormalizeAndActivate(torch.autograd.Function):
    """activation(batch_norm(x)) with the statistics of the batch; also returns these: mean and variance float32 `[C]`.

    The activation is a hardswish if `smooth`, else a ReLU.

    The gradient is that of Ioffe & Szegedy 2015, "Batch Normalization", section 3, with its terms gathered by x.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, smooth: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        channels = x.shape[1]
        rows = x.numel() // channels
        # Squares of distances lose nothing if they are taken from somewhere near the mean, as the first image's is.
        around = x[0].float().mean(dim=(1, 2))
        sums = torch.empty(torch.get_num_threads(), 2, channels, dtype=torch.float64)
        native.call("moments", x, around, sums, rows, channels)
        first, second = sums.sum(dim=0) / rows
        mean, variance = around + first, second - first.square()
        deviation = (variance + eps).sqrt()
        scale = (weight / deviation).float()
        shift = (bias - mean * scale).float()
        y = torch.empty_like(x)
        native.call("scale_shift_activate", x, scale, shift, y, rows, channels, smooth)
        ctx.smooth = smooth
        ctx.save_for_backward(x, scale, shift, mean, deviation)
        mean, variance = mean.float(), variance.float()
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None, None]:
        x, scale, shift, mean, deviation = ctx.saved_tensors
        gradient = native.in_rows(gradients[0])
        channels = x.shape[1]
        rows = x.numel() // channels
        mean32 = mean.float()
        sums = torch.empty(torch.get_num_threads(), 2, channels, dtype=torch.float64)
        native.call("gradient_moments", x, gradient, scale, shift, mean32, sums, rows, channels, ctx.smooth)
        of_bias, with_x = sums.sum(dim=0)
        of_weight = with_x / deviation
        # scale (g - of_bias / n - normalized x of_weight / n), written as a line in x
        slope = -scale * of_weight / deviation / rows
        offset = -scale * of_bias / rows - slope * mean32
        result = torch.empty_like(x)
        line = slope.float(), offset.float()
        native.call("input_gradient", x, gradient, scale, shift, *line, result, rows, channels, ctx.smooth)
        return result, of_weight.float(), of_bias.float(), None, None


class BatchNormActivation2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` and the `nn.ReLU` or `nn.Hardswish` after it.

    It shares the parameters and buffers of the norm it was made from. Where the kernels do not apply (in evaluation,
    and for another type, layout or device) PyTorch's own compute.
    """

    activation: type[nn.Module] = nn.ReLU

    @classmethod
    def replaces(cls, norm: nn.Module, activation: nn.Module) -> bool:
        """Whether `norm` followed by `activation` is what this class stands in for."""
        return (
            type(norm) is nn.BatchNorm2d
            and type(activation) in ACTIVATIONS
            and norm.affine
            and norm.track_running_stats
            and norm.momentum is not None
            and not hooked(norm)
            and not hooked(activation)
        )

    @classmethod
    def sharing(cls, norm: nn.BatchNorm2d, activation: nn.Module) -> "BatchNormActivation2d":
        """The stand-in for `norm` and the `activation` after it, on the same parameters and buffers."""
        stand_in = cls(norm.num_features, eps=norm.eps, momentum=norm.momentum, device="meta")
        stand_in.activation = type(activation)
        stand_in.weight, stand_in.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            setattr(stand_in, name, buffer)
        return stand_in.train(norm.training)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        values = input.numel() // self.num_features  # of each channel; PyTorch refuses a single one
        applies = native.takes(input) and input.shape[1] == self.num_features and self.weight.dtype == torch.float32
        if not (self.training and applies and values > 1):
            return ACTIVATIONS[self.activation](super().forward(input))
        smooth = self.activation is nn.Hardswish
        y: torch.Tensor
        y, mean, variance = _NormalizeAndActivate.apply(input, self.weight, self.bias, self.eps, smooth)  # type: ignore[no-untyped-call]
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (values / (values - 1)), self.momentum)
            self.num_batches_tracked.add_(1)
        return y
