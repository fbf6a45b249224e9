"""3×3 convolution (stride 1, padding 1) and its weight gradient by Winograd's algorithm, with float32 arithmetic."""

import ctypes

import torch

from onecycle.compute.kernels import native


def supports(images: torch.Tensor, outputs: int) -> bool:
    """Whether the kernels support `images` `[B,C,H,W]` as the input of a convolution with `outputs` output channels."""
    return native.supports(images) and outputs <= native.MOST_CHANNELS


def convolve(images: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Convolve `images` `[B,C,H,W]` with `weight` `[outputs,C,3,3]`. The result has the dtype of `images`."""
    images, weight = native.to_kernel_layout(images), native.to_kernel_layout(weight.float())
    batch, inputs, height, width = images.shape
    outputs = len(weight)
    assert weight.shape == (outputs, inputs, 3, 3)
    output = native.empty_maps(batch, outputs, height, width, images.dtype)
    sizes = batch, height, width, inputs, outputs
    native.call("winograd_convolve", images, weight, output, _workspace(*sizes), *sizes)
    return output


def weight_gradient(images: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The weight gradient of a convolution, as float32 `[outputs,C,3,3]`.

    `images` `[B,C,H,W]` are the input of the convolution. `gradient` `[B,outputs,H,W]` is the gradient of its output.
    """
    images, gradient = native.to_kernel_layout(images), native.to_kernel_layout(gradient.to(images.dtype))
    batch, inputs, height, width = images.shape
    outputs = gradient.shape[1]
    assert gradient.shape == (batch, outputs, height, width)
    result = native.empty_maps(outputs, inputs, 3, 3, torch.float32)
    sizes = batch, height, width, inputs, outputs
    native.call("winograd_weight_gradient", images, gradient, result, _workspace(*sizes), *sizes)
    return result


def _workspace(*sizes: int) -> torch.Tensor:
    """The memory that the kernels need for transformed maps and filters."""
    loaded = native.compiled()
    assert loaded is not None, "call native.compiled() first"
    count = loaded.winograd_workspace_float32  # the same for all data types
    count.restype = ctypes.c_long
    return torch.empty(count(*map(ctypes.c_long, sizes)), dtype=torch.float32, device="cpu")
