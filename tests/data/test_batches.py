import os
import random
import signal
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onecycle.core.errors import PeerError
from onecycle.data import ImageSet
from onecycle.data.augment.albumentations import Augmentation
from onecycle.data.augment.batched import BatchedAugmentation
from onecycle.data.augment.degradation import Degradation
from onecycle.data.batches import Batches
from onecycle.data.preprocessing import Preprocessing
from onecycle.models import Batch

# This preprocessing leaves the pixel values as they are, from 0 to 255.
UNCHANGED = Preprocessing(input_size=2, mean=(0, 0, 0), std=(1 / 255, 1 / 255, 1 / 255))
UNCHANGED_32 = replace(UNCHANGED, input_size=32)


def numbered(count: int) -> ImageSet:
    """Images whose red channel is their index. The label is the index modulo 10."""
    images = np.zeros((count, 2, 2, 3), np.uint8)
    images[..., 0] = np.arange(count)[:, None, None]
    return ImageSet(images, np.arange(count) % 10, tuple("abcdefghij"))


def order_of(batches: Batches, epoch: int) -> list[int]:
    return [round(value) for batch in batches.epoch(epoch) for value in batch.images[:, 0, 0, 0].tolist()]


def batches_of(count: int, **options) -> Batches:
    return Batches(numbered(count), UNCHANGED, **{"batch_size": 8, "shuffle": True, **options})


def write_key(image: np.ndarray, key: Sequence[int]) -> np.ndarray:
    """An augmentation that writes the key of an image (seed, epoch, position) into its pixels."""
    marked = image.copy()
    marked[0, 0, 2], marked[0, 1, 2], marked[1, 0, 2] = key
    return marked


class WriteKeys:
    """An augmentation of whole batches. `draw` returns the keys of the images. The call writes them into the pixels."""

    def draw(self, seed: int, epoch: int, order: np.ndarray) -> np.ndarray:
        return np.array([(seed, epoch, position) for position in range(len(order))], np.int16)

    def __call__(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        assert (images.dtype, draws.dtype, len(images)) == (torch.uint8, torch.int16, len(draws))
        marked = images.clone()
        marked[:, 0, 0, 2], marked[:, 0, 1, 2], marked[:, 1, 0, 2] = draws.to(torch.uint8).T
        return marked


def mapped(images: ImageSet, path: Path) -> ImageSet:
    """`images` with the pixels in a read-only memory-mapped file."""
    images.images.tofile(path)
    return ImageSet(np.memmap(path, np.uint8, "r", shape=images.images.shape), images.labels, images.classes)


@pytest.fixture(scope="module")
def augment_batch(tiny: tuple[ImageSet, ImageSet]) -> BatchedAugmentation:
    return BatchedAugmentation(32, [255 * value for value in Preprocessing.of(tiny[0].images).mean])


@pytest.fixture(scope="module")
def training(tiny: tuple[ImageSet, ImageSet]):
    """A function that takes a number of workers and returns the batches of the tiny set: 50 images, 16 per batch."""
    preprocessing = Preprocessing.of(tiny[0].images)
    augment = Augmentation(32, [255 * value for value in preprocessing.mean])

    def with_workers(workers: int) -> Batches:
        return Batches(tiny[0], preprocessing, batch_size=16, shuffle=True, augment=augment, seed=3, workers=workers)

    return with_workers


def test_batches_are_the_same_bit_for_bit_with_any_number_of_workers(training) -> None:
    for epoch in (0, 1):
        expected = list(training(0).epoch(epoch))
        assert [len(batch.labels) for batch in expected] == [16, 16, 16, 2]
        for workers in (1, 2):
            found = list(training(workers).epoch(epoch))
            assert len(found) == len(expected)
            for one, other in zip(expected, found, strict=True):
                assert torch.equal(one.images, other.images)
                assert torch.equal(one.labels, other.labels)
                assert one.images.stride() == other.images.stride()


def test_epochs_can_be_drawn_in_any_order_and_again(training) -> None:
    batches = training(0)
    in_order = [list(batches.epoch(epoch)) for epoch in range(3)]
    for again in (list(batches.epoch(2)), list(training(0).epoch(2))):
        assert all(torch.equal(one.images, other.images) for one, other in zip(in_order[2], again, strict=True))
    list(islice(batches.epoch(0), 1))  # abandon this epoch after its first batch
    assert torch.equal(next(batches.epoch(1)).images, in_order[1][0].images)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGKILL, PeerError)])
