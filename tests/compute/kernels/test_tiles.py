import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from onecycle.compute.kernels import tiles
from onecycle.compute.kernels.convolution import FastConv2d


@pytest.fixture(autouse=True)
def threads(native_kernels: None) -> Iterator[None]:
    if not torch.cpu.get_capabilities().get("amx_bf16"):
        pytest.skip("this CPU has no matrix unit")
    assert tiles.can_be_used()
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def random(*shape: int) -> torch.Tensor:
    """In bfloat16 and channels-last."""
    return torch.randn(shape).bfloat16().contiguous(memory_format=torch.channels_last)


def error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    assert ours.shape == exact.shape
    return float((ours.double() - exact).norm() / exact.norm())


def natively(layer: nn.Conv2d) -> FastConv2d:
    return FastConv2d.sharing(layer, products=True, matrix_unit=True)


def run(layer: nn.Conv2d, images: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Output, input gradient and weight gradient, under bfloat16 autocast if the images are of that type."""
    layer.weight.grad = None
    images = images.detach().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=images.dtype == torch.bfloat16):
        output = layer(images)
    output.backward(gradient)
    assert images.grad is not None
    assert layer.weight.grad is not None
    return output.detach(), images.grad, layer.weight.grad


# Batches about the 32 images of a group, channels about the 16 and 32 of a tile; maps that a thread packs whole, and in
# bands.
SHAPES = st.tuples(
    st.sampled_from([16, 17, 31, 32, 33, 70]),
    st.sampled_from([16, 17, 24, 32, 48, 65]),
    st.integers(1, 12),
    st.integers(1, 12),
)
OUTPUTS = st.sampled_from([1, 15, 16, 31, 32, 33, 96])


@given(SHAPES, OUTPUTS, st.integers(1, 3), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_the_products_are_exact_up_to_rounding(shape, outputs, threads, seed) -> None:
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    batch, inputs, height, width = shape
    images, weight, gradient = random(*shape), random(outputs, inputs, 3, 3), random(batch, outputs, height, width)
    output = tiles.convolve(images, weight)
    assert output.dtype == torch.bfloat16
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert error(output, functional.conv2d(images.double(), weight.double(), padding=1)) < 2**-8  # rounded once
    of_weight = tiles.weight_gradient(images, gradient)
    assert of_weight.dtype == torch.float32
    exact = nn.grad.conv2d_weight(images.double(), weight.shape, gradient.double(), padding=1)
    assert error(of_weight, exact) < 1e-5


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 2, 1, 5), (40, 64, 5, 300), (33, 24, 2, 1100), (33, 300, 8, 8)])
def test_any_shape_is_computed_within_its_memory(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    given, margin = [], 4096
    allocate = torch.empty

    def spoiled(*arguments: Any, **options: Any) -> torch.Tensor:
        """What is allocated holds no numbers, and has such before and behind it."""
        wanted = allocate(*arguments, **options)
        size = wanted.numel() * wanted.element_size()
        memory = allocate(size + 2 * margin, dtype=torch.uint8).fill_(0xFF)
        given.append(memory)
        return memory[margin : margin + size].view(wanted.dtype).as_strided(wanted.shape, wanted.stride())

    monkeypatch.setattr(torch, "empty", spoiled)
    images, weight, gradient = random(*shape), random(48, shape[1], 3, 3), random(shape[0], 48, *shape[2:])
    assert error(tiles.convolve(images, weight), functional.conv2d(images.double(), weight.double(), padding=1)) < 2**-8
    exact = nn.grad.conv2d_weight(images.double(), weight.shape, gradient.double(), padding=1)
    assert error(tiles.weight_gradient(images, gradient), exact) < 1e-5
    assert len(given) == 7
    assert all((memory[:margin] == 0xFF).all() and (memory[-margin:] == 0xFF).all() for memory in given)


def test_operands_come_in_any_layout_and_type_and_under_any_default() -> None:
    torch.manual_seed(0)
    images, weight, gradient = random(32, 16, 5, 5), random(16, 16, 3, 3), random(32, 16, 5, 5)
    output, of_weight = tiles.convolve(images, weight), tiles.weight_gradient(images, gradient)
    assert torch.equal(tiles.convolve(images.contiguous(), weight.contiguous()), output)
    assert torch.equal(tiles.weight_gradient(images.contiguous(), gradient.float().contiguous()), of_weight)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(tiles.weight_gradient(images, gradient), of_weight)
    finally:
        torch.set_default_dtype(usual)
    with torch.device("meta"):
        assert torch.equal(tiles.convolve(images, weight), output)
        assert torch.equal(tiles.weight_gradient(images, gradient), of_weight)


@given(SHAPES, OUTPUTS, st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_as_a_layer_no_more_is_lost_than_usually(shape, outputs, seed) -> None:
    torch.manual_seed(seed)
    layer = nn.Conv2d(shape[1], outputs, 3, padding=1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(layer.weight.bfloat16())  # so that only what is computed is rounded, not what is given
    images, gradient = random(*shape), random(shape[0], outputs, *shape[2:])
    exact = run(copy.deepcopy(layer).double(), images.double(), gradient.double())
    usual = run(layer, images, gradient)
    ours = run(natively(layer), images, gradient)
    for mine, theirs, right in zip(ours, usual, exact, strict=True):
        assert mine.dtype == theirs.dtype
        assert error(mine, right) <= 1.2 * error(theirs, right) + 1e-7


def test_the_weight_gradient_of_any_map_comes_from_the_matrix_unit_and_small_maps_wholly() -> None:
    layer = natively(nn.Conv2d(16, 16, 3, padding=1, bias=False))
    for size in (4, 8, 9, 20):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            how: Any = layer(random(16, 16, size, size)).grad_fn
        assert how.weight_gradient is tiles.weight_gradient
        assert (how.convolve is tiles.convolve) is (size <= 8)


@pytest.mark.parametrize(
    "images",
    [
        torch.randn(16, 16, 9, 9),
        random(16, 15, 9, 9),
        random(15, 16, 9, 9),
        random(16, 16, 9, 9).contiguous(),
        random(16, 16, 9, 9)[:0],
        random(16, 16, 9, 9)[0],
    ],
    ids=["float32", "few channels", "few images", "contiguous", "empty", "a single image"],
)
def test_what_does_not_fit_is_left_to_pytorch(images: torch.Tensor) -> None:
    assert not tiles.takes(images)
    layer = nn.Conv2d(images.shape[-3], 16, 3, padding=1, bias=False).to(images.dtype)
    assert torch.equal(natively(layer)(images), layer(images))


def test_an_image_that_is_not_a_number_spoils_no_other() -> None:
    torch.manual_seed(0)
    images, weight = random(40, 16, 4, 4), random(16, 16, 3, 3)
    expected = tiles.convolve(images, weight)
    images[7] = float("nan")
    output = tiles.convolve(images, weight)
    assert output[7].isnan().all()
    others = torch.arange(40) != 7
    assert torch.equal(output[others], expected[others])
    assert tiles.weight_gradient(images, expected).isnan().all()


def test_it_leaves_the_tiles_to_pytorch_as_they_were() -> None:
    torch.manual_seed(0)
    images, weight = random(64, 64, 16, 16), random(64, 64, 3, 3)
    a, b = torch.randn(300, 300).bfloat16(), torch.randn(300, 300).bfloat16()
    convolved, product = functional.conv2d(images, weight, padding=1), a @ b
    for _ in range(3):
        tiles.convolve(images, weight)
        assert torch.equal(a @ b, product)
        tiles.weight_gradient(images, images)
        assert torch.equal(functional.conv2d(images, weight, padding=1), convolved)


def test_the_same_threads_give_the_same_bits() -> None:
    images, weight = random(100, 24, 7, 7), random(40, 24, 3, 3)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        output = tiles.convolve(images, weight)
        of_weight = tiles.weight_gradient(images, output)
        assert torch.equal(tiles.convolve(images, weight), output)
        assert torch.equal(tiles.weight_gradient(images, output), of_weight)


def test_no_gradient_is_computed_that_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    for name in ("convolve", "weight_gradient"):
        operation = getattr(tiles, name)

        def noting(*operands: torch.Tensor, name: str = name, operation: Any = operation) -> torch.Tensor:
            computed.append(name)
            result: torch.Tensor = operation(*operands)
            return result

        monkeypatch.setattr(tiles, name, noting)
    for of_images, of_weight, expected in [(True, False, ["convolve"]), (False, True, ["weight_gradient"])]:
        layer = natively(nn.Conv2d(16, 16, 3, padding=1, bias=False).bfloat16().requires_grad_(of_weight))
        output = layer(random(16, 16, 4, 4).requires_grad_(of_images))
        computed.clear()
        output.sum().backward()
        assert computed == expected


def test_the_wrong_number_of_channels_is_refused_as_usually() -> None:
    layer = natively(nn.Conv2d(16, 16, 3, padding=1, bias=False).bfloat16())
    with pytest.raises(RuntimeError, match="to have 16 channels, but got 32 channels instead"):
        layer(random(16, 32, 4, 4))
