import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from second_derivative import penalty_gradient
from torch import nn

from onecycle.compute.kernels import native
from onecycle.compute.kernels.batch_norm_activation import BatchNormActivation2d

ACTIVATIONS = [nn.ReLU, nn.Hardswish]
DTYPES = [torch.float32, torch.bfloat16]  # of the maps
# Margin around 0 and ±3, where an activation bends. bfloat16 values near 3 are 0.016 apart.
BEND = {torch.float32: 1e-3, torch.bfloat16: 0.02}
# Allowed error of float32 sums, relative to the summands. Rounding to bfloat16 may add to it.
SUMS = {torch.float32: 2e-6, torch.bfloat16: 1e-5}


pytestmark = pytest.mark.usefixtures("threads")


def norm(channels: int, **options: float) -> nn.BatchNorm2d:
    """A norm as in the middle of training: no weight, bias or statistic is zero or one."""
    layer = nn.BatchNorm2d(channels, **options)
    for values in (layer.weight, layer.bias, layer.running_mean):
        nn.init.normal_(values)
    nn.init.uniform_(layer.running_var, 0.5, 2)
    return layer


def maps(*shape: int, dtype: torch.dtype = torch.bfloat16, mean: float = 0, std: float = 1) -> torch.Tensor:
    """Random maps, channels-last, with a storage offset."""
    values = torch.randn(shape[0] + 1, *shape[1:]) * std + mean
    return values.to(dtype).contiguous(memory_format=torch.channels_last)[1:]


def pytorch(layer: nn.BatchNorm2d, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    return nn.Sequential(copy.deepcopy(layer), activation())


def replacement(layer: nn.BatchNorm2d, activation: type[nn.Module] = nn.ReLU) -> BatchNormActivation2d:
    return BatchNormActivation2d.sharing(copy.deepcopy(layer), activation())


def run(layer: nn.Module, images: torch.Tensor, gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    """The results of a step: output, gradients and running statistics."""
    images = images.detach().requires_grad_()
    output = layer(images)
    output.backward(gradient.to(output.dtype))
    assert output.dtype == images.dtype
    assert images.grad is not None
    norms = layer[0] if isinstance(layer, nn.Sequential) else layer
    gradients = {name: parameter.grad for name, parameter in norms.named_parameters()}
    return {"output": output.detach(), "input": images.grad, **gradients, **dict(norms.named_buffers())}


def assert_as_accurate_as_pytorch(
    layer: nn.BatchNorm2d, images: torch.Tensor, activation: type[nn.Module] = nn.ReLU
) -> None:
    """Check that the replacement is about as accurate as PyTorch in the dtype of `images`, compared with float64."""
    wide = images.double()
    # Near a bend of the activation (0 or ±3), rounding decides how much gradient passes. The test therefore sets the
    # gradient to zero there.
    normalized = copy.deepcopy(layer).double()(wide).abs()
    bends = torch.tensor([0.0] if activation is nn.ReLU else [3.0])
    straight = ((normalized[..., None] - bends).abs() > BEND[images.dtype]).all(dim=-1)
    gradient = torch.randn(images.shape).to(images.dtype) * straight
    exact = run(pytorch(layer, activation).double(), wide, gradient.double())
    usual = run(pytorch(layer, activation), images, gradient)
    ours = run(replacement(layer, activation), images, gradient)
    assert ours.keys() == exact.keys()
    # Sums may cancel, so their error is relative to the size of the summands.
    std = (wide.var(dim=(0, 2, 3), correction=0) + layer.eps).sqrt()
    scale = layer.weight.detach() / std
    added = {"input": scale.abs().max() * gradient.double().norm(), "weight": gradient.double().abs().sum()}
    added["running_mean"] = (layer.momentum or 1) * wide.abs().mean(dim=(0, 2, 3)).norm()
    if images.dtype == torch.float32:
        # The kernels add a number to a multiple of x. Where the mean is large, both are larger than their sum. In
        # bfloat16, rounding the sum hides their errors.
        added["output"] = (scale[:, None, None] * wide).norm()
        added["input"] *= (wide.abs().amax(dim=(0, 2, 3)) / std).max().clamp(min=1)
        added["bias"] = added["weight"]
    for name, reference in exact.items():
        error, allowed = ((found[name].double() - reference).norm() for found in (ours, usual))
        assert ours[name].dtype == usual[name].dtype
        assert ours[name].shape == reference.shape
        assert error <= 1.2 * allowed + SUMS[images.dtype] * max(reference.double().norm(), added.get(name, 0)), name


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 70), st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 3),
    st.sampled_from([1e-5, 1e-3]),
    st.sampled_from([0.1, 0.6]),
    st.floats(-3, 3),
    st.sampled_from(ACTIVATIONS),
    st.sampled_from(DTYPES),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=200)
