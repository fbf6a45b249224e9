import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import NARROW_CONFIG, convolutional
from torch import nn

from onecycle.compute.plan import EAGER
from onecycle.core.config import Config
from onecycle.core.recipes import FAST, QUICK
from onecycle.data import ImageSet, load_dataset
from onecycle.data.batches import Batches
from onecycle.data.preprocessing import Preprocessing
from onecycle.run.build import assemble
from onecycle.train.loop import evaluate, fit
from onecycle.train.precise_batch_norm import images_after_epoch, set_batch_norm_statistics


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return load_dataset("digits").train


def batches(images: ImageSet, *, batch_size: int = 50, shards: int = 1) -> Batches:
    return Batches(images, Preprocessing.of(images.images), batch_size=batch_size, shuffle=True, shards=shards, seed=3)


def test_the_statistics_are_those_of_the_first_full_batches(digits: ImageSet) -> None:
    norm = nn.BatchNorm2d(3)
    train = batches(digits)
    set_batch_norm_statistics(norm, train, images=120)  # three batches of 50
    drawn = torch.cat([batch.images for batch in train.epoch(0, stop=3)]).double()
    torch.testing.assert_close(norm.running_mean.double(), drawn.mean(dim=(0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), drawn.var(dim=(0, 2, 3), correction=0), rtol=1e-5, atol=0)


def test_a_deep_network_evaluates_as_it_trains(digits: ImageSet) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(*(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()), nn.Conv2d(8, 8, 3, stride=2))
    network.append(nn.BatchNorm2d(8))
    train = batches(digits, batch_size=500)
    set_batch_norm_statistics(network, train, images=500)
    (batch,) = train.epoch(0, stop=1)
    evaluated = network.eval()(batch.images)
    torch.testing.assert_close(evaluated, network.train()(batch.images), rtol=1e-3, atol=1e-3)


def test_the_short_last_batch_is_not_used(digits: ImageSet) -> None:
    norm, other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    few = digits.subset(np.arange(70))
    set_batch_norm_statistics(norm, batches(few, batch_size=50), images=10_000)
    set_batch_norm_statistics(other, batches(few, batch_size=50), images=1)
    assert torch.equal(norm.running_mean, other.running_mean) and torch.equal(norm.running_var, other.running_var)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_only_the_running_statistics_change(digits: ImageSet, momentum: float | None) -> None:
    network = convolutional()
    network[1].momentum = momentum
    network.train()
    network[1].num_batches_tracked.fill_(7)
    before, random_state = copy.deepcopy(network), torch.get_rng_state()
    set_batch_norm_statistics(network, batches(digits))
    changed = {
        name for name, value in network.state_dict().items() if not torch.equal(value, before.state_dict()[name])
    }
    assert changed == {"1.running_mean", "1.running_var"}
    assert torch.equal(torch.get_rng_state(), random_state), "dropout must not draw"
    assert [module.training for module in network.modules()] == [module.training for module in before.modules()]
    assert network[1].momentum == momentum


def test_the_result_depends_neither_on_shards_nor_on_earlier_statistics(digits: ImageSet) -> None:
    network, other = convolutional(), convolutional()
    other[1].running_mean.fill_(5)
    set_batch_norm_statistics(network, batches(digits))
    set_batch_norm_statistics(other, batches(digits, shards=4))
    for name, value in network.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_a_network_without_running_statistics_needs_no_images(digits: ImageSet) -> None:
    class Unused(Batches):
        def epoch(self, *_: object, **__: object) -> None:
            raise AssertionError("no batch is needed")

    train = Unused(digits, Preprocessing.of(digits.images), batch_size=50)
    for network in (nn.Conv2d(3, 4, 1), nn.BatchNorm2d(3, track_running_stats=False)):
        set_batch_norm_statistics(network, train)


def exact(model: nn.Module, train: Batches) -> nn.Module:
    """A copy of `model` with the statistics of all training images in a single batch."""
    whole = Batches(train.images, train.preprocessing, batch_size=len(train.images))
    copied = copy.deepcopy(model).train()
    for module in copied.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        copied(next(whole.epoch(0)).images)
    return copied


@pytest.mark.parametrize("batch_size", [16, 128, 1000])
@pytest.mark.parametrize("recipe", [NARROW_CONFIG, QUICK, FAST], ids=["narrow", "quick", "fast"])
def test_a_short_run_is_as_good_as_with_the_statistics_of_all_images(recipe: Config, batch_size: int) -> None:
    epochs = 4 if batch_size < 1000 else 12  # 4 epochs would be too few steps to learn anything
    config = replace(recipe, data="digits", widths=(16, 32, 32), batch_size=batch_size, epochs=epochs, workers=0)
    small = {"size": 16, "sizes": (16,) if recipe.sizes else (), "augmentation": "batched", "padding": 2, "cutout": 0}
    config = replace(config, **small)
    experiment = assemble(config, EAGER)
    rates = {"lr_min": 0.0, "lr_max": config.lr_max or 0.03, "peak_fraction": config.peak_fraction}
    history = fit(
        experiment.model, experiment.optimizer, experiment.train, experiment.evaluation, epochs=epochs, **rates
    )
    best = evaluate(exact(experiment.model, experiment.train), experiment.evaluation).accuracy
    assert best > 0.4, "the network has learned"
    assert history[-1].eval_accuracy > best - 0.03


@pytest.mark.parametrize("batch_size", [2, 8, 64])
def test_the_variance_is_exact_for_few_values_per_channel(digits: ImageSet, batch_size: int) -> None:
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3 * 32 * 32))
    train = batches(digits, batch_size=batch_size)
    set_batch_norm_statistics(network, train, images=256)
    drawn = torch.cat([batch.images for batch in train.epoch(0, stop=256 // batch_size)]).flatten(1).double()
    torch.testing.assert_close(network[1].running_mean.double(), drawn.mean(dim=0), rtol=1e-4, atol=1e-5)
    variance = drawn.var(dim=0, correction=0)
    torch.testing.assert_close(network[1].running_var.double(), variance, rtol=1e-4, atol=1e-5)


class Frozen(nn.Sequential):
    """A network whose batch norm stays in evaluation mode while it is trained, as in fine-tuning."""

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        self[0].eval()
        return self


def test_a_frozen_batch_norm_keeps_its_statistics(digits: ImageSet) -> None:
    network = Frozen(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    set_batch_norm_statistics(network, batches(digits))
    assert torch.equal(network[0].running_mean, torch.zeros(3)) and torch.equal(network[0].running_var, torch.ones(3))
    assert not torch.equal(network[1].running_var, torch.ones(3))


class UsedTwice(nn.Module):
    """A network that applies one batch norm to its images and to changed images, and has an unused batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.unused = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.unused.running_mean.fill_(7)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(images) + self.norm(5 * images + 3)


def test_a_batch_norm_that_is_used_twice_has_the_statistics_of_both_uses(digits: ImageSet) -> None:
    network, train = UsedTwice(), batches(digits)
    network.norm.running_mean.fill_(float("nan"))
    set_batch_norm_statistics(network, train, images=150)
    images = torch.cat([batch.images for batch in train.epoch(0, stop=3)]).double()
    both = torch.cat([images, 5 * images + 3])
    torch.testing.assert_close(network.norm.running_mean.double(), both.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    variance = both.var(dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(network.norm.running_var.double(), variance, rtol=1e-4, atol=0)
    assert network.unused.running_mean.eq(7).all() and network.unused.num_batches_tracked == 0


def mirrored(image: np.ndarray, key: tuple[int, ...]) -> np.ndarray:
    return image[:, ::-1]


def test_images_that_a_worker_augments_are_used_as_they_are_in_training(digits: ImageSet) -> None:
    few = digits.subset(np.arange(100))
    networks = [convolutional(), convolutional()]
    for network, workers in zip(networks, (0, 1), strict=True):
        preprocessing = Preprocessing.of(few.images)
        train = Batches(few, preprocessing, batch_size=50, shuffle=True, augment=mirrored, workers=workers)
        set_batch_norm_statistics(network, train)
    plain = convolutional()
    set_batch_norm_statistics(plain, Batches(few, Preprocessing.of(few.images), batch_size=50, shuffle=True))
    assert torch.equal(networks[0][1].running_mean, networks[1][1].running_mean)
    assert not torch.equal(networks[0][1].running_mean, plain[1].running_mean)


def test_the_last_epoch_has_more_images_than_the_others_of_a_small_set() -> None:
    assert [images_after_epoch(epoch, 3, 1_000) for epoch in range(3)] == [256, 256, 2000]
    assert [images_after_epoch(epoch, 2, 20_000) for epoch in range(2)] == [1000, 2000]
    assert [images_after_epoch(epoch, 2, 50_000) for epoch in range(2)] == [2000, 2000]