def test_after_ctrl_c_or_a_killed_worker_the_next_epoch_has_new_workers(
    number: signal.Signals, error: type[BaseException]
) -> None:
    parent = os.getpid()

    def disturb(image: np.ndarray, key: Sequence[int]) -> np.ndarray:
        if os.getpid() != parent and key[1:] == (0, 20):
            os.kill(parent if number == signal.SIGINT else os.getpid(), number)
        return write_key(image, key)

    batches = batches_of(40, augment=disturb, workers=1)
    with pytest.raises(error):
        list(batches.epoch(0))
    expected = batches_of(40, augment=disturb)
    for epoch in (1, 2):
        for one, other in zip(batches.epoch(epoch), expected.epoch(epoch), strict=True):
            assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_cannot_be_continued_after_another_one_started(training, workers: int) -> None:
    batches, expected = training(workers), list(training(0).epoch(1))
    first, second = batches.epoch(0), batches.epoch(1)
    next(first)
    drawn = [next(second)]
    with pytest.raises(RuntimeError, match="epoch 0 was continued after another one had started"):
        next(first)
    drawn += second  # the failed call does not disturb the second epoch
    assert all(torch.equal(ours.images, theirs.images) for ours, theirs in zip(drawn, expected, strict=True))


@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 2**40), st.integers(0, 1000))
@settings(max_examples=40)
def test_every_image_comes_exactly_once_in_an_epoch_including_the_last_short_batch(
    count, batch_size, seed, epoch
) -> None:
    batches = batches_of(count, batch_size=batch_size, seed=seed)
    drawn = list(batches.epoch(epoch))
    assert len(drawn) == len(batches)
    sizes = [len(batch.labels) for batch in drawn]
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
    assert 1 <= sizes[-1] <= batch_size
    positions = torch.cat([batch.images[:, 0, 0, 0] for batch in drawn]).round().int()
    assert sorted(positions.tolist()) == list(range(count))
    assert (torch.cat([batch.labels for batch in drawn]) == positions % 10).all()


def test_cifar10_in_batches_of_512_makes_98_steps() -> None:
    images = ImageSet(np.zeros((50_000, 1, 1, 3), np.uint8), np.zeros(50_000, np.int64), ("one", "two"))
    assert len(Batches(images, UNCHANGED, batch_size=512)) == 98


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    orders = {(seed, epoch): order_of(batches_of(40, seed=seed), epoch) for seed in range(4) for epoch in range(4)}
    assert len({tuple(order) for order in orders.values()}) == 16
    for (seed, epoch), order in orders.items():
        assert order_of(batches_of(40, seed=seed), epoch) == order


def test_every_image_comes_first_about_equally_often() -> None:
    batches = batches_of(4, batch_size=4)
    first = np.bincount([order_of(batches, epoch)[0] for epoch in range(400)], minlength=4)
    assert ((first - 100) ** 2 / 100).sum() < 16.3  # chi-square test with 3 degrees of freedom: p > 0.001


def test_evaluation_yields_the_unchanged_images_in_order_in_every_epoch() -> None:
    batches = batches_of(20, shuffle=False)
    for epoch in (0, 1, 7):
        assert order_of(batches, epoch) == list(range(20))
        whole = torch.cat([batch.images for batch in batches.epoch(epoch)])
        assert torch.equal(whole.round().byte().permute(0, 2, 3, 1), torch.from_numpy(numbered(20).images))


