"""Tests that the microbenchmark recognizes slow plans, plans with wrong gradients, and correct plans."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from onecycle.compute import microbenchmark
from onecycle.compute.kernels.convolution import FastConv2d
from onecycle.compute.microbenchmark import Microbenchmark
from onecycle.compute.plan import ChannelPairs, ComputePlan
from onecycle.models import CustomResNet, ModelComposite, as_composite

EAGER = ComputePlan()
BFLOAT16 = replace(EAGER, precision="bfloat16")
CHANNELS_LAST = replace(BFLOAT16, channels_last=True)


class Counting(ModelComposite):
    """A network that appends the batch size of each pass to `passes`. Copies of the network share this list."""

    def __init__(self, passes: list[int]) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 64, 3)
        self.forward = lambda images: (passes.append(len(images)), self.linear(images.flatten(1)))[1]  # type: ignore[method-assign]


class Spoiling(nn.Conv2d):
    """A convolution that multiplies the gradient of its weight by `factor`."""

    factor = 0.0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        spoiled = self.weight.detach() + self.factor * (self.weight - self.weight.detach())
        return nn.functional.conv2d(images, spoiled, padding=1)


@pytest.mark.parametrize(("hopeless", "passes"), [(math.inf, 7), (1e-9, 1)])
def test_plans_take_turns_and_a_hopeless_plan_gets_a_single_pass(
    monkeypatch: pytest.MonkeyPatch, hopeless: float, passes: int
) -> None:
    monkeypatch.setattr(microbenchmark, "PASSES_SECONDS", math.inf)  # so that even a busy machine runs all passes
    monkeypatch.setattr(microbenchmark, "HOPELESS", hopeless)
    counted: list[int] = []
    benchmark = Microbenchmark(Counting(counted), 8, EAGER)
    assert all(seconds > 0 for seconds in benchmark.seconds(5, EAGER, CHANNELS_LAST))
    assert counted == [5] * 2 * passes


@pytest.mark.parametrize(
    ("turns", "spread"),
    [
        ([], 1.0),
        ([[9, 2, 2, 2, 2, 2, 2]], 1.0),  # the first pass is a warm-up
        ([[9, 2, 3, 2.2, 2.1, 2.2, 2.2]], 1.1),
        ([[9, 2, 4, 4, 4, 4, 4]], 2.0),
        ([[2] * 7, [3] * 7, [3] * 7], 1.5),  # the same plan in several turns
    ],
)
def test_the_spread_is_the_median_pass_relative_to_the_fastest(
    monkeypatch: pytest.MonkeyPatch, turns: list[list[float]], spread: float
) -> None:
    monkeypatch.setattr(microbenchmark, "PASSES_SECONDS", math.inf)
    benchmark = Microbenchmark(Counting([]), 8, EAGER)
    for turn in turns:
        passes = iter(turn)
        monkeypatch.setattr(benchmark, "_pass", lambda *_, passes=passes: next(passes))
        assert benchmark.seconds(5, EAGER) == [min(turn)]
    assert benchmark.spread == pytest.approx(spread)


@pytest.mark.parametrize("plan", [EAGER, BFLOAT16, replace(EAGER, channels_last=True), CHANNELS_LAST], ids=str)
def test_plans_of_pytorch_alone_agree_with_float32(plan: ComputePlan) -> None:
    torch.manual_seed(0)
    assert Microbenchmark(CustomResNet(input_size=8), 8, EAGER).agrees(plan)


@pytest.mark.parametrize("factor", [0.0, -1.0, 2.0])
def test_a_wrong_gradient_of_a_single_layer_in_a_deep_network_is_found(
    monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    torch.manual_seed(0)
    model = CustomResNet(input_size=16)
    prepare = ComputePlan.prepare

    def with_a_fault(plan: ComputePlan, model: CustomResNet) -> CustomResNet:
        prepared = prepare(plan, model)
        if plan == CHANNELS_LAST:
            spoiled = prepared.layer3[1].branch[0][0]
            spoiled.__class__, spoiled.factor = Spoiling, factor
        return prepared

    benchmark = Microbenchmark(model, 16, EAGER)
    assert benchmark.agrees(CHANNELS_LAST)
    monkeypatch.setattr(ComputePlan, "prepare", with_a_fault)
    assert not benchmark.agrees(CHANNELS_LAST)


def test_nan_gradients_never_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = Microbenchmark(CustomResNet(input_size=8), 8, EAGER)
    compute = benchmark._gradients
    monkeypatch.setattr(
        benchmark, "_gradients", lambda plan: [g if plan == EAGER else g * math.nan for g in compute(plan)]
    )
    assert not benchmark.agrees(replace(EAGER, channels_last=True))


def test_a_gradient_of_rounding_noise_decides_nothing() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8)  # cancels the convolution's bias, so the gradient of this bias is rounding noise
    network = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3))

    class Network(ModelComposite):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.network(images)
            return logits

    benchmark = Microbenchmark(Network(), 8, EAGER)
    for plan in (replace(EAGER, channels_last=True), BFLOAT16, CHANNELS_LAST):
        assert benchmark.agrees(plan)


@pytest.mark.parametrize(
    ("size", "count", "images"),
    [(8, 512, 512), (32, 512, 512), (128, 512, 32), (224, 512, 10), (512, 512, 4), (512, 16, 4), (512, 2, 2)],
)
def test_a_pass_has_fewer_images_if_they_are_large(size: int, count: int, images: int) -> None:
    assert Microbenchmark(CustomResNet(), size, EAGER).images_at_size(count) == images


def test_frozen_parameters_need_no_gradient() -> None:
    torch.manual_seed(0)
    model = CustomResNet(input_size=8)
    model.preparation.requires_grad_(False)
    assert Microbenchmark(model, 8, EAGER).agrees(CHANNELS_LAST)


def several_convolutions() -> ModelComposite:
    """A network for 8×8 images whose 3×3 convolutions with stride 1 and padding 1 have channels (3, 4) and (4, 4)."""
    torch.manual_seed(0)
    small = {"padding": 1, "bias": False}
    layers = [
        *(nn.Conv2d(3, 4, 3, **small), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, **small)),
        *(nn.Conv2d(4, 5, 1, bias=False), nn.Conv2d(5, 6, 5, padding=2, bias=False), nn.Conv2d(6, 7, 3, bias=False)),
        *(nn.ZeroPad2d(1), nn.Conv2d(7, 8, 3, padding=1), nn.Conv2d(8, 4, 3, groups=2, **small)),
        *(nn.Conv2d(4, 4, 3, **small), nn.Conv2d(4, 9, 3, stride=2, **small), nn.Flatten(), nn.Linear(9 * 16, 3)),
    ]
    return as_composite(nn.Sequential(*layers))


FLOAT32 = replace(EAGER, channels_last=True)


@pytest.mark.usefixtures("native_kernels")
@pytest.mark.parametrize("plan", [FLOAT32, CHANNELS_LAST, replace(FLOAT32, im2col_gemm=True, native_kernels=True)])
@pytest.mark.parametrize(("advantage", "pairs"), [(1e-9, ((3, 4), (4, 4))), (1e9, ())])
def test_winograds_algorithm_must_be_faster_by_the_advantage(
    plan: ComputePlan, advantage: float, pairs: ChannelPairs
) -> None:
    benchmark = Microbenchmark(several_convolutions(), 8, EAGER)
    assert benchmark.faster_by_winograd(plan, 3, advantage=advantage) == pairs


@pytest.mark.usefixtures("native_kernels")
def test_a_network_without_such_convolutions_has_none_that_winograds_algorithm_speeds_up() -> None:
    assert Microbenchmark(Counting([]), 8, EAGER).faster_by_winograd(FLOAT32, 3, advantage=1e-9) == ()


@pytest.mark.usefixtures("native_kernels")
def test_timing_winograds_algorithm_leaves_the_model_unchanged_and_no_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = several_convolutions()
    model.eval()
    benchmark = Microbenchmark(model, 8, EAGER)
    modules = [(name, id(module), type(module)) for name, module in model.named_modules()]
    tensors = model.state_dict(keep_vars=True).values()
    places = [(id(tensor), tensor.data_ptr(), tensor.stride()) for tensor in tensors]
    values = copy.deepcopy(model.state_dict())
    prepare, prepared = benchmark._prepare, []
    monkeypatch.setattr(benchmark, "_prepare", lambda plan: prepared.append(prepare(plan)) or prepared[-1])
    assert benchmark.faster_by_winograd(FLOAT32, 3, advantage=1e-9)
    assert [(name, id(module), type(module)) for name, module in model.named_modules()] == modules
    tensors = model.state_dict(keep_vars=True).values()
    assert [(id(tensor), tensor.data_ptr(), tensor.stride()) for tensor in tensors] == places
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    assert prepared
    for network in (model, *prepared):
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())


@pytest.mark.usefixtures("native_kernels")
@pytest.mark.parametrize("frozen", [1, 4])
def test_frozen_convolutions_are_timed_too(frozen: int) -> None:
    model = several_convolutions()
    for layer in list(model.network)[:frozen]:
        layer.requires_grad_(False)
    # The first convolution has no gradient to compute. The last one, with channels (4, 4), is not frozen.
    assert (4, 4) in Microbenchmark(model, 8, EAGER).faster_by_winograd(FLOAT32, 3, advantage=1e-9)


@pytest.mark.usefixtures("native_kernels")
def test_a_gain_of_a_few_convolutions_must_matter_for_all_and_equal_ones_are_timed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layers = [nn.Conv2d(channels, 4, 3, padding=1, bias=False) for channels in (3, 4, 4, 4)]
    model = as_composite(nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 64, 2)))
    seconds = {(3, False): 1.0, (3, True): 0.5, (4, False): 4.0, (4, True): 4.0}
    timed = []

    def pass_of(benchmark: Microbenchmark, layer: nn.Conv2d, plan: ComputePlan, images: torch.Tensor) -> float:
        timed.append((layer.in_channels, isinstance(layer, FastConv2d)))
        return seconds[timed[-1]]

    monkeypatch.setattr(Microbenchmark, "_pass_of", pass_of)
    # Together, the convolutions take 1 + 3 * 4 = 13 seconds, and 12.5 with Winograd's algorithm for the first.
    assert Microbenchmark(model, 8, EAGER).faster_by_winograd(FLOAT32, 3, advantage=1.03) == ((3, 4),)
    assert timed == [key for key in seconds for _ in range(2)]
    assert Microbenchmark(model, 8, EAGER).faster_by_winograd(FLOAT32, 3, advantage=1.05) == ()


@pytest.mark.usefixtures("native_kernels")
def test_a_frozen_convolution_is_not_timed_for_an_equal_one_that_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [nn.Conv2d(channels, 4, 3, padding=1, bias=False) for channels in (3, 4, 4)]
    for layer in layers[:2]:
        layer.requires_grad_(False)
    timed = []

    def pass_of(benchmark: Microbenchmark, layer: nn.Conv2d, plan: ComputePlan, images: torch.Tensor) -> float:
        timed.append(layer.weight.requires_grad)
        return 1.0

    monkeypatch.setattr(Microbenchmark, "_pass_of", pass_of)
    model = as_composite(nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 64, 2)))
    Microbenchmark(model, 8, EAGER).faster_by_winograd(FLOAT32, 3, advantage=1)
    assert timed == [False] * 8 + [True] * 4
