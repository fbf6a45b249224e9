"""The tests infer crop, flip and cutout from the augmented images, and compare them with albumentations."""

import random

import numpy as np
import pytest
import torch
from augmented import CUTOUT, FILL, MANY, SIZE, Drawn, by_hand, chi_square, map_of, read
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from onecycle.data.augment.albumentations import Augmentation
from onecycle.data.augment.batched import BatchedAugmentation

BATCHED = BatchedAugmentation(SIZE, FILL)


def augmented(image: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Augment `image` `[S,S,3]` once with each row of `draws` `[B,5]`. Returns uint8 `[B,S,S,3]`."""
    images = torch.from_numpy(image).expand(len(draws), *image.shape)
    return BatchedAugmentation(len(image), FILL)(images, torch.from_numpy(draws)).numpy()


NEIGHBORS = {
    "positions": lambda: BATCHED.draw(0, 0, np.arange(MANY)),
    "epochs": lambda: np.stack([BATCHED.draw(0, epoch, np.arange(8))[7] for epoch in range(MANY)]),
    "seeds": lambda: np.concatenate([BATCHED.draw(seed, 0, np.arange(1)) for seed in range(MANY)]),
}


@pytest.fixture(scope="module", params=NEIGHBORS)
def draws(request: pytest.FixtureRequest) -> np.ndarray:
    """The random draws, int `[MANY,5]`, of `MANY` images at consecutive positions, epochs or seeds.

    The fixture reads the draws from the augmented images.
    """
    drawn = NEIGHBORS[request.param]()
    found = np.array([read(image) for image in augmented(map_of(), drawn)])
    assert (found == drawn).all()
    return found


def by_albumentations(image: np.ndarray) -> np.ndarray:
    """`image` augmented by albumentations `MANY` times: uint8 `[MANY,32,32,3]`."""
    augmentation = Augmentation(SIZE, FILL)
    return np.stack([augmentation(image, (0, 0, position)) for position in range(MANY)])


def test_a_longer_epoch_starts_with_the_draws_of_a_shorter_one() -> None:
    assert (BATCHED.draw(3, 1, np.arange(9)) == BATCHED.draw(3, 1, np.arange(40))[:9]).all()


def test_crops_are_uniform_over_all_81_offsets(draws: np.ndarray) -> None:
    assert (draws[:, :2].min(), draws[:, :2].max()) == (0, 8)
    assert chi_square(draws[:, 0] * 9 + draws[:, 1], 81) < 4


def test_half_of_the_images_are_flipped(draws: np.ndarray) -> None:
    assert abs(draws[:, 2].mean() - 0.5) < 4 * 0.5 / np.sqrt(MANY)


def test_the_cutout_is_uniform_over_all_places_inside_the_image(draws: np.ndarray) -> None:
    places = SIZE - CUTOUT + 1
    assert (draws[:, 3:].min(), draws[:, 3:].max()) == (0, SIZE - CUTOUT)
    assert chi_square(draws[:, 3], places) < 4
    assert chi_square(draws[:, 4], places) < 4
    assert chi_square(draws[:, 3] * places + draws[:, 4], places * places) < 4


def test_draws_are_uncorrelated_within_and_between_images(draws: np.ndarray) -> None:
    # Each row has the draws of an image, followed by those of the next image.
    with_next = np.concatenate([draws[:-1], draws[1:]], axis=1)
    assert np.abs(np.corrcoef(with_next.T) - np.eye(10)).max() < 0.08


def test_its_draws_have_the_distribution_of_those_of_albumentations() -> None:
    ours = BATCHED.draw(0, 0, np.arange(MANY)).astype(int)
    theirs = np.array([read(image) for image in by_albumentations(map_of())])
    places = SIZE - CUTOUT + 1
    for name, cells, cell_of in [
        ("crop and flip", 162, lambda d: (d[:, 0] * 9 + d[:, 1]) * 2 + d[:, 2]),
        ("cutout", places**2, lambda d: d[:, 3] * places + d[:, 4]),
        ("crop and cutout, by rows", 9 * places, lambda d: d[:, 0] * places + d[:, 3]),
    ]:
        one, other = (np.bincount(cell_of(drawn), minlength=cells) for drawn in (ours, theirs))
        both = one + other
        statistic = ((one - other) ** 2 / np.maximum(both, 1)).sum()
        freedom = (both > 0).sum() - 1
        assert (statistic - freedom) / np.sqrt(2 * freedom) < 4, name


def test_its_mean_image_is_that_of_albumentations_within_sampling_error() -> None:
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    ours, theirs = augmented(image, BATCHED.draw(0, 0, np.arange(MANY))), by_albumentations(image)
    standard_error = np.sqrt((ours.var(axis=0) + theirs.var(axis=0)) / MANY)
    differences = (ours.mean(axis=0) - theirs.mean(axis=0)) / standard_error
    assert np.abs(differences).max() < 5  # in standard errors, the largest of 3,072 differences
    assert 0.9 < differences.std() < 1.1


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray, list[Drawn]]:
    """One to four square images of the same size, 8 to 40 pixels, with valid draws for each image."""
    size = draw(st.integers(CUTOUT, 40))
    corner, cutout = st.integers(0, 8), st.integers(0, size - CUTOUT)
    drawn = draw(st.lists(st.builds(Drawn, corner, corner, st.booleans(), cutout, cutout), min_size=1, max_size=4))
    return draw(arrays.arrays(np.uint8, (len(drawn), size, size, 3))), drawn


@given(batches())
@settings(max_examples=50)
def test_images_of_any_size_are_padded_cropped_flipped_and_cut_out_as_drawn(batch) -> None:
    images, drawn = batch
    augmentation = BatchedAugmentation(images.shape[1], FILL)
    made = augmentation(torch.from_numpy(images), torch.from_numpy(np.array(drawn, np.int16)))
    assert (made.dtype, made.shape) == (torch.uint8, images.shape)
    for image, one, found in zip(images, drawn, made.numpy(), strict=True):
        assert (found == by_hand(image, one)).all()


@pytest.mark.parametrize("size", [8, 9, 33])
def test_draws_for_another_size_reach_all_places_inside_the_image_and_none_outside(size: int) -> None:
    drawn = BatchedAugmentation(size, FILL).draw(0, 0, np.arange(MANY))
    assert (drawn.dtype, drawn.shape) == (np.int16, (MANY, 5))
    assert drawn.min(axis=0).tolist() == [0] * 5
    assert drawn.max(axis=0).tolist() == [8, 8, 1, size - CUTOUT, size - CUTOUT]


@given(st.integers(0, 2**64 - 1), st.integers(0, 10_000), st.integers(1, 20), st.integers(1, 25))
@settings(max_examples=30)
def test_equal_seed_epoch_and_position_give_equal_images_in_batches_of_any_size(seed, epoch, count, batch_size) -> None:
    images = torch.from_numpy(map_of()).expand(count, SIZE, SIZE, 3)
    draws, again = (
        torch.from_numpy(BatchedAugmentation(SIZE, FILL).draw(seed, epoch, np.arange(count))) for _ in range(2)
    )
    parts = [
        BATCHED(images[start : start + batch_size], again[start : start + batch_size])
        for start in range(0, count, batch_size)
    ]
    assert torch.equal(BATCHED(images, draws), torch.cat(parts))


def test_another_seed_or_epoch_gives_different_draws() -> None:
    pairs = [(seed, epoch) for seed in (0, 1, 2**31, 2**32, 2**33, 2**63, 2**64 - 1) for epoch in (0, 1, 2, 100)]
    assert len({BATCHED.draw(seed, epoch, np.arange(50)).tobytes() for seed, epoch in pairs}) == len(pairs)


def test_the_input_and_the_global_random_states_stay_unchanged() -> None:
    images = torch.from_numpy(np.stack([map_of()] * 4))
    before, states = images.clone(), (random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state())
    drawn = torch.from_numpy(BATCHED.draw(0, 0, np.arange(4)))
    kept = drawn.clone()
    made = BATCHED(images, drawn)
    assert torch.equal(images, before)
    assert torch.equal(drawn, kept)
    assert made.untyped_storage().data_ptr() != images.untyped_storage().data_ptr()
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
    assert torch.equal(torch.get_rng_state(), states[2])


@pytest.mark.parametrize("fill", [(125.3, 122.95, 113.9), [0.0, 0.4, 255.0]])
def test_the_cutout_has_the_rounded_fill_color(fill) -> None:
    augmentation = BatchedAugmentation(SIZE, fill)
    images = torch.from_numpy(map_of() // 2 + 128)[None]
    made = augmentation(images, torch.from_numpy(augmentation.draw(0, 0, np.arange(1)))).numpy()[0]
    assert (made == [round(value) for value in fill]).all(axis=-1).sum() == CUTOUT * CUTOUT


def test_alternating_flips_show_both_sides_of_every_image_in_two_epochs() -> None:
    alternating = BatchedAugmentation(SIZE, FILL, flip="alternating")
    images = np.arange(1000)
    shuffled = np.random.default_rng(0).permutation(images)
    first, second = alternating.draw(0, 0, images)[:, 2], alternating.draw(0, 1, shuffled)[:, 2]
    assert 400 < first.sum() < 600
    assert (first[shuffled] != second).all(), "flips follow the image, not its position in the epoch"
    assert (alternating.draw(0, 2, images)[:, 2] == first).all()
    assert (alternating.draw(1, 0, images)[:, 2] != first).any()
    assert (alternating.draw(0, 1, shuffled[:8])[:, 2] == second[:8]).all(), "a preview of 8 images has the same flips"


def test_padding_limits_the_crop_offset_and_a_cutout_of_0_changes_nothing() -> None:
    augmentation = BatchedAugmentation(SIZE, FILL, padding=2, cutout=0)
    draws = augmentation.draw(0, 0, np.arange(MANY))
    assert (draws[:, :2].min(), draws[:, :2].max()) == (0, 4)
    images = torch.from_numpy(map_of()).expand(50, SIZE, SIZE, 3)
    made = augmentation(images, torch.from_numpy(draws[:50])).numpy()
    padded = np.pad(map_of(), ((2, 2), (2, 2), (0, 0)), mode="reflect")
    for (top, left, flipped, *_), image in zip(draws[:50], made, strict=True):
        cropped = padded[top : top + SIZE, left : left + SIZE]
        if flipped:
            cropped = np.pad(map_of()[:, ::-1], ((2, 2), (2, 2), (0, 0)), mode="reflect")
            left = 4 - left
            cropped = cropped[top : top + SIZE, left : left + SIZE]
        assert (image == cropped).all()


def test_color_jitter_is_uniform_and_leaves_the_other_draws_unchanged() -> None:
    draws = BatchedAugmentation(SIZE, FILL, brightness=0.1).draw(3, 1, np.arange(MANY))
    assert (draws[:, :5] == BATCHED.draw(3, 1, np.arange(MANY))).all()
    assert -1000 <= draws[:, 5:].min() < -990 < 990 < draws[:, 5:].max() <= 1000
    for column in draws[:, 5:].astype(int).T:
        assert chi_square((column + 1000) * 20 // 2001, 20) < 4
    assert abs(np.corrcoef(draws[:, 5:].T)[0, 1]) < 4 / np.sqrt(MANY)


@pytest.mark.parametrize(("brightness", "contrast"), [(0.1, 0.0), (0.0, 0.3), (0.1, 0.3), (1.0, 1.0)])
def test_color_jitter_follows_its_draws_and_is_rounded_and_clipped(brightness: float, contrast: float) -> None:
    augmentation = BatchedAugmentation(SIZE, FILL, cutout=0, brightness=brightness, contrast=contrast)
    plain = BatchedAugmentation(SIZE, FILL, cutout=0)
    draws = augmentation.draw(0, 0, np.arange(40))
    images = torch.from_numpy(np.random.default_rng(0).integers(256, size=(40, SIZE, SIZE, 3), dtype=np.uint8))
    moved = plain(images, torch.from_numpy(draws[:, :5])).numpy()
    fraction = draws[:, 5:, None, None, None] / 1000
    mean = np.round(FILL)
    expected = (moved + 255 * brightness * fraction[:, 0] - mean) * (1 + contrast * fraction[:, 1]) + mean
    made = augmentation(images, torch.from_numpy(draws)).numpy()
    assert made.dtype == np.uint8
    assert np.abs(made - expected.clip(0, 255)).max() < 0.501


def test_color_jitter_leaves_the_color_of_the_cutout_unchanged() -> None:
    augmentation = BatchedAugmentation(SIZE, FILL, brightness=0.5, contrast=0.5)
    draws = torch.from_numpy(augmentation.draw(0, 0, np.arange(5)))
    for image, (*_, top, left, _, _) in zip(
        augmentation(torch.zeros(5, SIZE, SIZE, 3).byte(), draws), draws, strict=True
    ):
        assert (image[top : top + CUTOUT, left : left + CUTOUT] == torch.tensor(FILL).round()).all()