@pytest.mark.parametrize(
    "augmentation",
    [{"augment": write_key}, {"augment_batch": WriteKeys()}, {"degrade": write_key}],
    ids=["image", "batch", "degradation"],
)
def test_an_image_is_augmented_with_the_key_of_seed_epoch_and_its_position_in_the_epoch(augmentation) -> None:
    batches = batches_of(20, seed=5, **augmentation)
    for epoch in (0, 9):
        drawn = torch.cat([batch.images for batch in batches.epoch(epoch)]).round().int()
        keys = torch.stack([drawn[:, 2, 0, 0], drawn[:, 2, 0, 1], drawn[:, 2, 1, 0]], dim=1)
        assert keys.tolist() == [[5, epoch, position] for position in range(20)]
        assert drawn[:, 0, 0, 0].tolist() == order_of(batches_of(20, seed=5), epoch)


@pytest.mark.parametrize(("shards", "workers"), [(1, 1), (1, 2), (4, 0)])
@pytest.mark.parametrize("augmented_by", ["image", "batch", None])
def test_images_are_degraded_before_they_are_augmented_the_same_for_any_number_of_workers_and_shards(
    tiny: tuple[ImageSet, ImageSet],
    augment_batch: BatchedAugmentation,
    augmented_by: str | None,
    shards: int,
    workers: int,
) -> None:
    augment = Augmentation(32, augment_batch.fill)
    options = {"batch_size": 16, "shuffle": True, "seed": 3, "degrade": Degradation(0.5)}
    options |= {"image": {"augment": augment}, "batch": {"augment_batch": augment_batch}}.get(augmented_by or "", {})
    batches = Batches(tiny[0], UNCHANGED_32, **options)
    parts = Batches(tiny[0], UNCHANGED_32, **options, shards=shards, workers=workers)
    for epoch in (1, 0):
        order = batches.order(epoch)
        degraded = [Degradation(0.5)(tiny[0].images[row], (3, epoch, place)) for place, row in enumerate(order)]
        assert 10 < sum((one != tiny[0].images[row]).any() for one, row in zip(degraded, order, strict=True)) < 40
        expected = torch.from_numpy(np.stack(degraded))
        if augmented_by == "image":
            each = [augment(image, (3, epoch, place)) for place, image in enumerate(degraded)]
            expected = torch.from_numpy(np.stack(each))
        elif augmented_by == "batch":
            expected = augment_batch(expected, torch.from_numpy(augment_batch.draw(3, epoch, order)))
        for made in (batches, parts):
            drawn = torch.cat([batch.images for batch in made.epoch(epoch)]).round().byte().permute(0, 2, 3, 1)
            assert torch.equal(drawn, expected)
    assert (batches.preview(20)[1] == expected[:20].numpy()).all()
    unaugmented = next(batches.unaugmented(np.arange(9)).epoch(0)).images.round().byte().permute(0, 2, 3, 1)
    assert torch.equal(unaugmented, torch.from_numpy(tiny[0].images[:9]))


@pytest.mark.parametrize("batch_size", [1, 16, 50, 64])
def test_images_augmented_batch_by_batch_equal_those_augmented_all_at_once(
    tiny: tuple[ImageSet, ImageSet], augment_batch: BatchedAugmentation, batch_size: int
) -> None:
    preprocessing = Preprocessing.of(tiny[0].images)
    options = {"batch_size": batch_size, "shuffle": True, "augment_batch": augment_batch, "seed": 3}
    batches = Batches(tiny[0], preprocessing, **options)
    for epoch in (1, 0):
        order = order_of(batches_of(50, seed=3), epoch)
        originals, draws = torch.from_numpy(tiny[0].images[order]), augment_batch.draw(3, epoch, np.array(order))
        expected = preprocessing.normalize(augment_batch(originals, torch.from_numpy(draws)))
        drawn = list(batches.epoch(epoch))
        assert {len(batch.labels) for batch in drawn[:-1]} <= {batch_size}
        assert all(batch.images.is_contiguous(memory_format=torch.channels_last) for batch in drawn)
        assert torch.equal(torch.cat([batch.images for batch in drawn]), expected)
        assert torch.equal(torch.cat([batch.labels for batch in drawn]), torch.from_numpy(tiny[0].labels[order]))