def test_outputs_gradients_and_statistics_are_as_accurate_as_pytorchs(
    shape, threads, eps, momentum, mean, activation, dtype, seed
) -> None:
    batch, _, height, width = shape
    if batch * height * width == 1:
        batch = 2
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    layer = norm(shape[1], eps=eps, momentum=momentum)
    assert_as_accurate_as_pytorch(layer, maps(batch, shape[1], height, width, dtype=dtype, mean=mean), activation)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_over_many_rows_are_as_accurate(dtype: torch.dtype) -> None:
    assert_as_accurate_as_pytorch(norm(3), maps(4, 3, 64, 64, dtype=dtype, mean=2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mean_of_a_thousand_standard_deviations_keeps_the_variance_accurate(dtype: torch.dtype) -> None:
    images = torch.where(torch.rand(8, 5, 16, 16) < 1 / 64, 1032.0, 1024.0)  # neighbors in bfloat16
    images = images.to(dtype).contiguous(memory_format=torch.channels_last)
    layer = norm(5, momentum=1.0)
    found = replacement(layer)
    found(images)
    exact = images.double().var(dim=(0, 2, 3))
    assert exact.sqrt().max() < 1.5
    assert (found.running_var - exact).abs().max() < 1e-5
    assert_as_accurate_as_pytorch(layer, images)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first", [-300.0, 777.0])
def test_a_first_value_far_from_all_others_keeps_the_variance_accurate(first: float, dtype: torch.dtype) -> None:
    images = torch.ones(32, 2, 128, 128)
    images[0, :, 0, 0] = first
    images = images.to(dtype).contiguous(memory_format=torch.channels_last)
    found = replacement(norm(2, momentum=1.0))
    assert not found(images).isnan().any()
    exact = images.double().var(dim=(0, 2, 3))
    assert ((found.running_var - exact) / exact).abs().max() < 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_channel_without_variance_gives_its_bias(dtype: torch.dtype) -> None:
    images = maps(4, 3, 5, 5, dtype=dtype)
    images[:, 1] = 7
    layer = norm(3, momentum=1.0)
    with torch.no_grad():
        layer.bias.fill_(0.5)
    found = replacement(layer)
    assert (found(images)[:, 1] - 0.5).abs().max() < 2**-8
    assert found.running_var[1] == 0
    assert_as_accurate_as_pytorch(layer, images)


@given(st.lists(st.integers(0, 0x7F80_0000 >> 15), min_size=1, max_size=40))
@settings(max_examples=50)
def test_a_result_is_rounded_to_the_nearest_and_ties_to_even(upper_17_bits: list[int]) -> None:
    bias = (torch.tensor(upper_17_bits, dtype=torch.int32) << 15).view(torch.float32)  # bfloat16 values and midpoints
    layer = norm(len(bias))
    with torch.no_grad():
        layer.bias.copy_(bias)
    images = torch.zeros(2, len(bias), 1, 1).bfloat16()  # for constant maps, the norm returns its bias
    assert torch.equal(replacement(layer)(images)[1, :, 0, 0], bias.bfloat16())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", [(0, 17, 0, 0), (1, 17, 2, 3)])
def test_nan_and_infinity_spread_as_in_pytorch(
    where: tuple[int, ...], bad: float, activation: type[nn.Module], dtype: torch.dtype
) -> None:
    layer, images = norm(20), maps(3, 20, 4, 4, dtype=dtype)
    images[where] = bad
    gradient = torch.ones_like(images)
    ours, usual = (run(made(layer, activation), images, gradient) for made in (replacement, pytorch))
    assert ours["output"][:, 17].isnan().all()
    assert ours["output"].isnan().sum() == 3 * 4 * 4, "the other channels are finite"
    for name, value in usual.items():
        assert torch.equal(ours[name].isfinite(), value.isfinite()), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_weight_gives_nan_for_every_bit_pattern(dtype: torch.dtype) -> None:
    for bits in (0x7FC00000, 0x7FFFFFFF, -1):
        layer = norm(2)
        with torch.no_grad():
            layer.weight.view(torch.int32).fill_(bits)
        assert replacement(layer)(maps(2, 2, 3, 3, dtype=dtype)).isnan().all(), hex(bits)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_single_value_per_channel_is_refused_as_in_pytorch(dtype: torch.dtype) -> None:
    for layer in (pytorch(norm(3)), replacement(norm(3))):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            layer(maps(1, 3, 1, 1, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_maps_with_another_number_of_channels_are_refused(dtype: torch.dtype) -> None:
    for channels in (1, 3):
        for layer in (pytorch(norm(4)), replacement(norm(4))):
            with pytest.raises(RuntimeError):
                layer(maps(2, channels, 3, 3, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_the_gradient_may_have_any_layout(memory_format: torch.memory_format, dtype: torch.dtype) -> None:
    layer, images = norm(6), maps(3, 6, 4, 5, dtype=dtype)
    gradient = torch.randn(3, 6, 4, 5).to(dtype)
    ours = run(replacement(layer), images, gradient.contiguous(memory_format=memory_format))
    assert torch.equal(ours["input"], run(replacement(layer), images, gradient)["input"])
    # The backward pass of `sum` gives a gradient that is one value, expanded with stride 0.
    spread = run(replacement(layer), images, torch.ones(1, 1, 1, 1).expand(images.shape))
    assert torch.equal(spread["input"], run(replacement(layer), images, torch.ones(images.shape))["input"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_step_repeats_bit_for_bit_with_the_same_number_of_threads(threads: int, dtype: torch.dtype) -> None:
    torch.set_num_threads(threads)
    layer, images, gradient = norm(33), maps(7, 33, 9, 9, dtype=dtype), torch.randn(7, 33, 9, 9)
    first, *others = (run(replacement(layer), images, gradient) for _ in range(4))
    assert all(torch.equal(other[name], value) for other in others for name, value in first.items())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["contiguous", "a slice of the channels", "evaluation"])
def test_pytorch_computes_where_the_kernels_do_not_apply(
    kind: str, activation: type[nn.Module], dtype: torch.dtype
) -> None:
    layer, images = norm(6).train(kind != "evaluation"), maps(3, 12, 4, 4, dtype=dtype)[:, :6]
    if kind != "a slice of the channels":
        images = images.contiguous(memory_format=torch.channels_last)
    assert native.supports(images) is (kind != "a slice of the channels")
    images = images.contiguous() if kind == "contiguous" else images
    gradient = torch.randn(images.shape)
    ours, usual = (run(made(layer, activation), images, gradient) for made in (replacement, pytorch))
    assert all(torch.equal(ours[name], value) for name, value in usual.items())
    assert int(ours["num_batches_tracked"]) == (kind != "evaluation")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("dtype", "of_weights"), [(torch.float16, torch.float32), (torch.float64, torch.float64)])
def test_pytorch_computes_maps_of_other_dtypes(
    dtype: torch.dtype, of_weights: torch.dtype, activation: type[nn.Module]
) -> None:
    layer, images = norm(6).to(of_weights), maps(3, 6, 4, 4, dtype=dtype)
    assert not native.supports(images)
    gradient = torch.randn(images.shape)
    ours, usual = (run(made(layer, activation), images, gradient) for made in (replacement, pytorch))
    assert all(torch.equal(ours[name], value) for name, value in usual.items())


def test_a_norm_with_bfloat16_weights_works_as_in_pytorch() -> None:
    layer, images = norm(6).bfloat16(), maps(3, 6, 4, 4)
    ours, usual = (run(made(layer), images, torch.ones(images.shape)) for made in (replacement, pytorch))
    assert all(torch.allclose(ours[name], value, rtol=0.02, atol=0.02) for name, value in usual.items())


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-7)])
def test_without_gradients_the_statistics_are_still_updated(dtype: torch.dtype, rounding: float) -> None:
    layer, images = norm(6), maps(3, 6, 4, 4, dtype=dtype)
    ours, usual = replacement(layer), pytorch(layer)
    with torch.no_grad():
        outputs = ours(images), usual(images)
    assert not outputs[0].requires_grad
    assert torch.allclose(outputs[0], outputs[1], rtol=rounding, atol=1e-5)
    for name, value in usual[0].named_buffers():
        assert torch.allclose(ours.get_buffer(name), value), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_frozen_weights_get_no_gradient_and_the_input_gets_the_same(dtype: torch.dtype) -> None:
    layer, images, gradient = norm(6), maps(3, 6, 4, 4, dtype=dtype), torch.randn(3, 6, 4, 4)
    trained = run(replacement(layer), images, gradient)
    frozen = run(replacement(layer.requires_grad_(False)), images, gradient)
    assert frozen["weight"] is frozen["bias"] is None
    assert torch.equal(frozen["input"], trained["input"])


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_a_second_derivative_is_refused_or_correct(dtype: torch.dtype) -> None:
    layer, pixels = norm(2), maps(2, 2, 3, 3, dtype=dtype)
    if dtype == torch.float64:
        layer = layer.double()
        assert torch.equal(penalty_gradient(replacement(layer), pixels), penalty_gradient(pytorch(layer), pixels))
    else:
        with pytest.raises(RuntimeError, match="once_differentiable"):
            penalty_gradient(replacement(layer), pixels)


@pytest.mark.parametrize("training", [True, False])
def test_the_replacement_shares_parameters_buffers_and_mode_with_its_norm(training: bool) -> None:
    layer = norm(4, eps=0.01, momentum=0.3).train(training)
    made = BatchNormActivation2d.sharing(layer, nn.ReLU())
    assert (made.training, made.eps, made.momentum) == (training, 0.01, 0.3)
    assert list(made.state_dict()) == list(layer.state_dict())
    for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        assert getattr(made, name) is tensor
    made.train()(maps(2, 4, 3, 3))
    assert layer.num_batches_tracked == 1


def test_it_replaces_only_a_norm_followed_by_a_supported_activation() -> None:
    replaces = BatchNormActivation2d.replaces
    for activation in ACTIVATIONS:
        assert replaces(nn.BatchNorm2d(4), activation())
        assert replaces(nn.BatchNorm2d(4), activation(inplace=True))
    for other in (nn.GELU(), nn.ReLU6(), nn.LeakyReLU(), nn.Identity()):
        assert not replaces(nn.BatchNorm2d(4), other)
    for other in (nn.BatchNorm1d(4), nn.SyncBatchNorm(4), nn.GroupNorm(2, 4), BatchNormActivation2d(4)):
        assert not replaces(other, nn.ReLU())
    for options in ({"momentum": None}, {"affine": False}, {"track_running_stats": False}):
        assert not replaces(nn.BatchNorm2d(4, **options), nn.ReLU())


@pytest.mark.parametrize("hook", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_layers_with_hooks_are_not_replaced(hook: str) -> None:
    for hooked in (0, 1):
        pair = (nn.BatchNorm2d(4), nn.ReLU())
        getattr(pair[hooked], f"register_{hook}")(lambda *_: None)
        assert not BatchNormActivation2d.replaces(*pair)
