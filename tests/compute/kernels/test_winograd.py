import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from onecycle.compute.kernels import native, winograd
from onecycle.compute.kernels.convolution import FastConv2d

ROUNDING = 2e-7  # relative error of a direct convolution; with few values, it may be smaller by chance
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 70), st.integers(1, 13), st.integers(1, 13))
# 130 tiles and more, so that they are computed in several blocks, and each shape of the networks' maps.
LARGE = [
    *((130, 8, 3, 4, 40), (33, 24, 13, 8, 17), (700, 3, 4, 4, 5)),
    *((8, 64, 32, 32, 128), (8, 128, 16, 16, 256), (16, 256, 8, 8, 512), (100, 512, 4, 4, 512)),
    *((8, 24, 31, 31, 64), (8, 64, 15, 15, 160), (8, 256, 7, 7, 256), (8, 256, 3, 3, 256)),
]


pytestmark = pytest.mark.usefixtures("threads")


def maps(*shape: int) -> torch.Tensor:
    """Random maps, half of them zeros like those after a ReLU, channels-last, with a storage offset."""
    values = torch.randn(shape[0] + 1, *shape[1:]).relu()
    return values.contiguous(memory_format=torch.channels_last)[1:]


def layer_of(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)


def by_winograd(layer: nn.Conv2d) -> FastConv2d:
    return FastConv2d.sharing(layer, winograd=True, im2col_gemm=False, amx=False)