@given(
    st.integers(1, 40),
    st.integers(1, 12),
    st.integers(1, 3),
    st.lists(st.integers(1, 9), max_size=4),
    st.integers(1, 4),
)
def test_the_sizes_of_single_images_are_those_of_the_shards_of_one_image(
    count: int, batch_size: int, shards: int, sizes: list[int], epochs: int
) -> None:
    batches = batches_of(count, batch_size=batch_size, shards=min(shards, batch_size), sizes=sizes, epochs=epochs)
    expected = {
        batches.image_size(epoch * len(batches) + number)
        for epoch in range(epochs)
        for number in range(len(batches))
        if any(shard.stop - shard.start == 1 for shard in batches.local_shards(number))
    }
    assert batches.sizes_of_single_images() == expected


def test_without_the_last_batch_each_epoch_keeps_its_other_batches() -> None:
    whole, shorter = batches_of(20, epochs=2), batches_of(20, epochs=2).without_last()
    assert (len(whole), len(shorter)) == (3, 2)
    for epoch in range(2):
        kept = list(shorter.epoch(epoch))
        assert len(kept) == 2
        for one, other in zip(kept, whole.epoch(epoch), strict=False):
            assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def test_the_order_does_not_depend_on_the_augmentation() -> None:
    for seed, epoch in [(0, 0), (5, 2)]:
        plain = order_of(batches_of(40, seed=seed), epoch)
        assert order_of(batches_of(40, seed=seed, augment=write_key), epoch) == plain
        assert order_of(batches_of(40, seed=seed, augment_batch=WriteKeys()), epoch) == plain


@pytest.mark.parametrize("name", ["batch_size", "epochs", "shards"])
@pytest.mark.parametrize("value", [0, -1, -8])
def test_numbers_below_1_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"^{name} is {value}; it must be 1 or more$"):
        batches_of(20, **{name: value})


def test_an_augmentation_for_images_and_one_for_batches_cannot_be_combined() -> None:
    with pytest.raises(ValueError, match="give augment or augment_batch"):
        batches_of(20, augment=write_key, augment_batch=WriteKeys())


def test_memory_mapped_images_make_the_same_batches(
    tiny: tuple[ImageSet, ImageSet], augment_batch: BatchedAugmentation, tmp_path: Path
) -> None:
    on_disk = mapped(tiny[0], tmp_path / "images")
    augmented = {"shuffle": True, "augment_batch": augment_batch}
    for options in ({}, augmented, {**augmented, "degrade": Degradation(1)}):
        one, other = (
            Batches(images, Preprocessing.of(images.images), batch_size=16, **options) for images in (on_disk, tiny[0])
        )
        for first, second in zip(one.epoch(1), other.epoch(1), strict=True):
            assert torch.equal(first.images, second.images)
            assert torch.equal(first.labels, second.labels)
        assert all((first == second).all() for first, second in zip(one.preview(9), other.preview(9), strict=True))
    evaluation = Batches(on_disk, UNCHANGED, batch_size=16)
    in_order = torch.cat([batch.images for batch in evaluation.epoch(0)]).round().byte().permute(0, 2, 3, 1)
    assert torch.equal(in_order, torch.from_numpy(tiny[0].images))


@pytest.mark.parametrize("augmented", [False, True])
def test_images_that_are_mapped_from_a_file_are_never_copied_whole(
    augment_batch: BatchedAugmentation, tmp_path: Path, augmented: bool
) -> None:
    images = ImageSet(np.zeros((5000, 32, 32, 3), np.uint8), np.zeros(5000, np.int64), ("one", "two"))
    on_disk = mapped(images, tmp_path / "images")
    # tracemalloc finds only copies that NumPy makes. Before torch could make a copy, `torch.from_numpy` would warn that
    # the images are read-only, and the warning would fail the test.
    tracemalloc.start()
    try:
        batches = Batches(
            on_disk, UNCHANGED, batch_size=50, shuffle=True, augment_batch=augment_batch if augmented else None
        )
        batches.preview(8)
        for _ in islice(batches.epoch(0), 10):
            pass
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < images.images.nbytes / 10


