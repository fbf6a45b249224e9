"""3×3 convolution (stride 1, padding 1) on the matrix unit of x86 CPUs (AMX), in bfloat16, and its weight gradient."""

import functools

import torch

from onecycle.kernels import native

FEWEST_INPUTS = 16  # channels; of fewer, tiles would be mostly empty
_SIDE = 16  # of a tile; its sums are float32, so a KiB, too
_TILE = 1024  # bytes
_CACHED = 1000  # tiles that a thread packs at once, to find them in its cache


@functools.cache
def can_be_used() -> bool:
    """Whether this CPU has a matrix unit, and this process may use it."""
    library = native.compiled()
    return library is not None and bool(library.has_tiles())


def takes(images: torch.Tensor) -> bool:
    """Whether the kernels compute on `images` `[B,C,H,W]`, as a convolution's input, on this machine."""
    return can_be_used() and native.takes(images) and images.shape[1] >= FEWEST_INPUTS


def convolve(images: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The convolution of `images` `[B,C,H,W]`, which `takes` asks for, with `weight` `[outputs,C,3,3]` in bfloat16."""
    images, weight = native.in_rows(images), native.in_rows(weight)
    batch, inputs, height, width = images.shape
    outputs = len(weight)
    output = torch.empty(batch, outputs, height, width, dtype=torch.bfloat16, memory_format=torch.channels_last)
    filters = _tiles(9 * _blocks(inputs) // 2 * _blocks(outputs))
    packed = _tiles(torch.get_num_threads() * height * width * _blocks(inputs))
    native.call("convolve", images, weight, output, filters, packed, batch, height, width, inputs, outputs)
    return output


def weight_gradient(images: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The weight gradient, float32 `[outputs,C,3,3]`, of a convolution of `images` `[B,C,H,W]`, which `takes` asks for.

    `gradient` `[B,outputs,H,W]` is that of its output.
    """
    gradient = native.in_rows(gradient)
    batch, inputs, height, width = images.shape
    outputs, threads = gradient.shape[1], torch.get_num_threads()
    of_input, of_output = _blocks(inputs), _blocks(outputs)
    rows = (_CACHED // width - 2 * of_input) // (of_input + of_output)  # packed at once
    rows = min(max(rows, 1), height)
    size = width * (min(rows + 2, height) * of_input + rows * of_output)
    packed, sums = _tiles(threads * size), _tiles(threads * 9 * of_output * of_input)
    result = torch.empty(outputs, inputs, 3, 3, memory_format=torch.channels_last)
    shape = batch, height, width, inputs, outputs
    native.call("filter_gradient", images, gradient, result, sums, packed, size, rows, *shape)
    return result


def _blocks(channels: int) -> int:
    """Blocks of 16 channels, taken two by two."""
    return 2 * -(-channels // (2 * _SIDE))


def _tiles(count: int) -> torch.Tensor:
    return torch.empty(count * _TILE, dtype=torch.uint8)
