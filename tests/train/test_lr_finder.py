import copy
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import convolutional
from numpy.typing import NDArray
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from onecycle.core.errors import InputError
from onecycle.data import ImageSet, load_dataset
from onecycle.data.batches import Batches
from onecycle.data.preprocessing import Preprocessing
from onecycle.storage.records import LRCurve
from onecycle.train.loop import fit
from onecycle.train.lr_finder import DIVERGENCE, batches_of_sweep, find_lr, read_curve, smooth
from onecycle.train.lr_finder import _valley as middle_of_valley


def with_global_randomness(image: NDArray[np.uint8], key: Sequence[int]) -> NDArray[np.uint8]:
    """An augmentation that uses the global random states of the process."""
    return image[:, ::-1] if np.random.random() + random.random() > 1 else image


def batches(images: ImageSet, *, global_randomness: bool = False) -> Batches:
    augment = with_global_randomness if global_randomness else None
    return Batches(images, Preprocessing.of(images.images), batch_size=16, shuffle=True, augment=augment)


@pytest.fixture(scope="module")
def train(tiny: tuple[ImageSet, ImageSet]) -> ImageSet:
    return tiny[0]


def state_of(model: nn.Module, optimizer: Optimizer) -> list[Any]:
    """A copy of everything that a sweep could change, in types that `==` can compare."""
    return copy.deepcopy(
        [
            [(name, tensor.tolist()) for name, tensor in model.state_dict().items()],
            [module.training for module in model.modules()],
            [parameter.grad is None for parameter in model.parameters()],
            [
                (index, name, torch.as_tensor(value).tolist())
                for index, values in optimizer.state_dict()["state"].items()
                for name, value in values.items()
            ],
            optimizer.state_dict()["param_groups"],
            torch.get_rng_state().tolist(),
            [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
            random.getstate(),
        ]
    )


def partly_trained(train: ImageSet) -> tuple[nn.Module, Optimizer]:
    """A network and an optimizer after one epoch, so that they have running statistics and moments."""
    model = convolutional()
    optimizer = Adam(model.parameters())
    fit(model, optimizer, batches(train), batches(train), epochs=1, lr_min=1e-4, lr_max=1e-3)
    optimizer.zero_grad()
    return model, optimizer


@pytest.mark.parametrize(
    ("start", "end", "steps", "stopped"),
    [(1e-5, 1e-1, 60, "completed"), (1e-5, 1e5, 150, "diverged")],
    ids=["completed", "diverged"],
)
def test_a_sweep_leaves_model_optimizer_and_random_states_as_they_were(
    train: ImageSet, start: float, end: float, steps: int, stopped: str
) -> None:
    model, optimizer = partly_trained(train)
    before = state_of(model, optimizer)
    curve = find_lr(model, optimizer, batches(train, global_randomness=True), start=start, end=end, steps=steps)
    assert curve.stopped == stopped
    assert state_of(model, optimizer) == before


def test_a_sweep_without_a_fall_leaves_everything_as_it_was(train: ImageSet) -> None:
    model, optimizer = partly_trained(train)
    before = state_of(model, optimizer)
    with pytest.raises(InputError, match="did not fall"):
        find_lr(model, optimizer, batches(train, global_randomness=True), start=1e-12, end=1e-11, steps=20)
    assert state_of(model, optimizer) == before


def test_an_interrupted_sweep_leaves_everything_as_it_was(train: ImageSet) -> None:
    model, optimizer = partly_trained(train)
    before = state_of(model, optimizer)

    def interrupt(step: int, lr: float, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_lr(model, optimizer, batches(train, global_randomness=True), after_step=interrupt)
    assert state_of(model, optimizer) == before


def test_training_after_a_sweep_equals_training_with_the_same_pair_given(train: ImageSet) -> None:
    model = convolutional()
    optimizer = Adam(model.parameters())
    curve = find_lr(model, optimizer, batches(train), end=0.1, steps=40)
    found = fit(model, optimizer, batches(train), batches(train), epochs=2, lr_min=curve.lr_min, lr_max=curve.lr_max)

    other = convolutional()
    given = fit(
        other,
        Adam(other.parameters()),
        batches(train),
        batches(train),
        epochs=2,
        lr_min=curve.lr_min,
        lr_max=curve.lr_max,
    )
    untimed = {"seconds": 0, "training_seconds": 0}
    assert [replace(record, **untimed) for record in found] == [replace(record, **untimed) for record in given]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_the_sweep_is_exponential_from_start_to_end_in_the_given_number_of_steps(train: ImageSet) -> None:
    model, calls = convolutional(), []
    curve = find_lr(
        model,
        Adam(model.parameters()),
        batches(train),
        start=1e-5,
        end=1e-2,
        steps=31,  # more than an epoch, which has 3 steps
        after_step=lambda *call: calls.append(call),
    )
    assert curve.stopped == "completed"
    np.testing.assert_allclose(curve.lrs, [1e-5 * 10 ** (step / 10) for step in range(31)], rtol=1e-12)
    assert len(curve.losses) == len(curve.smoothed) == 31
    assert calls == list(zip(range(31), curve.lrs, curve.losses, strict=True))
    assert curve.lr_min in curve.lrs
    assert curve.lr_max in curve.lrs


def test_the_optimizer_steps_at_the_rates_of_the_sweep(train: ImageSet) -> None:
    model, by_hand = convolutional(), convolutional()
    torch.manual_seed(1)
    curve = find_lr(model, SGD(model.parameters()), batches(train), start=1e-3, end=0.3, steps=48)

    torch.manual_seed(1)
    losses = []
    # Each epoch has three batches of 16 images. The fourth has 2 images and is left out.
    stream = [batch for epoch in range(16) for batch in batches(train).epoch(epoch, stop=3)]
    for lr, (images, labels) in zip(curve.lrs, stream, strict=True):
        by_hand.zero_grad()
        loss = nn.functional.cross_entropy(by_hand(images.contiguous()), labels)
        losses.append(float(loss.detach()))
        loss.backward()
        SGD(by_hand.parameters(), lr=lr).step()
    assert list(curve.losses) == losses


@pytest.mark.parametrize(
    ("images", "batch_size", "steps_per_epoch"),
    [
        (50_000, 512, 98),  # CIFAR-10, whose last batch has 336 images
        (1_437, 512, 3),  # the digits, whose last batch has 413 images
        (1_437, 64, 23),  # 29 images
        (80, 64, 2),  # 16 images: just enough
        (79, 64, 1),
        (66, 64, 1),
        (65, 4, 17),  # one image, and four in the others
        (65, 8, 8),
        (3, 64, 1),  # the only batch
        (5, 1, 5),
    ],
)
def test_only_a_last_batch_with_less_than_a_quarter_of_the_images_is_left_out(
    images: int, batch_size: int, steps_per_epoch: int
) -> None:
    pixels = ImageSet(np.zeros((images, 1, 1, 3), np.uint8), np.zeros(images, np.int64), ("one", "two"))
    whole = Batches(pixels, Preprocessing(input_size=1, mean=(0, 0, 0), std=(1, 1, 1)), batch_size=batch_size)
    swept = batches_of_sweep(whole)
    assert len(swept) == steps_per_epoch
    assert (swept is whole) == (steps_per_epoch == len(whole))
    assert [len(batch.labels) for batch in swept.epoch(0)] == [whole.size(number) for number in range(len(swept))]


@pytest.mark.parametrize("shards", [1, 2])
def test_a_last_batch_of_two_images_does_not_end_the_sweep(shards: int) -> None:
    images = load_dataset("digits").train.subset(np.arange(66))
    train = Batches(images, Preprocessing.of(images.images), batch_size=64, shuffle=True, shards=shards)
    model = convolutional()
    curve = find_lr(model, Adam(model.parameters()), train, end=0.1, steps=40)
    assert curve.stopped == "completed" and len(curve.losses) == 40


def test_a_sweep_that_diverges_stops_and_keeps_the_earlier_steps(train: ImageSet) -> None:
    model = convolutional()
    curve = find_lr(model, SGD(model.parameters()), batches(train), start=1e-4, end=1e6, steps=200)
    assert curve.stopped == "diverged"
    assert 10 <= len(curve.lrs) == len(curve.losses) == len(curve.smoothed) < 200
    settled = curve.smoothed[4:]  # the earlier values are averages of few losses
    assert settled[-1] > DIVERGENCE * min(settled)
    assert all(loss <= DIVERGENCE * min(settled[: i + 1]) for i, loss in enumerate(settled[:-1]))
    assert curve.lr_max < curve.lrs[-1]


class BecomesNaN(nn.Module):
    """A network whose output is NaN from forward pass number `steps` (counted from 1) on."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.network = convolutional()
        self.left = steps

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        return self.network(images) * (1.0 if self.left > 0 else float("nan"))


def test_a_loss_that_is_nan_stops_the_sweep_and_keeps_the_earlier_steps(train: ImageSet) -> None:
    model, calls = BecomesNaN(31), []
    curve = find_lr(
        model, Adam(model.parameters()), batches(train), end=0.1, steps=40, after_step=lambda *call: calls.append(call)
    )
    assert curve.stopped == "not finite"
    assert len(curve.lrs) == len(curve.losses) == len(curve.smoothed) == len(calls) == 30
    assert np.isfinite(curve.losses).all()
    assert model.left == 31


def test_a_loss_that_is_nan_stops_a_sweep_whose_steps_are_not_checked(
    train: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onecycle.train.loop.all_finite", lambda loss, model: True)  # as on a GPU
    model = BecomesNaN(31)
    curve = find_lr(model, Adam(model.parameters()), batches(train), end=0.1, steps=40)
    assert curve.stopped == "not finite"
    assert len(curve.losses) == 30 and np.isfinite(curve.losses).all()
    model = BecomesNaN(5)
    with pytest.raises(InputError, match=r"has 4 points \(not finite\) and needs 10"):
        find_lr(model, Adam(model.parameters()), batches(train))


def test_the_error_for_too_few_points_gives_the_reason_and_a_way_out(train: ImageSet) -> None:
    model = BecomesNaN(5)
    with pytest.raises(InputError, match=r"has 4 points \(not finite\) and needs 10; set --lr-min and --lr-max"):
        find_lr(model, Adam(model.parameters()), batches(train))


# The rules for choosing the rates, tested on constructed curves


LRS = np.geomspace(1e-6, 1, 100)
PAIR = ("lr_min", "lr_max")
RESULTS = Path(__file__).resolve().parents[2] / "results"


def raw(smoothed: Sequence[float]) -> list[float]:
    """The losses from which `smooth` computes `smoothed`."""
    means = [value * (1 - 0.9**step) for step, value in enumerate(smoothed, start=1)]
    return [(mean - 0.9 * before) / 0.1 for mean, before in zip(means, [0.0, *means[:-1]], strict=True)]


def valley(start: float, low: float, fall_at: float, rise_at: float) -> NDArray[np.float64]:
    """A loss curve that starts at `start`, falls to `low` around the rate 10**fall_at, and rises around 10**rise_at."""
    x = np.log10(LRS)
    down, up = 1 / (1 + np.exp(-4 * (x - fall_at))), np.exp(3 * (x - rise_at))
    return start - (start - low) * down + up


valleys = st.builds(
    valley,
    start=st.floats(1.5, 6.0),
    low=st.floats(0.01, 1.0),
    fall_at=st.floats(-4.5, -2.5),
    rise_at=st.floats(-1.0, 0.5),
)


@given(valleys)
def test_the_pair_is_where_a_tenth_and_19_twentieths_of_the_fall_are_done(losses: NDArray[np.float64]) -> None:
    curve = read_curve(LRS.tolist(), raw(losses))
    np.testing.assert_allclose(curve.smoothed, losses, rtol=1e-9)
    done = (losses[0] - losses) / (losses[0] - losses.min())
    for lr, part in ((curve.lr_min, 0.10), (curve.lr_max, 0.95)):
        index = curve.lrs.index(lr)
        assert done[index] >= part - 1e-9
        assert (done[:index] < part + 1e-9).all()
    assert curve.lr_min < curve.lr_max


@given(valleys, st.integers(-6, 6), st.floats(0.01, 100))
def test_scaling_the_loss_changes_nothing_and_scaling_the_rates_scales_the_pair(
    losses: NDArray[np.float64], power: int, factor: float
) -> None:
    scale = 2.0**power  # a power of two scales exactly, so rounding changes no comparison
    curve = read_curve(LRS.tolist(), losses.tolist())
    scaled = read_curve(LRS.tolist(), (losses * scale).tolist())
    assert (scaled.lr_min, scaled.lr_max) == (curve.lr_min, curve.lr_max)
    assert scaled.suggestions == curve.suggestions
    shifted = read_curve((LRS * factor).tolist(), losses.tolist())
    assert (shifted.lr_min, shifted.lr_max) == (curve.lr_min * factor, curve.lr_max * factor)


CONSTRUCTED = [2.0, 2.0, 2.0, 2.0, 2.0, 2.01, 2.02, 1.9, 1.7, 1.25, 1.0, 0.9, 0.85, 0.82, 0.8, 0.9, 1.0]


def test_a_constructed_curve_has_the_expected_pair_and_suggestions() -> None:
    lrs = [10.0**power for power in range(-16, 1)]
    curve = read_curve(lrs, raw(CONSTRUCTED))
    assert curve.lr_min == 1e-8  # the whole fall is 1.2, and 1.7 is the first loss below 2.0 - 0.10 * 1.2
    assert curve.lr_max == 1e-4  # 0.85 is the first loss below 2.0 - 0.95 * 1.2
    assert set(curve.suggestions) == {"steepest", "valley", "minimum/10"}
    assert curve.suggestions["steepest"] == 1e-7  # the middle of the steepest two steps, from loss 1.7 to 1.0
    assert curve.suggestions["valley"] == 1e-7  # after a third and a sixth of the 9 falling losses from 2.02 to 0.8
    assert curve.suggestions["minimum/10"] == pytest.approx(1e-3)
    assert curve.stopped == "completed"


def test_nothing_is_read_after_the_minimum() -> None:
    lrs = [10.0**power for power in range(-16, 5)]
    with_second_fall = [*CONSTRUCTED, 9.0, 5.0, 2.0, 0.9]  # its second fall is steeper and longer than its first
    curve = read_curve(lrs[:17], raw(CONSTRUCTED))
    longer = read_curve(lrs, raw(with_second_fall))
    assert (longer.lr_min, longer.lr_max, longer.suggestions) == (curve.lr_min, curve.lr_max, curve.suggestions)


@pytest.mark.parametrize("count", [0, 1, 9])
def test_fewer_than_ten_points_are_refused(count: int) -> None:
    with pytest.raises(InputError, match=f"has {count} points"):
        read_curve(LRS[:count].tolist(), np.linspace(2, 1, count).tolist())


@pytest.mark.parametrize(
    "losses",
    [np.full(100, 2.3), np.linspace(2.3, 9.0, 100), 2.3 - np.linspace(0, 0.1, 100), np.zeros(100)],
    ids=["flat", "rising", "falling by less than a twentieth", "zero"],
)
def test_a_curve_without_a_fall_is_refused(losses: NDArray[np.float64]) -> None:
    with pytest.raises(InputError, match="did not fall.*set --lr-min and --lr-max"):
        read_curve(LRS.tolist(), losses.tolist())


@pytest.mark.parametrize("steps", [50, 100])
@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_noise_without_a_fall_is_refused(kind: str, steps: int) -> None:
    rng = np.random.default_rng(0)
    accepted = 0
    for _ in range(200):
        losses = 2.3 + (0.2 * rng.standard_normal(steps) if kind == "normal" else rng.uniform(-0.2, 0.2, steps))
        try:
            read_curve(LRS[:steps].tolist(), losses.tolist())
            accepted += 1
        except InputError:
            pass
    assert accepted <= 6  # about 2 of 200 pass by chance


def test_noise_is_named_with_a_way_out() -> None:
    losses = 2.3 + np.where(np.arange(100) % 2, 0.5, -0.5) - np.linspace(0, 0.7, 100)
    with pytest.raises(InputError, match="did not fall by more than noise explains: .*use a larger --batch-size"):
        read_curve(LRS.tolist(), losses.tolist())


@pytest.mark.parametrize("outlier", [-0.3, 0.3])
def test_a_first_loss_that_is_an_outlier_hardly_moves_the_pair(outlier: float) -> None:
    losses = raw(valley(2.3, 0.2, -3, -0.5))
    curve = read_curve(LRS.tolist(), losses)
    moved = read_curve(LRS.tolist(), [losses[0] + outlier, *losses[1:]])
    steps = [abs(curve.lrs.index(getattr(curve, name)) - curve.lrs.index(getattr(moved, name))) for name in PAIR]
    assert max(steps) <= 3


@pytest.mark.parametrize("seed", range(6))
def test_batches_of_eight_images_have_a_pair(seed: int) -> None:
    torch.manual_seed(seed)
    hidden = nn.Linear(3 * 32 * 32, 64)
    model = nn.Sequential(nn.Flatten(), hidden, nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
    images = load_dataset("digits").train
    train = Batches(images, Preprocessing.of(images.images), batch_size=8, shuffle=True, seed=seed)
    curve = find_lr(model, Adam(model.parameters()), train)
    assert 1e-5 < curve.lr_min < 1e-3 < 0.03 < curve.lr_max < 0.3


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/lr_finder.json")), ids=lambda path: path.parent.name)
def test_recorded_sweeps_keep_their_pairs(path: Path) -> None:
    recorded = json.loads(path.read_text())
    curve = read_curve(recorded["lrs"], recorded["losses"])
    for name in PAIR:
        assert getattr(curve, name) == pytest.approx(recorded[name], rel=1e-9), name


def test_the_steepest_point_is_not_in_the_first_tenth_of_the_sweep() -> None:
    losses = valley(2.3, 0.2, -3, -0.5)
    losses[0] += 0.3  # the smoothed loss falls at once, because the first batch was an outlier
    assert read_curve(LRS.tolist(), losses.tolist()).suggestions["steepest"] > LRS[10]


def longest_decreasing(values: Sequence[float]) -> tuple[int, int]:
    """The end and the length of the longest decreasing subsequence, by trying all subsets."""
    best = (0, 0)
    for chosen in range(1, 2 ** len(values)):
        indices = [index for index in range(len(values)) if chosen >> index & 1]
        falls = all(values[i] > values[j] for i, j in pairwise(indices))
        if falls and (len(indices), -indices[-1]) > (best[1], -best[0]):
            best = indices[-1], len(indices)
    return best


@given(st.lists(st.integers(0, 9), min_size=6, max_size=9))
def test_the_valley_is_at_a_third_and_a_sixth_of_the_longest_decreasing_subsequence(values: list[int]) -> None:
    end, length = longest_decreasing(values)
    start = end - length
    assert middle_of_valley(np.array(values, float)) == start + int(length / 3) + int(length / 3 / 2)


def test_the_curve_survives_json() -> None:
    curve = read_curve(LRS.tolist(), valley(2.3, 0.2, -3, -0.5).tolist(), stopped="diverged")
    assert LRCurve.from_json(json.loads(json.dumps(curve.to_json()))) == curve
    assert curve.stopped == "diverged"


# Smoothing


loss_lists = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=60)


@given(loss_lists)
def test_smoothing_is_the_exponentially_weighted_mean_of_all_losses_up_to_each_step(losses: list[float]) -> None:
    expected = []
    for count in range(1, len(losses) + 1):
        weights = 0.9 ** np.arange(count)[::-1]
        expected.append((weights * losses[:count]).sum() / weights.sum())
    np.testing.assert_allclose(smooth(losses), expected, rtol=1e-9)


@given(st.floats(1e-3, 1e3), st.integers(1, 200))
def test_smoothing_keeps_a_constant(value: float, count: int) -> None:
    np.testing.assert_allclose(smooth([value] * count), value, rtol=1e-12)


@given(loss_lists)
def test_the_first_smoothed_loss_is_the_first_loss(losses: list[float]) -> None:
    assert smooth(losses)[0] == pytest.approx(losses[0], rel=1e-12)
