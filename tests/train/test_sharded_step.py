from typing import Self

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD

from onecycle.compute.plan import EAGER
from onecycle.data import ImageSet
from onecycle.data.batches import Batches
from onecycle.data.preprocessing import Preprocessing
from onecycle.models import Batch, ModelComposite, TrainingCrossEntropy, as_composite
from onecycle.train.loop import fit, make_train_step
from onecycle.train.train_step import StepResult, whole_batch_step

PREPROCESSING = Preprocessing(input_size=4, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def batches(count: int, *, shards: int, batch_size: int = 12) -> Batches:
    rng = np.random.default_rng(0)
    images = ImageSet(rng.integers(0, 256, (count, 4, 4, 3), np.uint8), rng.integers(0, 3, count), ("a", "b", "c"))
    return Batches(images, PREPROCESSING, batch_size=batch_size, shards=shards)


class SmallNetwork(nn.Module):
    """A convolutional network with an unused parameter, a frozen parameter and a constant buffer."""

    def __init__(self, *, norm: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5) if norm else nn.Identity()
        self.head = nn.Linear(5 * 16, 3)
        self.unused = nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("scale", torch.full((3,), 1 / 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.convolution(images)).flatten(1)) * self.scale


class FixedNorm(nn.BatchNorm2d):
    """A batch norm that stays in evaluation mode."""

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


def train_step(network: nn.Module, images: Batches, number: int = 0) -> tuple[StepResult, dict[str, torch.Tensor]]:
    """Run a train step on batch `number` of `images`. Returns its result, and the gradients by parameter name."""
    prepared = as_composite(network).train()
    batch = list(images.epoch(0))[number]
    result = make_train_step(images, EAGER)(prepared, batch, number)
    gradients = {name: value.grad for name, value in network.named_parameters() if value.grad is not None}
    return result, gradients


@pytest.mark.parametrize("shards", [2, 3, 4, 12])
def test_shards_without_batch_norm_give_the_result_of_the_whole_batch(shards: int) -> None:
    of_whole, expected = train_step(SmallNetwork(norm=False), batches(12, shards=1))
    of_shards, found = train_step(SmallNetwork(norm=False), batches(12, shards=shards))
    assert of_shards.images == 12 and of_shards.correct == of_whole.correct
    assert torch.allclose(of_shards.loss, of_whole.loss) and torch.allclose(of_shards.margins, of_whole.margins)
    assert found.keys() - expected.keys() == {"unused"} and not found["unused"].any()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-6), name


@pytest.mark.parametrize("count", [12, 5])
@pytest.mark.parametrize("shards", range(2, 8))
def test_shards_with_class_weights_and_smoothing_give_the_result_of_the_whole_batch(shards: int, count: int) -> None:
    def weighted(shards: int) -> tuple[StepResult, dict[str, torch.Tensor]]:
        model = as_composite(SmallNetwork(norm=False))
        model.criterion = TrainingCrossEntropy(label_smoothing=0.2, weight=torch.tensor([0.1, 1.0, 9.0]))
        return train_step(model, batches(count, shards=shards))

    of_whole, expected = weighted(1)
    of_shards, found = weighted(shards)
    assert torch.allclose(of_shards.loss, of_whole.loss)
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-6), name


def test_each_shard_is_normalized_by_itself_and_running_statistics_are_averaged() -> None:
    network = SmallNetwork()
    train_step(network, batches(10, shards=2))
    (batch,) = batches(10, shards=1).epoch(0)
    halves = []
    for part in (slice(0, 5), slice(5, 10)):
        alone = SmallNetwork()
        alone.train()(batch.images[part])
        halves.append(alone.norm)
    for name in ("running_mean", "running_var"):
        mean = sum(getattr(half, name) for half in halves) / 2
        assert torch.allclose(getattr(network.norm, name), mean), name
    assert network.norm.num_batches_tracked == 1
    assert torch.equal(network.scale, torch.full((3,), 1 / 3)), "a constant buffer keeps its exact value"


def test_a_norm_in_evaluation_mode_keeps_its_statistics_and_shards_give_the_gradients_of_the_whole_batch() -> None:
    def trained(shards: int) -> dict[str, torch.Tensor]:
        network = SmallNetwork()
        network.norm = fixed = FixedNorm(5)
        _, gradients = train_step(network, batches(12, shards=shards))
        assert torch.equal(fixed.running_mean, torch.zeros(5)) and torch.equal(fixed.running_var, torch.ones(5))
        return gradients

    expected, found = trained(1), trained(4)
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-6), name


def test_a_last_batch_with_fewer_images_than_shards_is_trained_on() -> None:
    images = batches(15, shards=8)
    result, gradients = train_step(SmallNetwork(norm=False), images, number=1)
    of_whole, expected = train_step(SmallNetwork(norm=False), batches(15, shards=1), number=1)
    assert result.images == 3 and len(result.margins) == 3
    assert torch.allclose(result.loss, of_whole.loss)
    assert torch.allclose(gradients["head.weight"], expected["head.weight"], atol=1e-6)


def test_gradients_have_the_memory_layout_of_their_parameters() -> None:
    network = SmallNetwork().to(memory_format=torch.channels_last)
    _, gradients = train_step(network, batches(12, shards=4))
    assert gradients["convolution.weight"].stride() == network.convolution.weight.stride()
    assert torch.allclose(
        gradients["convolution.weight"], train_step(SmallNetwork(), batches(12, shards=4))[1]["convolution.weight"]
    )


def test_a_batch_without_shards_is_an_ordinary_training_step() -> None:
    images = batches(12, shards=1)
    (batch,) = images.epoch(0)
    one, other = SmallNetwork(), SmallNetwork()
    result = make_train_step(images, EAGER)(as_composite(one).train(), batch, 0)
    loss, logits = as_composite(other).train().training_step(batch)
    loss.backward()
    assert torch.equal(result.loss, loss.detach())
    assert result.correct == (logits.argmax(dim=1) == batch.labels).sum()
    for ours, plain in zip(one.parameters(), other.parameters(), strict=True):
        assert (ours.grad is None and plain.grad is None) or torch.equal(ours.grad, plain.grad)


def test_a_network_can_be_trained_in_shards() -> None:
    network = SmallNetwork()
    optimizer = SGD([parameter for parameter in network.parameters() if parameter.requires_grad], lr=0.1)
    images = batches(30, shards=3)
    history = fit(network, optimizer, images, batches(30, shards=1), epochs=20, lr_min=0.01, lr_max=0.3)
    assert history[-1].train_accuracy > 0.9


def test_the_margin_is_the_logit_of_the_label_minus_the_largest_other() -> None:
    class Fixed(ModelComposite):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([[3.0, 1, 0], [0, 2, 5], [1, 1, 1]]))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.logits

    batch = Batch(torch.zeros(3, 1), torch.tensor([0, 1, 2]))
    assert whole_batch_step(EAGER)(Fixed(), batch, 0).margins.tolist() == [2, -3, 0]
