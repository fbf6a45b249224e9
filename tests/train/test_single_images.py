import copy
import random
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import convolutional
from torch import nn
from torch.optim import Adam

from onecycle.core.errors import InputError
from onecycle.data import ImageSet
from onecycle.data.batches import Batches
from onecycle.data.preprocessing import Preprocessing
from onecycle.models import CustomResNet, WhitenedConvNet
from onecycle.train.loop import fit
from onecycle.train.lr_finder import find_lr
from onecycle.train.single_images import require_trainable


def batches(count: int, batch_size: int, *, size: int = 8, **options: object) -> Batches:
    rng = np.random.default_rng(0)
    images = ImageSet(rng.integers(0, 256, (count, size, size, 3), np.uint8), np.arange(count) % 2, ("a", "b"))
    return Batches(images, Preprocessing.of(images.images), batch_size=batch_size, **options)


def norm_of_one_pixel() -> nn.Module:
    """A network for images of any size whose batch norm sees a map of one pixel."""
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def norm_of_features() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3), nn.Linear(3, 2))


class Squeezing(nn.Module):
    """A network without a norm that loses the first dimension of a batch of one image."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(images.mean(dim=(2, 3)).squeeze())


NARROW = partial(WhitenedConvNet, 2, widths=(4, 4, 4))
UNTRAINABLE = [
    (partial(CustomResNet, 2, 8), 8),
    (partial(CustomResNet, 2, 15), 15),
    (partial(NARROW, 9), 9),
    (partial(NARROW, 16), 16),
    (norm_of_one_pixel, 8),
    (norm_of_features, 8),
    (Squeezing, 8),
]


@pytest.mark.parametrize(("network", "size"), UNTRAINABLE)
@pytest.mark.parametrize(
    ("count", "batch_size", "shards", "advice"),
    [(9, 8, 1, 9), (9, 1, 1, 3), (9, 4, 1, 3), (13, 8, 3, 7), (17, 7, 4, 9)],
    ids=["a last batch of one", "batches of one", "two full batches", "last shards of one", "shards of one"],
)
def test_a_network_that_needs_two_images_is_refused_with_another_batch_size(
    network: Callable[[], nn.Module], size: int, count: int, batch_size: int, shards: int, advice: int
) -> None:
    with pytest.raises(InputError, match=f"a single image of {size}×{size} pixels") as refused:
        require_trainable(network(), batches(count, batch_size, size=size, shards=shards, epochs=2))
    assert str(refused.value).endswith(f"; use --batch-size {advice}")
    require_trainable(network(), batches(count, advice, size=size, shards=shards, epochs=2))


@pytest.mark.parametrize(
    ("network", "size"), [(partial(CustomResNet, 2, 16), 16), (partial(NARROW, 17), 17), (convolutional, 32)]
)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_network_whose_maps_are_larger_is_trained_on_single_images(
    network: Callable[[], nn.Module], size: int, batch_size: int
) -> None:
    require_trainable(network(), batches(9, batch_size, size=size))


@pytest.mark.parametrize(("count", "batch_size", "shards"), [(10, 4, 1), (8, 4, 2), (3, 8, 1), (4, 8, 2)])
def test_without_a_single_image_no_network_is_refused(count: int, batch_size: int, shards: int) -> None:
    require_trainable(norm_of_one_pixel(), batches(count, batch_size, shards=shards))


def test_only_the_sizes_at_which_a_single_image_occurs_count() -> None:
    network = NARROW(24)
    train = batches(9, 4, size=24, sizes=(9, 24), epochs=1)
    require_trainable(network, train)  # the third and last batch of the only epoch has the size 24
    with pytest.raises(InputError, match="9×9"):
        require_trainable(network, batches(9, 4, size=24, sizes=(9, 24), epochs=2))


def test_where_no_batch_size_helps_more_images_are_proposed() -> None:
    for count, epochs in ((1, 2), (2, 1), (3, 1)):
        with pytest.raises(InputError, match="; add images$"):
            require_trainable(norm_of_one_pixel(), batches(count, 1, epochs=epochs))
    with pytest.raises(InputError, match="; add images, or use fewer --shards$"):
        require_trainable(norm_of_one_pixel(), batches(7, 7, shards=4))


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 5), st.integers(1, 3))
def test_the_proposed_batch_size_makes_no_single_image_and_at_least_two_steps(
    count: int, batch_size: int, shards: int, epochs: int
) -> None:
    train = batches(count, max(batch_size, shards), size=1, shards=shards, epochs=epochs)
    try:
        require_trainable(Squeezing(), train)
        assert not train.sizes_of_single_images()
    except InputError as error:
        _, found, proposed = str(error).partition("use --batch-size ")
        if found:
            other = batches(count, int(proposed), size=1, shards=shards, epochs=epochs)
            assert not other.sizes_of_single_images()
            assert shards <= int(proposed) <= count and epochs * len(other) >= 2


def test_a_network_with_another_fault_is_left_to_its_first_step() -> None:
    require_trainable(nn.Linear(5, 2), batches(9, 8))


def test_the_check_changes_neither_the_model_nor_a_random_state() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 2)).eval()
    before = copy.deepcopy(model.state_dict())
    states = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
    require_trainable(model, batches(9, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (np.random.get_state()[1].tobytes(), random.getstate())


def test_fit_and_the_finder_refuse_before_their_first_step() -> None:
    model = norm_of_one_pixel()
    optimizer, train = Adam(model.parameters()), batches(9, 2)
    steps = []
    with pytest.raises(InputError, match="use --batch-size"):
        fit(model, optimizer, train, train, epochs=1, lr_min=1e-4, lr_max=1e-3, after_step=steps.append)
    with pytest.raises(InputError, match="use --batch-size"):
        find_lr(model, optimizer, train, after_step=lambda *step: steps.append(step))
    assert not steps and not optimizer.state
