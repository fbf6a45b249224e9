"""3×3 convolution (stride 1, padding 1) and its weight gradient in bfloat16 with AMX, a matrix extension of x86 CPUs.

An AMX tile holds 16×16 float32 or 16×32 bfloat16 values. The constants below must match amx.c.
"""

import functools

import torch

from onecycle.compute.kernels import native

FEWEST_CHANNELS = 16  # the input needs this many channels; with fewer, tiles would be mostly empty
FEWEST_IMAGES = 16  # with fewer images, tiles would be mostly empty
_SIDE = 16
_TILE = 1024  # size of a tile in bytes
_GROUP = 32  # images that are packed together
_TAPS = 9
_CACHED_TILES = 1000  # a thread packs about this many tiles at a time, so that they stay in the CPU cache


@functools.cache
def is_available() -> bool:
    """Whether the CPU, the system and the compiler support AMX. The call also enables AMX for this process."""
    library = native.compiled()
    return library is not None and bool(library.has_amx())


def supports(images: torch.Tensor) -> bool:
    """Whether the kernels support `images` `[B,C,H,W]` as the input of a convolution. `images` must be bfloat16."""
    return (
        is_available()
        and images.dtype == torch.bfloat16
        and native.supports(images)
        and images.shape[0] >= FEWEST_IMAGES
        and images.shape[1] >= FEWEST_CHANNELS
    )


def convolve(images: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Convolve `images` `[B,C,H,W]` with `weight` `[outputs,C,3,3]`. The result is bfloat16.

    Both arguments may have any memory layout.
    """
    assert is_available(), "AMX must be enabled first"
    images, weight = (native.to_kernel_layout(maps.to(torch.bfloat16)) for maps in (images, weight))
    batch, inputs, height, width = images.shape
    outputs = len(weight)
    assert weight.shape == (outputs, inputs, 3, 3)
    output = native.empty_maps(batch, outputs, height, width, torch.bfloat16)
    filters = _allocate_tiles(_TAPS * _blocks(inputs) // 2 * _blocks(outputs))
    packed = _allocate_tiles(torch.get_num_threads() * height * width * _blocks(inputs))
    native.call("amx_convolve", images, weight, output, filters, packed, batch, height, width, inputs, outputs)
    return output


def weight_gradient(images: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The weight gradient of a convolution, as float32 `[outputs,C,3,3]`.

    `images` `[B,C,H,W]` are the input of the convolution. `gradient` `[B,outputs,H,W]` is the gradient of its output.
    Both may have any memory layout.
    """
    assert is_available(), "AMX must be enabled first"
    images, gradient = (native.to_kernel_layout(maps.to(torch.bfloat16)) for maps in (images, gradient))
    batch, inputs, height, width = images.shape
    outputs = gradient.shape[1]
    assert gradient.shape == (batch, outputs, height, width)
    parts = min(torch.get_num_threads(), -(-batch // _GROUP))
    of_input, of_output = _blocks(inputs), _blocks(outputs)
    # The number of rows of the map that are packed at a time.
    rows = (_CACHED_TILES // width - 2 * of_input) // (of_input + of_output)
    rows = min(max(rows, 1), height)
    input_size, gradient_size = min(rows + 2, height) * width * of_input, rows * width * of_output
    packed_input, packed_gradient = _allocate_tiles(parts * input_size), _allocate_tiles(parts * gradient_size)
    sums = _allocate_tiles(parts * _TAPS * of_output * of_input)
    result = native.empty_maps(outputs, inputs, 3, 3, torch.float32)
    packed = packed_input, input_size, packed_gradient, gradient_size, rows
    native.call("amx_weight_gradient", images, gradient, result, sums, *packed, batch, height, width, inputs, outputs)
    return result


def _blocks(channels: int) -> int:
    """The number of blocks of 16 channels, rounded up to an even number."""
    return 2 * -(-channels // (2 * _SIDE))


def _allocate_tiles(count: int) -> torch.Tensor:
    """Memory for `count` tiles, aligned to 64 bytes like all CPU tensors. The C code relies on the alignment."""
    return torch.empty(count * _TILE, dtype=torch.uint8, device="cpu")
