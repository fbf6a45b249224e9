from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from icc_profiles import ADOBE_RGB, DISPLAY_P3, SRGB, linear_of_adobe, linear_of_srgb, profile
from PIL import Image, ImageCms

from onecycle.data import check
from onecycle.data.color_profiles import MOST_BYTES, ProfileError, transform_of
from onecycle.data.image_files import conversions, open_image, to_square
from onecycle.predict.predictor import load

P3, ADOBE = profile(DISPLAY_P3), profile(ADOBE_RGB, linear_of_adobe)
BUILT_IN = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
DAMAGED = [b"no profile", P3[:200], P3[:-3000] + bytes(3000), bytes(128), P3[:16] + b"CMYK" + P3[20:]]


def picture() -> np.ndarray:
    """A picture of many colors, uint8 `[32,32,3]`."""
    return np.random.default_rng(0).integers(30, 225, (32, 32, 3), np.uint8)


def stored(pixels: np.ndarray, icc: bytes | None, format: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, format, icc_profile=icc, **options)
    return file.getvalue()


def opened(content: bytes) -> Image.Image:
    return open_image(content, "photo")


def expected(pixels: np.ndarray, primaries: object, linear: object) -> np.ndarray:
    """The colors in sRGB, computed with matrices."""
    to_xyz = np.array(primaries).T
    light = linear(pixels / 255) @ (np.linalg.inv(np.array(SRGB).T) @ to_xyz).T  # type: ignore[operator]
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize(
    ("icc", "primaries", "linear"),
    [(P3, DISPLAY_P3, linear_of_srgb), (ADOBE, ADOBE_RGB, linear_of_adobe)],
    ids=["Display P3", "Adobe RGB"],
)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_wide_gamut_colors_are_converted_to_srgb(icc: bytes, primaries: object, linear: object, format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    image = opened(stored(picture(), icc, format, **options))
    difference = np.abs(to_square(image, 32) - expected(picture(), primaries, linear))
    assert difference.max() < 3 and difference.mean() < 0.6
    assert np.abs(to_square(image, 32).astype(int) - picture()).max() > 15
    assert "with the colors of another profile: converted to sRGB" in conversions(image, f"a.{format.lower()}")


@pytest.mark.parametrize("icc", [None, b"", BUILT_IN, profile(SRGB), profile(SRGB, name="c2")])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF"])
def test_without_a_profile_or_with_one_of_srgb_pixels_stay_the_same(icc: bytes | None, format: str) -> None:
    with Image.open(BytesIO(stored(picture(), None, format))) as plain:
        pixels = np.asarray(plain.convert("RGB"))
    image = opened(stored(picture(), icc, format))
    assert np.array_equal(to_square(image, 32), pixels)
    assert not [words for words in conversions(image, f"a.{format.lower()}") if "profile" in words]


@pytest.mark.parametrize("icc", DAMAGED, ids=["text", "cut off", "without curves", "zeros", "other colors"])
def test_an_image_with_a_damaged_profile_is_taken_for_srgb_and_check_lists_it(icc: bytes, tmp_path: Path) -> None:
    content = stored(picture(), icc)
    assert np.array_equal(to_square(opened(content), 32), picture())
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content if name == "a/2.png" else stored(picture(), None))
    found = check.check(tmp_path)
    assert found.converted == {
        "with a color profile that cannot be used: taken for sRGB": [f"{tmp_path}/a/2.png"],
    }


def test_a_huge_profile_is_not_used() -> None:
    with pytest.raises(ProfileError, match="the limit is"):
        transform_of(P3 + bytes(MOST_BYTES))


@pytest.mark.parametrize("mode", ["L", "LA", "CMYK", "I;16"])
def test_a_profile_of_an_image_without_rgb_colors_is_not_used(mode: str) -> None:
    image = Image.new(mode, (32, 32), 90 if mode in ("L", "I;16") else None)
    plain = to_square(image, 32)
    image.info["icc_profile"] = P3
    assert np.array_equal(to_square(image, 32), plain)


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_transparent_and_palette_images_are_converted_too(mode: str) -> None:
    image = Image.new("RGB", (8, 8), (200, 60, 40)).convert(mode, palette=Image.Palette.ADAPTIVE)
    image.info["icc_profile"] = P3
    red = to_square(image, 8)[0, 0]
    assert red.tolist() == to_square(opened(stored(np.full((8, 8, 3), (200, 60, 40), np.uint8), P3)), 8)[0, 0].tolist()
    assert red[0] > 210


def test_training_and_prediction_convert_colors_in_the_same_way() -> None:
    predictor = load()
    image = opened(stored(picture(), P3))
    converted = Image.fromarray(to_square(image, 32))
    assert predictor.predict([image]) == predictor.predict([converted])
