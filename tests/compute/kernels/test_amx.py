import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from onecycle.compute.kernels import amx
from onecycle.compute.kernels.convolution import FastConv2d


@pytest.fixture(autouse=True)
def threads(native_kernels: None) -> Iterator[None]:
    if not torch.cpu.get_capabilities().get("amx_bf16"):
        pytest.skip("this CPU has no AMX")
    assert amx.is_available()
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def random(*shape: int) -> torch.Tensor:
    """Random bfloat16 values in channels-last memory."""
    return torch.randn(shape).bfloat16().contiguous(memory_format=torch.channels_last)


def error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    assert ours.shape == exact.shape
    return float((ours.double() - exact).norm() / exact.norm())


def with_amx(layer: nn.Conv2d) -> FastConv2d:
    return FastConv2d.sharing(layer, winograd=False, im2col_gemm=True, amx=True)


def run(layer: nn.Conv2d, images: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The output, input gradient and weight gradient of `layer`. bfloat16 images run under bfloat16 autocast."""
    layer.weight.grad = None
    images = images.detach().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=images.dtype == torch.bfloat16):
        output = layer(images)
    output.backward(gradient)
    assert images.grad is not None
    assert layer.weight.grad is not None
    return output.detach(), images.grad, layer.weight.grad


# Batch sizes are around 32, because the kernels process 32 images at a time. Numbers of channels are around 16 and 32,
# because an AMX tile has 16 rows of 32 bfloat16 values. For the weight gradient, the kernel packs small feature maps
# whole, and large feature maps in bands of rows.
SHAPES = st.tuples(
    st.sampled_from([16, 17, 31, 32, 33, 70]),
    st.sampled_from([16, 17, 24, 32, 48, 65]),
    st.integers(1, 12),
    st.integers(1, 12),
)
OUTPUTS = st.sampled_from([1, 15, 16, 31, 32, 33, 96])


@given(SHAPES, OUTPUTS, st.integers(1, 3), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_output_and_weight_gradient_are_exact_up_to_rounding(shape, outputs, threads, seed) -> None:
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    batch, inputs, height, width = shape
    images, weight, gradient = random(*shape), random(outputs, inputs, 3, 3), random(batch, outputs, height, width)
    output = amx.convolve(images, weight)
    assert output.dtype == torch.bfloat16
    assert output.is_contiguous(memory_format=torch.channels_last)
    # The output is rounded once, to bfloat16.
    assert error(output, functional.conv2d(images.double(), weight.double(), padding=1)) < 2**-8
    of_weight = amx.weight_gradient(images, gradient)
    assert of_weight.dtype == torch.float32
    exact = nn.grad.conv2d_weight(images.double(), weight.shape, gradient.double(), padding=1)
    assert error(of_weight, exact) < 1e-5


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 2, 1, 5), (40, 64, 5, 300), (33, 24, 2, 1100), (33, 300, 8, 8)])
def test_any_shape_stays_within_its_memory(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    allocated, margin = [], 4096
    allocate = torch.empty

    def spoiled(*arguments: Any, **options: Any) -> torch.Tensor:
        """Like `torch.empty`, but the memory and a margin before and after it are filled with NaN."""
        wanted = allocate(*arguments, **options)
        size = wanted.numel() * wanted.element_size()
        memory = allocate(size + 2 * margin, dtype=torch.uint8).fill_(0xFF)
        allocated.append(memory)
        return memory[margin : margin + size].view(wanted.dtype).as_strided(wanted.shape, wanted.stride())

    monkeypatch.setattr(torch, "empty", spoiled)
    images, weight, gradient = random(*shape), random(48, shape[1], 3, 3), random(shape[0], 48, *shape[2:])
    assert error(amx.convolve(images, weight), functional.conv2d(images.double(), weight.double(), padding=1)) < 2**-8
    exact = nn.grad.conv2d_weight(images.double(), weight.shape, gradient.double(), padding=1)
    assert error(amx.weight_gradient(images, gradient), exact) < 1e-5
    assert len(allocated) == 7
    assert all((memory[:margin] == 0xFF).all() and (memory[-margin:] == 0xFF).all() for memory in allocated)


def test_operands_may_have_any_layout_and_dtype_under_any_default() -> None:
    torch.manual_seed(0)
    images, weight, gradient = random(32, 16, 5, 5), random(16, 16, 3, 3), random(32, 16, 5, 5)
    output, of_weight = amx.convolve(images, weight), amx.weight_gradient(images, gradient)
    assert torch.equal(amx.convolve(images.contiguous(), weight.contiguous()), output)
    assert torch.equal(amx.convolve(images.float(), weight.float()), output)
    assert torch.equal(amx.weight_gradient(images.contiguous(), gradient.float().contiguous()), of_weight)
    assert torch.equal(amx.weight_gradient(images.float(), gradient), of_weight)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(amx.weight_gradient(images, gradient), of_weight)
    finally:
        torch.set_default_dtype(default)
    with torch.device("meta"):
        assert torch.equal(amx.convolve(images, weight), output)
        assert torch.equal(amx.weight_gradient(images, gradient), of_weight)


@given(SHAPES, OUTPUTS, st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_the_layer_is_as_accurate_as_pytorchs(shape, outputs, seed) -> None:
    torch.manual_seed(seed)
    layer = nn.Conv2d(shape[1], outputs, 3, padding=1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(layer.weight.bfloat16())  # the weights are exact in bfloat16, so only results are rounded
    images, gradient = random(*shape), random(shape[0], outputs, *shape[2:])
    exact = run(copy.deepcopy(layer).double(), images.double(), gradient.double())
    usual = run(layer, images, gradient)
    ours = run(with_amx(layer), images, gradient)
    for mine, theirs, reference in zip(ours, usual, exact, strict=True):
        assert mine.dtype == theirs.dtype
        assert error(mine, reference) <= 1.2 * error(theirs, reference) + 1e-7


def test_amx_computes_every_weight_gradient_and_all_of_small_maps() -> None:
    layer = with_amx(nn.Conv2d(16, 16, 3, padding=1, bias=False))
    for size in (4, 8, 9, 20):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            node: Any = layer(random(16, 16, size, size)).grad_fn
        assert node.weight_gradient is amx.weight_gradient
        assert (node.convolve is amx.convolve) is (size <= 8)


@pytest.mark.parametrize(
    "images",
    [
        random(16, 16, 9, 9).float(),
        torch.randn(16, 16, 9, 9),
        random(16, 15, 9, 9),
        random(15, 16, 9, 9),
        random(16, 16, 9, 9).contiguous(),
        random(16, 16, 9, 9)[:0],
        random(16, 16, 9, 9)[0],
    ],
    ids=["float32", "contiguous float32", "few channels", "few images", "contiguous", "empty", "a single image"],
)
def test_unsupported_images_go_to_pytorch(images: torch.Tensor) -> None:
    assert not amx.supports(images)
    layer = nn.Conv2d(images.shape[-3], 16, 3, padding=1, bias=False).to(images.dtype)
    assert torch.equal(with_amx(layer)(images), layer(images))


def test_a_nan_image_does_not_change_the_others() -> None:
    torch.manual_seed(0)
    images, weight = random(40, 16, 4, 4), random(16, 16, 3, 3)
    expected = amx.convolve(images, weight)
    images[7] = float("nan")
    output = amx.convolve(images, weight)
    assert output[7].isnan().all()
    others = torch.arange(40) != 7
    assert torch.equal(output[others], expected[others])
    assert amx.weight_gradient(images, expected).isnan().all()


def test_the_tile_configuration_of_pytorch_is_restored() -> None:
    torch.manual_seed(0)
    images, weight = random(64, 64, 16, 16), random(64, 64, 3, 3)
    a, b = torch.randn(300, 300).bfloat16(), torch.randn(300, 300).bfloat16()
    convolved, product = functional.conv2d(images, weight, padding=1), a @ b
    for _ in range(3):
        amx.convolve(images, weight)
        assert torch.equal(a @ b, product)
        amx.weight_gradient(images, images)
        assert torch.equal(functional.conv2d(images, weight, padding=1), convolved)


def test_the_same_number_of_threads_gives_the_same_bits() -> None:
    images, weight = random(100, 24, 7, 7), random(40, 24, 3, 3)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        output = amx.convolve(images, weight)
        of_weight = amx.weight_gradient(images, output)
        assert torch.equal(amx.convolve(images, weight), output)
        assert torch.equal(amx.weight_gradient(images, output), of_weight)


def test_only_the_gradients_that_are_needed_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    for name in ("convolve", "weight_gradient"):
        operation = getattr(amx, name)

        def recorded(*operands: torch.Tensor, name: str = name, operation: Any = operation) -> torch.Tensor:
            computed.append(name)
            result: torch.Tensor = operation(*operands)
            return result

        monkeypatch.setattr(amx, name, recorded)
    for of_images, of_weight, expected in [(True, False, ["convolve"]), (False, True, ["weight_gradient"])]:
        layer = with_amx(nn.Conv2d(16, 16, 3, padding=1, bias=False).bfloat16().requires_grad_(of_weight))
        output = layer(random(16, 16, 4, 4).requires_grad_(of_images))
        computed.clear()
        output.sum().backward()
        assert computed == expected


def test_a_wrong_number_of_channels_is_refused_as_in_pytorch() -> None:
    layer = with_amx(nn.Conv2d(16, 16, 3, padding=1, bias=False).bfloat16())
    with pytest.raises(RuntimeError, match="to have 16 channels, but got 32 channels instead"):
        layer(random(16, 32, 4, 4))
