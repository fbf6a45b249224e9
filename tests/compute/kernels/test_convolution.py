import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from second_derivative import penalty_gradient
from torch import nn
from torch.nn import functional

from onecycle.compute.kernels.convolution import GEMM_WEIGHT_MOST_PIXELS, FastConv2d, unfold_patches

MAPS = [*((height, width) for height in range(1, 5) for width in range(1, 5)), (5, 4), (6, 7), (8, 8)]


def convolution(inputs: int, outputs: int, dtype: torch.dtype = torch.float64) -> nn.Conv2d:
    torch.manual_seed(inputs * 100 + outputs)
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False, dtype=dtype)


def replacement_of(layer: nn.Conv2d) -> FastConv2d:
    return FastConv2d.sharing(layer, winograd=False, im2col_gemm=True, amx=False)


def run(layer: nn.Conv2d, images: torch.Tensor, *, autocast: bool = False) -> tuple[torch.Tensor, ...]:
    """Output, input gradient and weight gradient of `layer`, for a fixed output gradient."""
    images = images.clone(memory_format=torch.preserve_format).requires_grad_()
    layer.weight.grad = None
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        output = layer(images)
    output.backward(torch.linspace(-1, 1, output.numel()).view(output.shape).bfloat16().to(output.dtype))
    assert images.grad is not None
    assert layer.weight.grad is not None
    return output.detach(), images.grad, layer.weight.grad


@pytest.mark.parametrize(("height", "width"), MAPS)
def test_output_and_both_gradients_equal_those_of_pytorch(height: int, width: int) -> None:
    layer = convolution(5, 7)
    images = torch.randn(3, 5, height, width, dtype=torch.float64)
    expected = run(layer, images)
    for ours, theirs in zip(run(replacement_of(layer), images), expected, strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() < 1e-10


@given(
    st.integers(1, 5),
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from([*MAPS, (1, 16), (2, 8), (8, 2), (16, 1), (1, 5), (3, 5)]),
    st.booleans(),
)
@settings(max_examples=50)
def test_results_equal_pytorchs_for_any_batch_channels_small_map_and_layout(
    batch, inputs, outputs, size, channels_last
) -> None:
    layer = convolution(inputs, outputs)
    images = torch.randn(batch, inputs, *size, dtype=torch.float64)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    for ours, theirs in zip(run(replacement_of(layer), images), run(layer, images), strict=True):
        assert (ours - theirs).abs().max() < 1e-10


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (4, 4)])
def test_the_gradients_pass_the_numerical_check(height: int, width: int) -> None:
    layer = replacement_of(convolution(2, 3))
    images = torch.randn(2, 2, height, width, dtype=torch.float64, requires_grad=True)

    # `gradcheck` changes its inputs, so it gets a copy of the weight as an argument.
    def convolve(images: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"weight": weight}, (images,))

    weight = layer.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(convolve, (images, weight))


def test_a_second_derivative_is_refused() -> None:
    with pytest.raises(RuntimeError, match="once_differentiable"):
        penalty_gradient(replacement_of(convolution(2, 3)), torch.randn(2, 2, 2, 2, dtype=torch.float64))


def test_a_patch_holds_the_nine_pixels_around_its_center_and_zeros_beyond_the_border() -> None:
    images = torch.arange(1.0, 13).view(1, 2, 2, 3)
    patches = unfold_patches(images).view(2, 3, 3, 3, 2)  # `[y,x]` is the patch around pixel (y,x): [3,3,channels]
    padded = functional.pad(images, (1, 1, 1, 1))[0]  # [2,4,5]
    for y in range(2):
        for x in range(3):
            assert torch.equal(patches[y, x].permute(2, 0, 1), padded[:, y : y + 3, x : x + 3])


@pytest.mark.parametrize("size", [(1, 65), (9, 8), (16, 16), (32, 32)])
def test_larger_maps_go_to_pytorch(size: tuple[int, int]) -> None:
    assert size[0] * size[1] > GEMM_WEIGHT_MOST_PIXELS
    layer = convolution(3, 4, torch.float32)
    images = torch.randn(2, 3, *size)
    replacement = replacement_of(layer)
    assert "Convolve" not in type(replacement(images).grad_fn).__name__
    assert all(torch.equal(*pair) for pair in zip(run(replacement, images), run(layer, images), strict=True))
    # For a small map the kernel runs, and `grad_fn` has the kernel's name.
    assert "Convolve" in type(replacement(images[:, :, :1, :4]).grad_fn).__name__


