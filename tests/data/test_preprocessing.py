import io
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

from onecycle.core.errors import InputError
from onecycle.data import ImageSet, preprocessing
from onecycle.data.preprocessing import Preprocessing, open_image, resize, to_square
from onecycle.data.readers.cifar10 import read_cifar10

any_images = arrays.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3)))
image_sets = arrays.arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6)).map(lambda s: (*s, s[1], 3)))


def reopened(image: Image.Image, kind: str, **options: object) -> Image.Image:
    """`image` after saving it to a file and opening it again."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(file)


def gradient(height: int, width: int) -> np.ndarray:
    """A smooth uint8 image `[height,width,3]`: red grows to the right, green downwards."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 / max(width - 1, 1), y * 255 / max(height - 1, 1), 0 * x + 128], -1).astype(np.uint8)


@given(any_images, st.integers(1, 40))
def test_an_image_of_any_size_becomes_a_square_of_the_given_size(pixels: np.ndarray, size: int) -> None:
    square = to_square(Image.fromarray(pixels), size)
    assert (square.dtype, square.shape) == (np.uint8, (size, size, 3))


@given(arrays.arrays(np.uint8, st.integers(1, 20).map(lambda size: (size, size, 3))))
def test_an_image_of_the_given_size_keeps_its_pixels(pixels: np.ndarray) -> None:
    assert (to_square(Image.fromarray(pixels), len(pixels)) == pixels).all()


def test_the_short_side_is_resized_and_the_center_cropped() -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200
    for pixels in (wide, wide.transpose(1, 0, 2)):
        square = to_square(Image.fromarray(pixels), 10).astype(int)
        assert square[1:-1, 1:-1].min() >= 199  # the edge mixes in black pixels from outside the crop


def test_shrinking_averages_what_it_leaves_out() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(to_square(Image.fromarray(stripes), 16).astype(int) - 127)[:, 1:-1].max() <= 2


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_blended_with_white(mode: str) -> None:
    clear = Image.new("RGBA", (8, 8), (10, 10, 10, 0))
    clear.paste((10, 10, 10, 255), (0, 0, 4, 8))
    square = to_square(clear.convert(mode), 8)
    assert (square[:, :4] == 10).all()
    assert (square[:, 4:] == 255).all()


def test_transparency_in_the_palette_itself_is_blended_with_white() -> None:
    clear = Image.new("RGBA", (8, 8), (10, 20, 30, 0)).quantize(8)
    assert (clear.mode, clear.info) == ("P", {})
    assert (to_square(clear, 8) == 255).all()


def test_a_half_transparent_pixel_becomes_half_white() -> None:
    assert to_square(Image.new("RGBA", (4, 4), (0, 100, 200, 128)), 4)[0, 0].tolist() == [127, 177, 227]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_blended_with_white(kind: str) -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (0, 0, 4, 8))
    square = to_square(reopened(image, kind, transparency=0), 8)
    assert (square[:, :4] == [200, 100, 50]).all()
    assert (square[:, 4:] == 255).all()


@pytest.mark.parametrize(("mode", "color"), [("RGB", (7, 8, 9)), ("L", 7)])
def test_the_transparent_color_of_an_image_without_alpha_is_blended_with_white(mode: str, color: object) -> None:
    image = Image.new(mode, (8, 8), color)
    image.paste(tuple([50] * 3) if mode == "RGB" else 50, (0, 0, 4, 8))
    square = to_square(reopened(image, "PNG", transparency=color), 8)
    assert (square[:, :4] == 50).all()
    assert (square[:, 4:] == 255).all()


def test_palette_gray_and_black_and_white_images_keep_their_colors() -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    assert to_square(palette, 4)[0, 0].tolist() == [200, 100, 50]
    assert to_square(Image.new("L", (4, 4), 77), 4)[0, 0].tolist() == [77, 77, 77]
    assert to_square(Image.new("1", (4, 4), 1), 4)[0, 0].tolist() == [255, 255, 255]


def test_cmyk_is_read_as_the_colors_it_prints() -> None:
    image = reopened(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "TIFF")
    assert image.mode == "CMYK"
    assert to_square(image, 16)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_gray_of_16_bits_is_scaled_to_8(kind: str) -> None:
    values = (np.arange(256) * 257).astype(np.uint16).reshape(16, 16)
    image = reopened(Image.fromarray(values), kind)
    assert image.mode.startswith("I")
    square = to_square(image, 16)
    assert (square == np.arange(256).reshape(16, 16, 1)).all()


def test_a_dark_image_of_16_bits_stays_dark() -> None:
    image = reopened(Image.fromarray(np.full((8, 8), 200, np.uint16)), "PNG")
    assert to_square(image, 8).max() <= 1  # 200 of 65,535 is less than 1 of 255


def test_32_bit_values_that_fit_in_8_bits_stay_unchanged() -> None:
    values = np.arange(256).reshape(16, 16)
    for dtype in (np.int32, np.float32):
        assert (to_square(Image.fromarray(values.astype(dtype)), 16)[..., 0] == values).all()


@pytest.mark.parametrize(
    ("orientation", "rotated"),
    [
        (1, lambda p: p),
        (2, lambda p: p[:, ::-1]),
        (3, lambda p: p[::-1, ::-1]),
        (4, lambda p: p[::-1]),
        (5, lambda p: p.transpose(1, 0, 2)),
        (6, lambda p: np.rot90(p, -1)),
        (7, lambda p: np.rot90(p, 2).transpose(1, 0, 2)),
        (8, lambda p: np.rot90(p)),
    ],
)
def test_the_exif_orientation_is_applied(orientation: int, rotated) -> None:
    pixels = gradient(16, 16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = reopened(Image.fromarray(pixels), "PNG", exif=exif)
    assert (to_square(image, 16) == rotated(pixels)).all()


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_a_jpeg_with_too_many_pixels_is_decoded_smaller(factor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Phones take photographs of 108 million pixels, of which the network sees 32×32."""
    pixels = gradient(400, 640)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    monkeypatch.setattr(preprocessing, "MOST_PIXELS", 400 * 640 // factor**2)
    opened = open_image(file.getvalue(), "photo.jpg")
    assert opened.size == (640 // factor, 400 // factor)
    difference = to_square(opened, 32).astype(int) - to_square(Image.fromarray(pixels), 32)
    assert np.abs(difference).max() < 8


def test_an_image_that_cannot_be_decoded_smaller_is_refused_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocessing, "MOST_PIXELS", 255)
    refused = r"^scan\.png: the image has 16×16 pixels; the limit is 255 pixels; make the image smaller$"
    file = io.BytesIO()
    Image.fromarray(gradient(16, 16)).save(file, "PNG")
    with pytest.raises(InputError, match=refused):
        open_image(file.getvalue(), "scan.png")
    file = io.BytesIO()
    Image.fromarray(gradient(640, 640)).save(file, "JPEG")  # smaller by 8 is still too large
    with pytest.raises(InputError, match=r"photo\.jpg: the image has 80×80 pixels; the limit is 255"):
        open_image(file.getvalue(), "photo.jpg")


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
    train, _, _ = read_cifar10(real_data / "cifar-10-binary.tar.gz", "binary")
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
