import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from second_derivative import penalty_gradient
from torch import nn

from onecycle.compute.kernels.max_pool import MaxPool2x2

DTYPES = [torch.float32, torch.bfloat16]


pytestmark = pytest.mark.usefixtures("threads")


def run(layer: nn.Module, images: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The pooled maps, and the gradient of the input."""
    images = images.detach().requires_grad_()
    output = layer(images)
    output.backward(gradient)
    assert images.grad is not None
    return output.detach(), images.grad


def uses_the_kernels(images: torch.Tensor) -> bool:
    return type(MaxPool2x2()(images.detach().requires_grad_()).grad_fn).__name__ == "_MaxPoolBackward"


def assert_equal_to_pytorch(images: torch.Tensor, *, kernels: bool = True) -> None:
    gradient = torch.randn(nn.MaxPool2d(2)(images).shape).to(images.dtype)
    assert uses_the_kernels(images) is kernels
    for ours, theirs in zip(run(MaxPool2x2(), images, gradient), run(nn.MaxPool2d(2), images, gradient), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        # `torch.equal` treats NaN as different from NaN.
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert torch.equal(ours.nan_to_num(nan=0), theirs.nan_to_num(nan=0))


def channels_last(images: torch.Tensor, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """`images` in `dtype` and channels-last, with a storage offset."""
    images = torch.cat([images[:1], images])
    return images.to(dtype).contiguous(memory_format=torch.channels_last)[1:]


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 70), st.integers(2, 17), st.integers(2, 17)),
    st.integers(1, 3),
    st.sampled_from([1, 2, 1000]),
    st.sampled_from(DTYPES),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=160)
def test_maps_and_gradients_equal_pytorchs_also_with_many_ties(shape, threads, largest, dtype, seed) -> None:
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    images = torch.randint(-largest, largest + 1, shape) / 7  # most values need all bits of a float32
    assert_equal_to_pytorch(channels_last(images, dtype))


@given(
    st.lists(st.sampled_from([0.0, -0.0, 1.0, float("inf"), -float("inf"), float("nan")]), min_size=4, max_size=4),
    st.sampled_from(DTYPES),
)
@settings(max_examples=160)
def test_signed_zeros_infinities_and_nan_are_pooled_as_in_pytorch(window: list[float], dtype: torch.dtype) -> None:
    images = torch.ones(2, 37, 4, 4)
    images[:, ::2, 2:, :2] = torch.tensor(window).view(2, 2)
    assert_equal_to_pytorch(channels_last(images, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_may_have_any_layout(dtype: torch.dtype) -> None:
    images, gradient = channels_last(torch.randn(3, 6, 4, 8), dtype), torch.randn(3, 6, 2, 4).to(dtype)
    expected = run(nn.MaxPool2d(2), images, gradient)[1]
    assert torch.equal(run(MaxPool2x2(), images, gradient)[1], expected)
    assert torch.equal(run(MaxPool2x2(), images, gradient.to(memory_format=torch.channels_last))[1], expected)
    # The backward pass of `sum` gives a gradient that is one value, expanded with stride 0.
    ones = torch.ones(1, 1, 1, 1, dtype=dtype).expand(gradient.shape)
    assert torch.equal(run(MaxPool2x2(), images, ones)[1], run(nn.MaxPool2d(2), images, ones)[1])


@pytest.mark.parametrize(
    "images",
    [
        *(channels_last(torch.randn(2, 6, 4, 4), dtype) for dtype in (torch.float16, torch.float64)),
        *(channels_last(torch.randn(2, 6, 4, 4), dtype).contiguous() for dtype in DTYPES),
        *(channels_last(torch.randn(2, 12, 4, 4), dtype)[:, :6] for dtype in DTYPES),
        *(torch.randn(6, 4, 4, dtype=dtype) for dtype in DTYPES),
        *(torch.randn(0, 6, 4, 4, dtype=dtype) for dtype in DTYPES),
    ],
    ids=lambda images: f"{images.dtype}, shape {tuple(images.shape)}, strides {images.stride()}",
)
def test_pytorch_computes_where_the_kernels_do_not_apply(images: torch.Tensor) -> None:
    assert_equal_to_pytorch(images, kernels=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(2, 1), (1, 2)])
def test_maps_too_small_to_pool_are_refused_as_in_pytorch(size: tuple[int, int], dtype: torch.dtype) -> None:
    for layer in (MaxPool2x2(), nn.MaxPool2d(2)):
        with pytest.raises(RuntimeError, match="too small"):
            layer(channels_last(torch.randn(2, 3, *size), dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False])
def test_training_and_evaluation_pool_the_same_without_gradients(training: bool, dtype: torch.dtype) -> None:
    images = channels_last(torch.randn(2, 6, 4, 4), dtype).requires_grad_()
    with torch.no_grad():
        pooled = MaxPool2x2().train(training)(images)
    assert not pooled.requires_grad
    assert torch.equal(pooled, nn.MaxPool2d(2)(images))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_a_second_derivative_is_refused_or_correct(dtype: torch.dtype) -> None:
    pixels = channels_last(torch.randn(2, 3, 4, 4), dtype)
    if dtype == torch.float64:
        assert torch.equal(penalty_gradient(MaxPool2x2(), pixels), penalty_gradient(nn.MaxPool2d(2), pixels))
    else:
        with pytest.raises(RuntimeError, match="once_differentiable"):
            penalty_gradient(MaxPool2x2(), pixels)


def test_it_replaces_pooling_of_2x2_windows() -> None:
    assert MaxPool2x2.replaces(nn.MaxPool2d(2))
    assert MaxPool2x2.replaces(nn.MaxPool2d(kernel_size=2, stride=2))


@pytest.mark.parametrize(
    "layer",
    [
        nn.MaxPool2d(3),
        nn.MaxPool2d(4),
        nn.MaxPool2d((2, 1)),
        nn.MaxPool2d(2, stride=1),
        nn.MaxPool2d(2, padding=1),
        nn.MaxPool2d(2, dilation=2),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d(2, return_indices=True),
        nn.AvgPool2d(2),
        nn.AdaptiveMaxPool2d(2),
        nn.MaxPool1d(2),
        MaxPool2x2(),
    ],
    ids=str,
)
def test_it_replaces_nothing_else(layer: nn.Module) -> None:
    assert not MaxPool2x2.replaces(layer)


@pytest.mark.parametrize("hook", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_a_layer_with_hooks_is_not_replaced(hook: str) -> None:
    layer = nn.MaxPool2d(2)
    getattr(layer, f"register_{hook}")(lambda *_: None)
    assert not MaxPool2x2.replaces(layer)
