"""Tests that the microbenchmark recognizes slow plans, plans with wrong gradients, and correct plans."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from onecycle.compute import microbenchmark
from onecycle.compute.microbenchmark import Microbenchmark
from onecycle.compute.plan import ComputePlan
from onecycle.models import CustomResNet, ModelComposite

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


@pytest.mark.parametrize(("to_beat", "passes"), [(math.inf, 7), (1e-9, 1)])
def test_a_hopeless_plan_gets_a_single_pass(monkeypatch: pytest.MonkeyPatch, to_beat: float, passes: int) -> None:
    monkeypatch.setattr(microbenchmark, "PASSES_SECONDS", math.inf)  # so that even a busy machine runs all passes
    counted: list[int] = []
    assert Microbenchmark(Counting(counted), 8, EAGER).seconds(EAGER, 5, to_beat=to_beat) > 0
    assert counted == [5] * passes


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


def test_frozen_parameters_need_no_gradient() -> None:
    torch.manual_seed(0)
    model = CustomResNet(input_size=8)
    model.preparation.requires_grad_(False)
    assert Microbenchmark(model, 8, EAGER).agrees(CHANNELS_LAST)