def run(layer: nn.Conv2d, images: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Output, input gradient and weight gradient of `layer`. bfloat16 images run under bfloat16 autocast."""
    layer.weight.grad = None
    images = images.detach().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=images.dtype == torch.bfloat16):
        output = layer(images)
    output.backward(gradient.to(output.dtype))
    assert images.grad is not None
    assert layer.weight.grad is not None
    return output.detach(), images.grad, layer.weight.grad


def errors(found: tuple[torch.Tensor, ...], exact: tuple[torch.Tensor, ...], usual: list[float]) -> list[float]:
    """The error of each tensor relative to the `exact` one, or to `usual` if that is small."""
    assert [each.shape for each in found] == [each.shape for each in exact]
    norms = [max(float(each.norm()), size * each.numel() ** 0.5) for each, size in zip(exact, usual, strict=True)]
    differences = [float((a.double() - b).norm()) for a, b in zip(found, exact, strict=True)]
    return [difference / norm if norm else 0.0 for difference, norm in zip(differences, norms, strict=True)]


def sizes(layer: nn.Conv2d, images: torch.Tensor, gradient: torch.Tensor) -> list[float]:
    """The usual size of a value in the output and in both gradients of a map that is larger than the filters.

    A map of one pixel sees one of the nine weights, but Winograd's algorithm computes with all of them.
    """
    weight, image, slope = (
        float(values.detach().square().mean().sqrt()) for values in (layer.weight, images, gradient)
    )
    outputs, inputs, *_ = layer.weight.shape
    pixels = images[:, 0].numel()
    return [weight * image * (9 * inputs) ** 0.5, weight * slope * (9 * outputs) ** 0.5, image * slope * pixels**0.5]


def assert_nearly_as_accurate_as_pytorch(batch: int, inputs: int, height: int, width: int, outputs: int) -> None:
    layer, images = layer_of(inputs, outputs), maps(batch, inputs, height, width)
    gradient = torch.randn(batch, outputs, height, width)
    exact_layer = layer_of(inputs, outputs).double()
    exact_layer.load_state_dict(layer.state_dict())
    exact = run(exact_layer, images.double(), gradient)
    usual = sizes(layer, images, gradient)
    direct = errors(run(layer, images, gradient), exact, usual)
    in_bfloat16 = errors(run(layer, images.bfloat16(), gradient), exact, usual)
    assert type(by_winograd(layer)(images).grad_fn).__name__ == "_ConvolveBackward"
    ours = errors(run(by_winograd(layer), images, gradient), exact, usual)
    for error, of_direct, of_bfloat16 in zip(ours, direct, in_bfloat16, strict=True):
        assert error <= 10 * max(of_direct, ROUNDING)
        assert error <= max(of_bfloat16 / 100, 2 * ROUNDING)


@given(SHAPES, st.integers(1, 70), st.integers(1, 3), st.integers(0, 2**32 - 1))
@settings(max_examples=80)
def test_outputs_and_gradients_have_at_most_ten_times_the_error_of_a_direct_convolution(
    shape: tuple[int, ...], outputs: int, threads: int, seed: int
) -> None:
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    assert_nearly_as_accurate_as_pytorch(*shape, outputs)


@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_large_layers_are_as_accurate(shape: tuple[int, ...]) -> None:
    assert_nearly_as_accurate_as_pytorch(*shape)


@given(SHAPES, st.integers(1, 70), st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_bfloat16_maps_are_rounded_once(shape: tuple[int, ...], outputs: int, seed: int) -> None:
    torch.manual_seed(seed)
    layer, images = layer_of(shape[1], outputs), maps(*shape).bfloat16()
    gradient = torch.randn(shape[0], outputs, *shape[2:]).bfloat16()
    found = run(by_winograd(layer), images, gradient)
    wide = run(by_winograd(layer), images.float(), gradient.float())
    assert [each.dtype for each in found] == [torch.bfloat16, torch.bfloat16, torch.float32]
    for ours, exact in zip(found, wide, strict=True):
        assert torch.equal(ours, exact.to(ours.dtype))


@pytest.mark.parametrize("shape", [(5, 20, 7, 9, 33), (130, 24, 4, 4, 64), (9, 64, 13, 13, 16)], ids=str)
def test_the_same_bits_for_any_number_of_threads(shape: tuple[int, ...]) -> None:
    batch, inputs, height, width, outputs = shape
    layer, images = by_winograd(layer_of(inputs, outputs)), maps(batch, inputs, height, width)
    gradient = torch.randn(batch, outputs, height, width)
    found = []
    for threads in (1, 2, 3, 8, 2):
        torch.set_num_threads(threads)
        found.append(run(layer, images, gradient))
    assert all(torch.equal(*pair) for other in found[1:] for pair in zip(found[0], other, strict=True))


def test_images_do_not_influence_each_other() -> None:
    layer, images = by_winograd(layer_of(8, 12)), maps(9, 8, 6, 7)
    together = layer(images)
    for i in range(9):
        assert torch.equal(layer(images[i : i + 1]), together[i : i + 1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_makes_its_surroundings_nan_or_infinite(bad: float) -> None:
    images = maps(3, 8, 9, 9)
    images[1, 4, 5, 5] = bad
    output = winograd.convolve(images, torch.randn(16, 8, 3, 3))
    assert not output[1, :, 4:7, 4:7].isfinite().any()
    assert output[[0, 2]].isfinite().all()
    of_weight = winograd.weight_gradient(images, torch.ones(3, 16, 9, 9))
    assert not of_weight[:, 4].isfinite().any()
    assert of_weight[:, :4].isfinite().all()


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_the_gradient_may_have_any_layout(memory_format: torch.memory_format) -> None:
    layer, images = by_winograd(layer_of(6, 10)), maps(3, 6, 4, 5)
    gradient = torch.randn(3, 10, 4, 5)
    usual = run(layer, images, gradient)
    assert all(
        torch.equal(*pair)
        for pair in zip(run(layer, images, gradient.contiguous(memory_format=memory_format)), usual, strict=True)
    )
    # The backward pass of `sum` gives a gradient that is one value, expanded with stride 0.
    spread = run(layer, images, torch.ones(1, 1, 1, 1).expand(gradient.shape))
    written_out = run(layer, images, torch.ones(gradient.shape))
    assert all(torch.equal(*pair) for pair in zip(spread, written_out, strict=True))


@pytest.mark.parametrize("kind", ["float64", "float16", "contiguous", "one image", "no image"])
def test_pytorch_computes_where_the_kernels_do_not_apply(kind: str) -> None:
    layer, images = layer_of(6, 4), maps(3, 6, 5, 5)
    images = {"contiguous": images.contiguous(), "one image": images[0], "no image": images[:0]}.get(kind, images)
    if kind.startswith("float"):
        images, layer = images.to(getattr(torch, kind)), layer.to(getattr(torch, kind))
    with torch.no_grad():
        assert torch.equal(by_winograd(layer)(images), layer(images))


def test_the_workspace_does_not_depend_on_the_default_dtype() -> None:
    layer, images, gradient = by_winograd(layer_of(24, 40)), maps(9, 24, 6, 7), torch.randn(9, 40, 6, 7)
    expected = run(layer, images, gradient)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = run(layer, images, gradient)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize(("inputs", "outputs"), [(1, native.MOST_CHANNELS + 1), (native.MOST_CHANNELS + 1, 1)])
def test_pytorch_computes_layers_with_too_many_channels(inputs: int, outputs: int) -> None:
    layer, images = layer_of(inputs, outputs), maps(2, inputs, 3, 3)
    with torch.no_grad():
        assert torch.equal(by_winograd(layer)(images), layer(images))


def test_as_many_channels_as_supported_are_correct() -> None:
    assert_nearly_as_accurate_as_pytorch(1, native.MOST_CHANNELS, 3, 3, 2)
    assert_nearly_as_accurate_as_pytorch(1, 2, 3, 3, native.MOST_CHANNELS)


def test_frozen_filters_get_no_gradient() -> None:
    layer, images = layer_of(6, 4), maps(3, 6, 5, 5).requires_grad_()
    layer.weight.requires_grad_(False)
    by_winograd(layer)(images).sum().backward()
    assert layer.weight.grad is None
    exact = functional.conv2d(torch.ones(3, 4, 5, 5), layer.weight.flip(2, 3).transpose(0, 1), padding=1)
    torch.testing.assert_close(images.grad, exact)


def test_a_network_learns_the_same_as_with_direct_convolutions() -> None:
    images, labels = maps(64, 8, 8, 8), torch.arange(64) % 4
    losses = []
    for fast in (False, True):
        torch.manual_seed(1)
        layers = [layer_of(8, 16), layer_of(16, 16)]
        network = nn.Sequential(
            *(
                layer
                for conv in layers
                for layer in (by_winograd(conv) if fast else conv, nn.BatchNorm2d(16), nn.ReLU())
            ),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
        )
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        for _ in range(30):
            loss = functional.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] < 0.5 * 1.386
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
