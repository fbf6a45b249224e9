import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from onecycle.compute.plan import EAGER
from onecycle.data import ImageSet
from onecycle.data.batches import Batches
from onecycle.data.preprocessing import Preprocessing
from onecycle.models import Batch, as_composite
from onecycle.train.loop import evaluate, fit, training_steps
from onecycle.train.nonfinite import NonFiniteError, all_finite, weights_finite


class Poisoned(nn.Module):
    """Returns its input for `after` calls. Then its output is NaN or, with `backward`, its gradient is infinite."""

    def __init__(self, *, after: int, backward: bool) -> None:
        super().__init__()
        self.calls = 0
        self.after = after
        self.backward = backward

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls <= self.after:
            return images
        if not self.backward:
            return images * math.nan
        images = images.clone()
        images.register_hook(lambda gradient: gradient * math.inf)
        return images


def network(poisoned: Poisoned) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 8), poisoned, nn.Linear(8, 2)]
    return nn.Sequential(*layers)


def batches(count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 4, 3, 2, 2, generator=generator)
    return [Batch(batch, torch.tensor([0, 1, 0, 1])) for batch in images]


@pytest.mark.parametrize(
    ("backward", "where"),
    [
        (False, "the output of layer network.4 (Poisoned) is the first with infinity or NaN"),
        (True, "the gradient of layer network.3 (Linear) is the first with infinity or NaN"),
    ],
)
def test_the_step_and_the_first_layer_are_named_and_the_weights_are_those_of_the_step_before(
    backward: bool, where: str
) -> None:
    model = network(Poisoned(after=3, backward=backward))
    optimizer = Adam(model.parameters())
    states: list[dict[str, torch.Tensor]] = []
    with pytest.raises(NonFiniteError) as stopped:
        for _, result in training_steps(as_composite(model), optimizer, batches(6), lambda step: 1e-3, plan=EAGER):
            states.append(copy.deepcopy(model.state_dict()))
            assert math.isfinite(float(result.loss))
    assert str(stopped.value) == f"step 3 is not finite: {where}"
    assert len(states) == 3
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in states[-1].items())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_single_value_that_is_not_finite_is_detected(value: float) -> None:
    model = network(Poisoned(after=100, backward=False))
    loss = torch.tensor(1.0)
    assert all_finite(loss, model), "without gradients"
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    assert all_finite(loss, model)
    assert not all_finite(torch.tensor(value), model)
    gradient = model[3].weight.grad  # type: ignore[index]
    gradient[5, 2] = value
    assert not all_finite(loss, model)
    gradient[5, 2] = torch.finfo(torch.float32).max
    assert all_finite(loss, model), "a large value is finite"


def test_a_learning_rate_that_is_far_too_high_is_detected() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(NonFiniteError):
        for _ in training_steps(
            as_composite(model), SGD(model.parameters()), batches(50), lambda step: 1e38, plan=EAGER
        ):
            pass


class EvaluatedAs(nn.Module):
    """Multiplies its input by `factor` in evaluation mode only, except the first image of a batch."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values if self.training else torch.cat([values[:1], values[1:] * self.factor])


def image_set() -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 2, 2, 3), np.uint8)
    return ImageSet(pixels, np.arange(12) % 2, ("a", "b"))


@pytest.mark.parametrize("factor", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_only_in_evaluation_are_an_error_that_names_the_split(factor: float) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2), EvaluatedAs(factor))
    images = Batches(image_set(), Preprocessing.of(image_set().images), batch_size=4)
    optimizer, saved = SGD(model.parameters()), []
    where = "is not finite: 9 of 12 have logits with infinity or NaN"
    with pytest.raises(NonFiniteError, match=f"^the result on the validation images {where}$"):
        evaluate(model, images, evaluated_on="validation")
    with pytest.raises(NonFiniteError, match=f"^the result on the evaluation images {where}$"):
        fit(
            model, optimizer, images, images, epochs=1, lr_min=1e-3, lr_max=1e-2, after_epoch=lambda *_: saved.append(1)
        )
    assert not saved, "the epoch is not reported as complete"


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_only_in_evaluation_is_an_error(loss: float) -> None:
    class Criterion(nn.CrossEntropyLoss):
        def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return super().forward(logits, labels) * (1 if self.training else loss)

    model = as_composite(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)))
    model.criterion = Criterion()
    with pytest.raises(NonFiniteError, match="not finite: the loss of a batch is infinity or NaN"):
        evaluate(model, Batches(image_set(), Preprocessing.of(image_set().images), batch_size=4))


def test_large_logits_are_finite() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2), EvaluatedAs(1e37))
    evaluation = evaluate(model, Batches(image_set(), Preprocessing.of(image_set().images), batch_size=4))
    assert math.isfinite(evaluation.loss)


def test_weights_that_are_not_finite_are_detected() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    assert weights_finite(model)
    model[1].running_var[1] = math.inf  # type: ignore[index]
    assert not weights_finite(model)
