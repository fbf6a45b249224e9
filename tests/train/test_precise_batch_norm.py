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
from onecycle.train.precise_batch_norm import set_batch_norm_statistics


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
    torch.testing.assert_close(norm.running_var.double(), drawn.var(dim=(0, 2, 3)), rtol=1e-4, atol=0)


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


@pytest.mark.parametrize("batch_size", [16, 128, 1000])
@pytest.mark.parametrize("recipe", [NARROW_CONFIG, QUICK, FAST], ids=["narrow", "quick", "fast"])
def test_a_short_run_is_as_good_as_with_the_statistics_of_all_images(recipe: Config, batch_size: int) -> None:
    config = replace(recipe, data="digits", widths=(8, 16, 16), batch_size=batch_size, epochs=4, workers=0)
    experiment = assemble(config, EAGER)
    rates = {"lr_min": config.lr_min or 0.0, "lr_max": config.lr_max or 3e-3}
    history = fit(experiment.model, experiment.optimizer, experiment.train, experiment.evaluation, epochs=4, **rates)
    set_batch_norm_statistics(experiment.model, experiment.train, images=10**6)
    best = evaluate(experiment.model, experiment.evaluation).accuracy
    assert history[-1].eval_accuracy > best - 0.03
