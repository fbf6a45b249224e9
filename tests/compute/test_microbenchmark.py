"""What a trial says of ways that are known to be slow, wrong or right."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from onecycle.compute.microbenchmark import Trial
from onecycle.compute.plan import Acceleration
from onecycle.models import CustomResNet, ModelComposite

PLAIN = Acceleration()
BFLOAT16 = replace(PLAIN, precision="bfloat16")
CHANNELS_LAST = replace(BFLOAT16, channels_last=True)


class Counting(ModelComposite):
    """Counts its passes, in all of its copies."""

    def __init__(self, passes: list[int]) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 64, 3)
        self.forward = lambda images: (passes.append(len(images)), self.linear(images.flatten(1)))[1]  # type: ignore[method-assign]


class Spoiling(nn.Conv2d):
    """A convolution whose weight gets a gradient of so many times the right one, where the map is small."""

    factor = 0.0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        spoiled = self.weight.detach() + self.factor * (self.weight - self.weight.detach())
        return nn.functional.conv2d(images, spoiled, padding=1)


@pytest.mark.parametrize(("to_beat", "passes"), [(math.inf, 7), (1e-9, 1)])
def test_a_hopeless_way_gets_a_single_pass(to_beat: float, passes: int) -> None:
    counted: list[int] = []
    assert Trial(Counting(counted), 8, PLAIN).seconds(PLAIN, 5, to_beat=to_beat) > 0
    assert counted == [5] * passes


@pytest.mark.parametrize("how", [PLAIN, BFLOAT16, replace(PLAIN, channels_last=True), CHANNELS_LAST], ids=str)
def test_pytorchs_own_ways_agree_with_float32(how: Acceleration) -> None:
    torch.manual_seed(0)
    assert Trial(CustomResNet(input_size=8), 8, PLAIN).agrees(how)


@pytest.mark.parametrize("factor", [0.0, -1.0, 2.0])
def test_a_wrong_gradient_of_a_single_layer_in_a_deep_network_is_seen(
    monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    torch.manual_seed(0)
    model = CustomResNet(input_size=16)
    prepare = Acceleration.prepare

    def with_a_fault(how: Acceleration, model: CustomResNet) -> CustomResNet:
        running = prepare(how, model)
        if how == CHANNELS_LAST:
            spoiled = running.layer3[1].branch[0][0]
            spoiled.__class__, spoiled.factor = Spoiling, factor
        return running

    trial = Trial(model, 16, PLAIN)
    assert trial.agrees(CHANNELS_LAST)
    monkeypatch.setattr(Acceleration, "prepare", with_a_fault)
    assert not trial.agrees(CHANNELS_LAST)


def test_gradients_that_are_not_numbers_agree_with_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(CustomResNet(input_size=8), 8, PLAIN)
    compute = trial._gradients
    monkeypatch.setattr(trial, "_gradients", lambda how: [g if how == PLAIN else g * math.nan for g in compute(how)])
    assert not trial.agrees(replace(PLAIN, channels_last=True))


def test_a_gradient_that_is_but_rounding_decides_nothing() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8)  # before which a bias has no effect
    network = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3))

    class Network(ModelComposite):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.network(images)
            return logits

    trial = Trial(Network(), 8, PLAIN)
    for how in (replace(PLAIN, channels_last=True), BFLOAT16, CHANNELS_LAST):
        assert trial.agrees(how)


def test_frozen_parameters_are_not_asked_for_a_gradient() -> None:
    torch.manual_seed(0)
    model = CustomResNet(input_size=8)
    model.preparation.requires_grad_(False)
    assert Trial(model, 8, PLAIN).agrees(CHANNELS_LAST)