@pytest.mark.parametrize("workers", [0, 1])
def test_drawing_batches_neither_reads_nor_changes_the_global_random_states(training, workers: int) -> None:
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        drawn.append(torch.cat([batch.images for batch in training(workers).epoch(0)]))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1] == before[1]).all()
        assert random.getstate() == before[2]
    assert torch.equal(drawn[0], drawn[1])


def test_batches_are_normalized_by_the_preprocessing(tiny: tuple[ImageSet, ImageSet]) -> None:
    preprocessing = Preprocessing.of(tiny[0].images)
    batches = list(Batches(tiny[1], preprocessing, batch_size=8).epoch(0))
    assert all(isinstance(batch, Batch) for batch in batches)
    for batch in batches:
        assert (batch.images.dtype, batch.images.shape[1:], batch.labels.dtype) == (
            torch.float32,
            (3, 32, 32),
            torch.int64,
        )
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
    whole = torch.cat([batch.images for batch in batches])
    assert torch.equal(whole, preprocessing.normalize(torch.from_numpy(tiny[1].images)))
    assert torch.equal(torch.cat([batch.labels for batch in batches]), torch.from_numpy(tiny[1].labels))


@pytest.mark.parametrize("augmented_by", ["image", "batch"])
def test_the_preview_shows_the_first_images_of_the_first_epoch(
    training, augment_batch: BatchedAugmentation, tiny: tuple[ImageSet, ImageSet], augmented_by: str
) -> None:
    batches = training(0)
    if augmented_by == "batch":
        batches = Batches(
            tiny[0], batches.preprocessing, batch_size=16, shuffle=True, augment_batch=augment_batch, seed=3
        )
    before, after = batches.preview(20)
    assert before.shape == after.shape == (20, 32, 32, 3)
    assert before.dtype == after.dtype == np.uint8
    first = torch.cat([batch.images for batch in islice(batches.epoch(0), 2)])[:20]
    assert torch.equal(batches.preprocessing.normalize(torch.from_numpy(after)), first)
    assert (before == tiny[0].images[order_of(batches_of(50, seed=3), 0)[:20]]).all()
    assert (before != after).any(axis=(1, 2, 3)).all()


def test_a_preview_of_more_images_than_the_set_has_shows_all() -> None:
    before, after = batches_of(5).preview(30)
    assert len(before) == len(after) == 5
    assert sorted(before[:, 0, 0, 0].tolist()) == list(range(5))


def test_sizes_are_used_in_turn_each_for_an_equal_part_of_the_steps() -> None:
    images = ImageSet(np.zeros((40, 32, 32, 3), np.uint8), np.zeros(40, np.int64), ("one", "two"))
    batches = Batches(images, UNCHANGED, batch_size=8, sizes=(24, 28, 32), epochs=3)
    sides = [[batch.images.shape[2] for batch in batches.epoch(epoch)] for epoch in range(4)]
    assert sides == [[24] * 5, [28] * 5, [32] * 5, [32] * 5], "later epochs have the last size"
    two_sizes = Batches(images, UNCHANGED, batch_size=8, sizes=(24, 32), epochs=3)
    assert [[batch.images.shape[2] for batch in two_sizes.epoch(epoch)] for epoch in range(3)] == [
        [24] * 5,
        [24] * 3 + [32] * 2,
        [32] * 5,
    ]
    assert all(batch.images.is_contiguous(memory_format=torch.channels_last) for batch in batches.epoch(0))
    assert {batch.images.shape[2] for batch in batches.at_last_size().epoch(0)} == {32}
    assert next(iter(batches.epoch(0))).images.shape[2] == 24, "at_last_size leaves the original unchanged"


def test_order_lists_the_images_of_the_batches() -> None:
    batches = batches_of(50, seed=3)
    for epoch in (0, 1):
        assert batches.order(epoch).tolist() == order_of(batches, epoch)
    assert batches.order(0).tolist() != batches.order(1).tolist()
