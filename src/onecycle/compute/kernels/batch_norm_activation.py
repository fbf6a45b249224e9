"""Batch norm and an activation as one layer on the CPU. The forward and the backward pass each read `x` twice."""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from onecycle.compute.kernels import native
from onecycle.compute.kernels.hooks import hooked

ACTIVATIONS = {nn.ReLU: functional.relu, nn.Hardswish: functional.hardswish}


class _NormalizeAndActivate(torch.autograd.Function):
    """Returns activation(batch_norm(x)), the batch mean and the batch variance. Mean and variance are float32 `[C]`.

    The activation is a hardswish if `smooth`, else a ReLU.

    The gradient follows Ioffe & Szegedy 2015, "Batch Normalization", section 3, with regrouped terms.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, smooth: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        channels = x.shape[1]
        rows = x.numel() // channels
        # For an accurate variance, measure distances from a value near the mean: here the mean of the first image.
        around = x[0].float().mean(dim=(1, 2))
        sums = torch.empty(torch.get_num_threads(), 2, channels, dtype=torch.float64)
        native.call("moments", x, around, sums, rows, channels)
        first, second = sums.sum(dim=0) / rows
        mean, variance = around + first, second - first.square()
        std = (variance + eps).sqrt()
        scale = (weight / std).float()
        shift = (bias - mean * scale).float()
        y = torch.empty_like(x)
        native.call("scale_shift_activate", x, scale, shift, y, rows, channels, smooth)
        ctx.smooth = smooth
        ctx.save_for_backward(x, scale, shift, mean, std)
        mean, variance = mean.float(), variance.float()
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None, None]:
        x, scale, shift, mean, std = ctx.saved_tensors
        gradient = native.to_kernel_layout(gradients[0].to(x.dtype))
        channels = x.shape[1]
        rows = x.numel() // channels
        mean32 = mean.float()
        sums = torch.empty(torch.get_num_threads(), 2, channels, dtype=torch.float64)
        native.call("gradient_moments", x, gradient, scale, shift, mean32, sums, rows, channels, ctx.smooth)
        of_bias, with_x = sums.sum(dim=0)
        of_weight = with_x / std
        # Let g be the gradient of the norm's output, and n the number of rows. The input gradient
        #     scale · (g - of_bias / n - normalized(x) · of_weight / n)
        # equals scale · g + slope · x + offset.
        slope = -scale * of_weight / std / rows
        offset = -scale * of_bias / rows - slope * mean32
        result = torch.empty_like(x)
        line = slope.float(), offset.float()
        native.call("input_gradient", x, gradient, scale, shift, *line, result, rows, channels, ctx.smooth)
        return result, of_weight.float(), of_bias.float(), None, None


class BatchNormActivation2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` and the `nn.ReLU` or `nn.Hardswish` after it, computed by the native kernels.

    The layer shares the parameters and buffers of the norm that it replaces. PyTorch's own kernels are used in
    evaluation, and for inputs that the native kernels do not support.
    """

    activation: type[nn.Module] = nn.ReLU

    @classmethod
    def replaces(cls, norm: nn.Module, activation: nn.Module) -> bool:
        """Whether this class can replace `norm` followed by `activation`."""
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
        """A replacement for `norm` and the `activation` after it, with the same parameters and buffers."""
        replacement = cls(norm.num_features, eps=norm.eps, momentum=norm.momentum, device="meta")
        replacement.activation = type(activation)
        replacement.weight, replacement.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            setattr(replacement, name, buffer)
        return replacement.train(norm.training)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        values = input.numel() // self.num_features  # values per channel; training needs at least two
        applies = native.supports(input) and input.shape[1] == self.num_features and self.weight.dtype == torch.float32
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
