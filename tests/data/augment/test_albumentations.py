"""The tests augment images whose pixels encode their own coordinates, which shows what the augmentation did."""

import itertools
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from augmented import CUTOUT, FILL, MANY, PADDING, SIZE, chi_square, map_of, read

from onecycle.data.augment.albumentations import Augmentation, albumentations


@pytest.fixture(scope="module")
def augmentation() -> Augmentation:
    return Augmentation(SIZE, FILL)


KEYS = {
    "positions": [(0, 0, position) for position in range(MANY)],
    "epochs": [(0, epoch, 7) for epoch in range(MANY)],
    "seeds": [(seed, 0, 0) for seed in range(MANY)],
}


@pytest.fixture(scope="module", params=KEYS)
def draws(request: pytest.FixtureRequest, augmentation: Augmentation) -> np.ndarray:
    """The draws for `MANY` consecutive keys: int `[MANY,5]`. `read` checks every pixel of each image."""
    return np.array([read(augmentation(map_of(), key)) for key in KEYS[request.param]])


def test_crops_are_uniform_over_all_81_offsets(draws: np.ndarray) -> None:
    top, left = draws[:, 0], draws[:, 1]
    assert (top.min(), top.max(), left.min(), left.max()) == (0, 8, 0, 8)
    assert chi_square(top * 9 + left, 81) < 4


def test_half_of_the_images_are_flipped(draws: np.ndarray) -> None:
    assert abs(draws[:, 2].mean() - 0.5) < 4 * 0.5 / np.sqrt(MANY)


def test_the_cutout_is_uniform_over_all_places_inside_the_image(draws: np.ndarray) -> None:
    places = SIZE - CUTOUT + 1
    for corner in (draws[:, 3], draws[:, 4]):
        assert (corner.min(), corner.max()) == (0, SIZE - CUTOUT)
        assert chi_square(corner, places) < 4
    assert chi_square(draws[:, 3] * places + draws[:, 4], places * places) < 4


def test_draws_are_uncorrelated_within_and_between_images(draws: np.ndarray) -> None:
    # Each row has the draws for a key and for the next key.
    with_next = np.concatenate([draws[:-1], draws[1:]], axis=1)
    correlations = np.corrcoef(with_next.T)
    assert np.abs(correlations - np.eye(10)).max() < 0.08


def test_equal_keys_give_equal_images_regardless_of_earlier_calls(augmentation: Augmentation) -> None:
    image = map_of()
    expected = Augmentation(SIZE, FILL)(image, (3, 1, 4))
    for before in range(5):
        augmentation(image, (before, 0, 0))
        assert (augmentation(image, (3, 1, 4)) == expected).all()
    other = np.full_like(image, 9)
    augmentation(other, (3, 1, 4))
    assert (augmentation(image, (3, 1, 4)) == expected).all()


def test_epochs_can_be_drawn_in_any_order_and_again(augmentation: Augmentation) -> None:
    keys = [(seed, epoch, position) for seed in (0, 1) for epoch in (0, 1, 2) for position in range(5)]
    in_order = {key: augmentation(map_of(), key) for key in keys}
    for key in sorted(keys, key=lambda key: key[::-1]) * 2:
        assert (augmentation(map_of(), key) == in_order[key]).all(), key


def test_global_random_states_have_no_effect_and_stay_unchanged(augmentation: Augmentation) -> None:
    import random

    images = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        before = random.getstate(), np.random.get_state()[1].tobytes()
        images.append(augmentation(map_of(), (0, 0, 0)))
        assert (random.getstate(), np.random.get_state()[1].tobytes()) == before
    assert (images[0] == images[1]).all()


def test_another_seed_epoch_or_position_gives_a_different_image(augmentation: Augmentation) -> None:
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1), (2**40, 0, 0)]
    images = [augmentation(map_of(), key) for key in keys]
    for one, other in itertools.combinations(images, 2):
        assert (one != other).any()


