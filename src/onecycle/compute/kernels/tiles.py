"""3×3 convolution (stride 1, padding 1) on the matrix unit of x86 CPUs (AMX), in bfloat16, and its weight gradient.

What is said here of tiles, of 16×16 float32 or 16×32 bfloat16, must agree with the C file.
"""

import functools

import torch

from onecycle.compute.kernels import native

FEWEST_CHANNELS = 16  # of the input; of fewer, tiles would be mostly empty
FEWEST_IMAGES = 16  # the same
_SIDE = 16
_TILE = 1024  # bytes
_GROUP = 32  # images that are packed together
_TAPS = 9
_CACHED = 1000  # tiles that a thread packs at once, to find them in its cache


@functools.cache
def can_be_used() -> bool:
    """Whether this CPU has a matrix unit, and this process and compiler can use it."""
    library = native.compiled()
    return library is not None and bool(library.has_tiles())


def takes(images: torch.Tensor) -> bool:
    """Whether the kernels compute on `images` `[B,C,H,W]`, as a convolution's input, on this machine."""
    return (
        can_be_used()
        and native.takes(images)
        and images.shape[0] >= FEWEST_IMAGES
        and images.shape[1] >= FEWEST_CHANNELS
    )


def convolve(images: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The convolution of `images` `[B,C,H,W]` with `weight` `[outputs,C,3,3]`; bfloat16 on the CPU, in any layout."""
    assert can_be_used(), "asking makes the matrix unit usable"
    images, weight = native.in_rows(images), native.in_rows(weight)
    batch, inputs, height, width = images.shape
    outputs = len(weight)
    assert weight.shape == (outputs, inputs, 3, 3)
    output = _maps(batch, outputs, height, width, torch.bfloat16)
    filters = _allocate_tiles(_TAPS * _blocks(inputs) // 2 * _blocks(outputs))
    packed = _allocate_tiles(torch.get_num_threads() * height * width * _blocks(inputs))
    native.call("convolve", images, weight, output, filters, packed, batch, height, width, inputs, outputs)
    return output


def weight_gradient(images: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The weight gradient, float32 `[outputs,C,3,3]`, of a convolution of `images` `[B,C,H,W]`, in any layout.

    `gradient` `[B,outputs,H,W]` is that of its output.
    """
    assert can_be_used(), "asking makes the matrix unit usable"
    images, gradient = native.in_rows(images), native.in_rows(gradient)
    batch, inputs, height, width = images.shape
    outputs = gradient.shape[1]
    assert gradient.shape == (batch, outputs, height, width)
    parts = min(torch.get_num_threads(), -(-batch // _GROUP))
    of_input, of_output = _blocks(inputs), _blocks(outputs)
    rows = (_CACHED // width - 2 * of_input) // (of_input + of_output)  # packed at once
    rows = min(max(rows, 1), height)
    input_size, gradient_size = min(rows + 2, height) * width * of_input, rows * width * of_output
    packed_input, packed_gradient = _allocate_tiles(parts * input_size), _allocate_tiles(parts * gradient_size)
    sums = _allocate_tiles(parts * _TAPS * of_output * of_input)
    result = _maps(outputs, inputs, 3, 3, torch.float32)
    packed = packed_input, input_size, packed_gradient, gradient_size, rows
    native.call("weight_gradient", images, gradient, result, sums, *packed, batch, height, width, inputs, outputs)
    return result


def _blocks(channels: int) -> int:
    """Blocks of 16 channels, rounded up to an even number."""
    return 2 * -(-channels // (2 * _SIDE))


def _allocate_tiles(count: int) -> torch.Tensor:
    """Room for so many, at an address that is a multiple of 64, as the CPU allocator's are and C relies on."""
    return torch.empty(count * _TILE, dtype=torch.uint8, device="cpu")


def _maps(batch: int, channels: int, height: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    shape = batch, channels, height, width
    return torch.empty(shape, dtype=dtype, device="cpu", memory_format=torch.channels_last)
