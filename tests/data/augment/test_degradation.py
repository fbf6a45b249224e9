import io
import itertools
import pickle

import cv2
import numpy as np
import pytest
from augmented import FILL, SIZE, map_of, read
from PIL import Image
from scipy.stats import chisquare

from onecycle.data.augment import degradation
from onecycle.data.augment.albumentations import Augmentation
from onecycle.data.augment.degradation import Degradation

MANY = 600
KEYS = [(0, 0, position) for position in range(MANY)]


def noise_image(seed: int = 0, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(size, size, 3), dtype=np.uint8)


def by_kind(image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[np.ndarray]]:
    """All `MANY` degraded copies of `image`, by the kind that was drawn."""
    found: dict[str, list[np.ndarray]] = {}

    def recorded(name: str):
        apply = getattr(degradation, name)
        return lambda image, draw: found.setdefault(name, []).append(apply(image, draw)) or found[name][-1]

    for name in ("_compressed", "_resized", "_noisy"):
        monkeypatch.setattr(degradation, name, recorded(name))
    degrade = Degradation(1)
    for key in KEYS:
        degrade(image, key)
    return found


@pytest.fixture
def smooth() -> np.ndarray:
    rows, columns = np.mgrid[:SIZE, :SIZE] * 8
    return np.stack([rows, columns, 255 - rows], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("share", [0, 0.25, 0.5, 1])
def test_the_given_share_of_images_is_degraded_and_the_others_are_unchanged(share: float) -> None:
    image, degrade = noise_image(), Degradation(share)
    changed = np.mean([(degrade(image, key) != image).any() for key in KEYS])
    assert abs(changed - share) <= 4 * np.sqrt(share * (1 - share) / MANY)


def test_each_kind_is_drawn_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chisquare([len(images) for images in by_kind(noise_image(), monkeypatch).values()]).pvalue > 1e-4


def test_a_compressed_image_is_what_pillow_reads_from_the_jpeg_that_it_writes(
    smooth: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    qualities = {}
    for quality in range(101):
        file = io.BytesIO()
        Image.fromarray(smooth).save(file, "JPEG", quality=quality)
        qualities[np.asarray(Image.open(file)).tobytes()] = quality
    found = {qualities[image.tobytes()] for image in by_kind(smooth, monkeypatch)["_compressed"]}
    assert len(found) > 30 and min(found) >= 30 and max(found) <= 95


def test_a_resized_image_was_smaller_and_is_not_shifted(smooth: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    images = by_kind(smooth, monkeypatch)["_resized"]
    means = np.array([image.mean(axis=(0, 1)) for image in images])
    assert np.abs(means - smooth.mean(axis=(0, 1))).max() < 6
    assert all((image != smooth).any() for image in images)
    assert len({image.tobytes() for image in images}) > 50


@pytest.mark.parametrize(("level", "most"), [(60, 0.08**2 + 0.12**2 * 60 / 255), (200, 0.08**2 + 0.12**2 * 200 / 255)])
def test_noise_has_the_mean_0_and_a_variance_that_grows_with_brightness(
    level: int, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.stack(by_kind(np.full((SIZE, SIZE, 3), level, np.uint8), monkeypatch)["_noisy"])
    assert abs(images.mean() - level) < 0.2
    variances = (images / 255).var(axis=(1, 2, 3))
    assert variances.max() < 1.1 * most
    assert variances.mean() == pytest.approx(most / 3, rel=0.2)  # a uniform number of at most 1 has the mean square 1/3


def test_all_images_keep_their_size_and_type_and_the_original_stays_unchanged() -> None:
    degrade = Degradation(1)
    for size in (1, 2, 9, 33, 160):
        image = noise_image(size=size)
        image.flags.writeable = False  # as a memory-mapped image
        for position in range(30):
            degraded = degrade(image, (0, 0, position))
            assert (degraded.dtype, degraded.shape, degraded.flags.c_contiguous) == (np.uint8, image.shape, True)
        assert (image == noise_image(size=size)).all()


def test_equal_keys_give_equal_images_regardless_of_earlier_calls_and_in_other_processes() -> None:
    image, expected = noise_image(), {key: Degradation(1)(noise_image(), key) for key in KEYS[:40]}
    degrade = pickle.loads(pickle.dumps(Degradation(1)))
    for key in sorted(KEYS[:40], key=lambda key: -key[2]) * 2:
        degrade(noise_image(1), (5, 5, 5))
        assert (degrade(image, key) == expected[key]).all()


def test_another_seed_epoch_or_position_gives_a_different_image() -> None:
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1), (2**40, 0, 0)]
    for one, other in itertools.combinations([Degradation(1)(noise_image(), key) for key in keys], 2):
        assert (one != other).any()


def test_degradations_are_independent_of_crops_and_flips() -> None:
    degrade, augment = Degradation(0.5), Augmentation(SIZE, FILL)
    degraded = [(degrade(map_of(), key) != map_of()).any() for key in KEYS]
    drawn = [read(augment(map_of(), key)) for key in KEYS]
    correlations = np.corrcoef(np.column_stack([degraded, drawn]).T)
    assert np.abs(correlations[0, 1:]).max() < 4 / np.sqrt(MANY)


def test_opencv_uses_no_threads_of_its_own() -> None:
    assert cv2.getNumThreads() == 1