@pytest.mark.parametrize("training", [True, False])
def test_the_replacement_shares_weight_and_mode_with_its_layer(training: bool) -> None:
    layer = convolution(3, 4).train(training)
    before = layer.weight.detach().clone()
    replacement = FastConv2d.sharing(layer, winograd=True, im2col_gemm=True, amx=True)
    assert replacement.weight is layer.weight
    assert replacement.training is training
    assert list(replacement.state_dict()) == list(layer.state_dict())
    assert torch.equal(layer.weight, before)
    with torch.no_grad():
        layer.weight.mul_(2)
    images = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert (replacement(images) - layer(images)).abs().max() < 1e-10


def test_frozen_weights_get_no_gradient_and_no_grad_tracks_none() -> None:
    layer = convolution(3, 4)
    layer.weight.requires_grad_(False)
    images = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    replacement_of(layer)(images).sum().backward()
    assert layer.weight.grad is None
    assert images.grad is not None
    with torch.no_grad():
        assert not replacement_of(layer)(images).requires_grad


def test_it_replaces_a_3x3_convolution_with_padding_1() -> None:
    assert FastConv2d.replaces(nn.Conv2d(3, 4, 3, padding=1, bias=False))
    assert FastConv2d.replaces(nn.Conv2d(3, 4, (3, 3), stride=(1, 1), padding=(1, 1), bias=False))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, 5, padding=2, bias=False),
        nn.Conv2d(4, 4, (3, 1), padding=1, bias=False),
        nn.Conv2d(4, 4, 1, bias=False),
        nn.Conv2d(4, 4, 3, bias=False),
        nn.Conv2d(4, 4, 3, padding=2, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, stride=2, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, dilation=2, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", bias=False),
        nn.ConvTranspose2d(4, 4, 3, padding=1, bias=False),
        nn.Conv1d(4, 4, 3, padding=1, bias=False),
        nn.Linear(4, 4),
        FastConv2d(4, 4, 3, padding=1, bias=False),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1, bias=False)),
        nn.utils.spectral_norm(nn.Conv2d(4, 4, 3, padding=1, bias=False)),
    ],
    ids=lambda layer: type(layer).__name__ + (f" {layer.extra_repr()}" if isinstance(layer, nn.Conv2d) else ""),
)
def test_it_replaces_nothing_else(layer: nn.Module) -> None:
    assert not FastConv2d.replaces(layer)


@pytest.mark.parametrize("hook", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_a_layer_with_hooks_is_not_replaced(hook: str) -> None:
    layer = convolution(3, 4)
    getattr(layer, f"register_{hook}")(lambda *_: None)
    assert not FastConv2d.replaces(layer)


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 48), st.integers(1, 8), st.integers(1, 8)),
    st.integers(1, 48),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60)
def test_under_bfloat16_autocast_results_are_as_accurate_as_pytorchs(shape, outputs, channels_last, seed) -> None:
    layer = convolution(shape[1], outputs, torch.float32)
    torch.manual_seed(seed)
    images = torch.randn(shape).bfloat16().float()  # exact in bfloat16, so only the results are rounded
    with torch.no_grad():
        layer.weight.copy_(layer.weight.bfloat16())
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    exact = run(copy.deepcopy(layer).double(), images.double())
    usual = run(layer, images, autocast=True)
    ours = run(replacement_of(layer), images, autocast=True)
    assert ours[0].dtype == usual[0].dtype == torch.bfloat16
    for mine, theirs, reference in zip(ours, usual, exact, strict=True):
        error, allowed = ((value.double() - reference).norm() / reference.norm() for value in (mine, theirs))
        assert error <= 1.2 * allowed
        assert error < 2**-8, "a result is rounded once, to 8 bits"


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_the_output_of_im2col_gemm_is_channels_last_for_any_input_layout(memory_format: torch.memory_format) -> None:
    images = torch.randn(2, 3, 4, 4, dtype=torch.float64).contiguous(memory_format=memory_format)
    output, input_gradient, _ = run(replacement_of(convolution(3, 4)), images)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert input_gradient.shape == images.shape


@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 8, 8), (0, 3, 4, 4), (0, 3, 8, 8)])
def test_a_single_image_and_an_empty_batch_work_as_in_pytorch(shape: tuple[int, ...]) -> None:
    layer = convolution(3, 4)
    images = torch.randn(shape, dtype=torch.float64)
    for ours, theirs in zip(run(replacement_of(layer), images), run(layer, images), strict=True):
        assert ours.shape == theirs.shape
        assert torch.allclose(ours, theirs)


def test_the_shared_weight_gets_a_float32_gradient() -> None:
    layer = convolution(8, 8, torch.float32)
    images = torch.randn(2, 8, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = replacement_of(layer)(images)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == layer.weight.dtype == torch.float32
    assert layer.weight.grad.shape == layer.weight.shape