def test_every_bit_of_a_64_bit_seed_or_position_changes_the_draws(augmentation: Augmentation) -> None:
    numbers = [0, *(2**bit for bit in range(64)), 2**64 - 1]
    for keys in ([(seed, 5, 7) for seed in numbers], [(0, 5, position) for position in numbers]):
        # A few of the 66 keys may give equal draws by chance.
        assert len({read(augmentation(map_of(), key)) for key in keys}) > 60


def test_a_seed_above_32_bits_does_not_repeat_an_epoch_of_another_seed(augmentation: Augmentation) -> None:
    for one, other in [((2**32, 0), (0, 1)), ((7 + 3 * 2**32, 0), (7, 3))]:
        pairs = [(augmentation(map_of(), (*one, n)), augmentation(map_of(), (*other, n))) for n in range(5)]
        assert any((first != second).any() for first, second in pairs)


def test_the_four_transforms_are_those_of_albumentations(augmentation: Augmentation) -> None:
    kinds = (
        albumentations.PadIfNeeded,
        albumentations.RandomCrop,
        albumentations.HorizontalFlip,
        albumentations.CoarseDropout,
    )
    assert len(augmentation._transforms) == 4
    for transform, kind in zip(augmentation._transforms, kinds, strict=True):
        assert isinstance(transform, kind)
    dropout = augmentation._transforms[-1]
    assert (dropout.num_holes_range, dropout.hole_height_range, dropout.hole_width_range) == ((1, 1), (8, 8), (8, 8))
    assert dropout.p == 1


def test_the_original_image_stays_unchanged(augmentation: Augmentation) -> None:
    image = map_of()
    augmented = augmentation(image, (0, 0, 0))
    assert (image == map_of()).all()
    assert not np.shares_memory(image, augmented)
    assert (augmented.dtype, augmented.shape) == (np.uint8, (SIZE, SIZE, 3))


@pytest.mark.parametrize("size", [9, 16, 28, 64])
def test_images_of_other_sizes_are_augmented_in_the_same_way(size: int) -> None:
    augmentation = Augmentation(size, FILL)
    if size < 2 * PADDING + CUTOUT + 4:  # too small for `read`: check only the cutout
        augmented = augmentation(map_of(size), (0, 0, 0))
        assert (augmented == FILL).all(axis=-1).sum() == CUTOUT * CUTOUT
        return
    drawn = {read(augmentation(map_of(size), (0, 0, position)), size) for position in range(100)}
    assert len(drawn) > 95


@pytest.mark.parametrize("fill", [(125.3, 122.95, 113.9), [0.0, 0.4, 255.0]])
def test_the_cutout_has_the_rounded_fill_color(fill: Sequence[float]) -> None:
    augmented = Augmentation(SIZE, fill)(map_of() // 2 + 128, (0, 0, 0))
    assert (augmented == [round(value) for value in fill]).all(axis=-1).sum() == CUTOUT * CUTOUT


def test_a_pickled_copy_gives_the_same_images(augmentation: Augmentation) -> None:
    augmentation(map_of(), (5, 6, 0))  # earlier calls must not affect the images below
    copied = pickle.loads(pickle.dumps(augmentation))
    for key in [(5, 6, 7), (0, 0, 0)]:
        assert (copied(map_of(), key) == augmentation(map_of(), key)).all()


def test_prediction_and_the_command_line_do_not_import_albumentations_and_its_update_check_is_off() -> None:
    code = """if True:
        import os, sys

        class Watch:
            def find_spec(self, name, path=None, target=None):
                if name == "albumentations":
                    print("update check off:", os.environ.get("NO_ALBUMENTATIONS_UPDATE"))

        sys.meta_path.insert(0, Watch())
        import onecycle.predict.predictor, onecycle.cli, onecycle.run.experiment
        print("imported:", "albumentations" in sys.modules)
        import onecycle.data.augment.albumentations
        print("imported:", "albumentations" in sys.modules)
    """
    environment = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["imported: False", "update check off: 1", "imported: True"]
