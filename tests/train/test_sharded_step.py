import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD

from onecycle.compute.plan import PLAIN
from onecycle.data import ImageSet
from onecycle.data.batches import Batches
from onecycle.data.preprocessing import Preprocessing
from onecycle.models import Batch, ModelComposite, as_composite
from onecycle.train.loop import fit
from onecycle.train.sharded_step import Learned, learning, whole

AS_THEY_ARE = Preprocessing(input_size=4, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def batches(count: int, *, shards: int, batch_size: int = 12) -> Batches:
    rng = np.random.default_rng(0)
    images = ImageSet(rng.integers(0, 256, (count, 4, 4, 3), np.uint8), rng.integers(0, 3, count), ("a", "b", "c"))
    return Batches(images, AS_THEY_ARE, batch_size=batch_size, shards=shards)


class Normed(nn.Module):
    """A convolution, a norm and a head, with a parameter that nothing needs and a buffer that never changes."""

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


def learned(network: nn.Module, images: Batches, number: int = 0) -> tuple[Learned, dict[str, torch.Tensor]]:
    """What a batch of `images` comes to, and the gradients that it leaves."""
    running = as_composite(network).train()
    batch = list(images.epoch(0))[number]
    outcome = learning(images, PLAIN)(running, batch, number)
    gradients = {name: value.grad for name, value in network.named_parameters() if value.grad is not None}
    return outcome, gradients


@pytest.mark.parametrize("shards", [2, 3, 4, 12])
def test_without_batch_norm_shards_come_to_what_the_whole_batch_comes_to(shards: int) -> None:
    of_whole, expected = learned(Normed(norm=False), batches(12, shards=1))
    of_shards, found = learned(Normed(norm=False), batches(12, shards=shards))
    assert of_shards.images == 12 and of_shards.correct == of_whole.correct
    assert torch.allclose(of_shards.loss, of_whole.loss) and torch.allclose(of_shards.margins, of_whole.margins)
    assert found.keys() - expected.keys() == {"unused"} and not found["unused"].any()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-6), name


def test_each_shard_is_normalized_by_itself_and_running_statistics_are_averaged() -> None:
    network = Normed()
    learned(network, batches(10, shards=2))
    (batch,) = batches(10, shards=1).epoch(0)
    halves = []
    for part in (slice(0, 5), slice(5, 10)):
        alone = Normed()
        alone.train()(batch.images[part])
        halves.append(alone.norm)
    for name in ("running_mean", "running_var"):
        mean = sum(getattr(half, name) for half in halves) / 2
        assert torch.allclose(getattr(network.norm, name), mean), name
    assert network.norm.num_batches_tracked == 1
    assert torch.equal(network.scale, torch.full((3,), 1 / 3)), "what does not change stays, to the last bit"


def test_a_last_batch_with_fewer_images_than_shards_counts() -> None:
    images = batches(15, shards=8)
    outcome, gradients = learned(Normed(norm=False), images, number=1)
    of_whole, expected = learned(Normed(norm=False), batches(15, shards=1), number=1)
    assert outcome.images == 3 and len(outcome.margins) == 3
    assert torch.allclose(outcome.loss, of_whole.loss)
    assert torch.allclose(gradients["head.weight"], expected["head.weight"], atol=1e-6)


def test_gradients_lie_in_memory_as_their_parameters_do() -> None:
    network = Normed().to(memory_format=torch.channels_last)
    _, gradients = learned(network, batches(12, shards=4))
    assert gradients["convolution.weight"].stride() == network.convolution.weight.stride()
    assert torch.allclose(
        gradients["convolution.weight"], learned(Normed(), batches(12, shards=4))[1]["convolution.weight"]
    )


def test_a_batch_that_is_not_cut_is_learned_from_as_ever() -> None:
    images = batches(12, shards=1)
    (batch,) = images.epoch(0)
    one, other = Normed(), Normed()
    outcome = learning(images, PLAIN)(as_composite(one).train(), batch, 0)
    loss, logits = as_composite(other).train().training_step(batch)
    loss.backward()
    assert torch.equal(outcome.loss, loss.detach())
    assert outcome.correct == (logits.argmax(dim=1) == batch.labels).sum()
    for mine, plain in zip(one.parameters(), other.parameters(), strict=True):
        assert (mine.grad is None and plain.grad is None) or torch.equal(mine.grad, plain.grad)


def test_a_network_learns_in_shards() -> None:
    network = Normed()
    optimizer = SGD([parameter for parameter in network.parameters() if parameter.requires_grad], lr=0.1)
    images = batches(30, shards=3)
    history = fit(network, optimizer, images, batches(30, shards=1), epochs=20, lr_min=0.01, lr_max=0.3)
    assert history[-1].train_accuracy > 0.9


def test_the_margin_of_an_image_is_how_far_its_label_is_above_the_rest() -> None:
    class Fixed(ModelComposite):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([[3.0, 1, 0], [0, 2, 5], [1, 1, 1]]))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.logits

    batch = Batch(torch.zeros(3, 1), torch.tensor([0, 1, 2]))
    assert whole(PLAIN)(Fixed(), batch, 0).margins.tolist() == [2, -3, 0]
