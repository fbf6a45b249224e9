import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from onecycle.data import ImageSet, load_dataset
from onecycle.data.preprocessing import Preprocessing, resize

image_sets = arrays.arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6)).map(lambda s: (*s, s[1], 3)))


def test_mean_and_std_are_those_of_the_channels(tiny: tuple[ImageSet, ImageSet]) -> None:
    found = Preprocessing.of(tiny[0].images)
    scaled = tiny[0].images / 255
    assert found.input_size == 32
    assert np.abs(np.array(found.mean) - scaled.mean((0, 1, 2))).max() < 1e-12
    assert np.abs(np.array(found.std) - scaled.std((0, 1, 2))).max() < 1e-12


@given(image_sets)
def test_mean_and_std_equal_those_of_numpy_and_a_constant_channel_has_std_1(images: np.ndarray) -> None:
    found = Preprocessing.of(images)
    scaled = images / 255
    assert found.input_size == images.shape[1]
    assert np.abs(np.array(found.mean) - scaled.mean((0, 1, 2))).max() < 1e-12
    varies = np.ptp(images.reshape(-1, 3), axis=0) > 0
    assert np.abs(np.array(found.std) - np.where(varies, scaled.std((0, 1, 2)), 1)).max() < 1e-12


@pytest.mark.parametrize("count", [4095, 4096, 4097, 9000])
def test_mean_and_std_cover_all_images_if_they_are_summed_in_parts(count: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    # Later images are brighter, so omitting or repeating images would change the mean.
    images = (generator.random((count, 5, 5, 3)) * np.linspace(1, 255, count)[:, None, None, None]).astype(np.uint8)
    images.tofile(tmp_path / "images")
    on_disk = np.memmap(tmp_path / "images", np.uint8, "r", shape=images.shape)
    scaled = images.astype(np.float64) / 255
    for found in (Preprocessing.of(images), Preprocessing.of(on_disk)):
        assert np.abs(np.array(found.mean) - scaled.mean((0, 1, 2))).max() < 1e-12
        assert np.abs(np.array(found.std) - scaled.std((0, 1, 2))).max() < 1e-12


def test_mean_and_std_of_memory_mapped_images_need_no_copy_of_all_images(tmp_path: Path) -> None:
    size = 120_000 * 6 * 6 * 3  # 13 MB; the code sums 4,096 images at a time
    np.zeros(size, np.uint8).tofile(tmp_path / "images")
    on_disk = np.memmap(tmp_path / "images", np.uint8, "r", shape=(120_000, 6, 6, 3))
    tracemalloc.start()
    try:
        Preprocessing.of(on_disk)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < size / 4


def test_a_constant_channel_is_only_centered() -> None:
    for value in range(256):
        images = np.full((3, 5, 5, 3), value, np.uint8)
        found = Preprocessing.of(images)
        assert found.std == (1, 1, 1), value
        assert found.normalize(torch.from_numpy(images)).abs().max() < 1e-6


def test_mean_and_std_of_cifar10_are_the_known_values(real_data: Path) -> None:
    train = load_dataset(real_data / "cifar-10-binary.tar.gz").train
    assert len(train) == 50_000
    found = Preprocessing.of(train.images)
    assert [round(value, 4) for value in found.mean] == [0.4914, 0.4822, 0.4465]
    assert [round(value, 4) for value in found.std] == [0.2470, 0.2435, 0.2616]


def test_normalized_images_have_mean_0_and_variance_1_in_each_channel(tiny: tuple[ImageSet, ImageSet]) -> None:
    # The digits are gray. Tint them, so that the channels differ.
    images = (tiny[0].images * np.array([1.0, 0.6, 0.3]) + [0, 40, 90]).astype(np.uint8)
    normalized = Preprocessing.of(images).normalize(torch.from_numpy(images)).double()
    assert normalized.mean((0, 2, 3)).abs().max() < 1e-5
    assert (normalized.var((0, 2, 3), correction=0) - 1).abs().max() < 1e-5


def test_normalized_images_are_float32_channels_first_in_channels_last_memory(tiny: tuple[ImageSet, ImageSet]) -> None:
    images = torch.from_numpy(tiny[0].images)
    found = Preprocessing.of(tiny[0].images)
    normalized = found.normalize(images)
    assert (normalized.dtype, normalized.shape) == (torch.float32, (50, 3, 32, 32))
    assert normalized.is_contiguous(memory_format=torch.channels_last)
    expected = (tiny[0].images / 255 - np.array(found.mean)) / np.array(found.std)
    assert np.abs(normalized.numpy().transpose(0, 2, 3, 1) - expected).max() < 1e-5


def test_normalizing_does_not_change_float_pixels(tiny: tuple[ImageSet, ImageSet]) -> None:
    pixels = torch.from_numpy(tiny[0].images).float()
    before = pixels.clone()
    Preprocessing.of(tiny[0].images).normalize(pixels)
    assert torch.equal(pixels, before)


def test_normalizing_does_not_change_the_pixels_and_treats_each_image_alone(
    tiny: tuple[ImageSet, ImageSet],
) -> None:
    images = torch.from_numpy(tiny[0].images)
    before, found = images.clone(), Preprocessing.of(tiny[0].images)
    whole = found.normalize(images)
    assert torch.equal(images, before)
    assert torch.equal(found.normalize(images[3:4]), whole[3:4])


def test_gray_training_images_are_noticed() -> None:
    gray = np.random.default_rng(0).integers(0, 256, (50, 6, 5, 1), dtype=np.uint8).repeat(3, axis=3)
    assert Preprocessing.of(gray).gray
    almost = gray.copy()
    almost[49, 5, 4, 2] ^= 1
    assert not Preprocessing.of(almost).gray
    swapped = gray.copy()
    swapped[0, 0, :2] = [(10, 20, 20), (20, 10, 10)]  # the sums of all channels stay equal
    assert not Preprocessing.of(swapped).gray


def test_a_network_for_gray_images_sees_other_images_as_pillow_converts_them_to_gray() -> None:
    colors = np.random.default_rng(1).integers(0, 256, (40, 7, 7, 3), dtype=np.uint8)
    gray = np.stack([np.asarray(Image.fromarray(image).convert("L").convert("RGB")) for image in colors])
    of_gray = Preprocessing.of(gray)
    assert of_gray.gray
    expected = replace(of_gray, gray=False).normalize(torch.from_numpy(gray))
    for images in (colors, gray):
        found = of_gray.normalize(torch.from_numpy(images))
        assert torch.equal(found, expected)
        assert found.is_contiguous(memory_format=torch.channels_last)


@given(
    st.builds(
        Preprocessing,
        input_size=st.integers(1, 1000),
        mean=st.tuples(*[st.floats(0, 1)] * 3),
        std=st.tuples(*[st.floats(1e-6, 1)] * 3),
        gray=st.booleans(),
    )
)
def test_a_preprocessing_survives_a_round_trip_through_json(preprocessing: Preprocessing) -> None:
    values = json.loads(json.dumps(preprocessing.to_json()))
    assert Preprocessing.from_json(values) == preprocessing
    del values["gray"]  # files of earlier versions
    assert Preprocessing.from_json(values) == replace(preprocessing, gray=False)


@pytest.mark.parametrize("size", [16, 24, 28, 40])
def test_a_resized_batch_equals_its_images_resized_by_pillow(tiny: tuple[ImageSet, ImageSet], size: int) -> None:
    resized = resize(torch.from_numpy(tiny[0].images), size)
    assert (resized.dtype, resized.shape) == (torch.uint8, (50, size, size, 3))
    for image, ours in zip(tiny[0].images, resized.numpy(), strict=True):
        expected = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
        assert np.abs(ours.astype(int) - expected).max() <= 1
    assert torch.equal(resize(resized, size), resized)
