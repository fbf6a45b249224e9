"""HEIC pictures, as phones write them. They are written by pillow-heif, which the extra `heic` installs."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from icc_profiles import DISPLAY_P3, profile
from PIL import Image

from onecycle.core.errors import InputError
from onecycle.data import check, image_files, load_dataset
from onecycle.data.image_files import conversions, open_image, to_square
from onecycle.serve import decoder

pillow_heif = pytest.importorskip("pillow_heif", reason="the extra `heic` is not installed")


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    image_files.formats.cache_clear()
    image_files.suffixes.cache_clear()
    assert "HEIF" in image_files.formats()
    yield
    image_files.formats.cache_clear()
    image_files.suffixes.cache_clear()


@pytest.fixture
def without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "find_spec", lambda name: None)
    image_files.formats.cache_clear()
    image_files.suffixes.cache_clear()


def picture(width: int = 48, height: int = 32) -> Image.Image:
    """Four flat colors, which lossy compression keeps."""
    pixels = np.full((height, width, 3), (200, 60, 40), np.uint8)
    pixels[: height // 2, : width // 2] = 40, 60, 200
    pixels[height // 2 :, width // 2 :] = 60, 160, 80
    return Image.fromarray(pixels)


def heic(image: Image.Image, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, "HEIF", quality=-1, chroma=444, matrix_coefficients=0, **options)
    return file.getvalue()


def photos(folder: Path) -> Path:
    """A class of HEIC pictures, of which one has the movie of a live photo, and a class of PNG pictures."""
    for number in range(4):
        for name, content in (("cat", heic(picture())), ("dog", b"")):
            path = folder / name / f"IMG_{number}.{'HEIC' if content else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if content:
                path.write_bytes(content)
            else:
                picture().save(path)
    (folder / "cat" / "IMG_1.MOV").write_bytes(b"a movie")
    return folder


def test_a_heic_picture_has_the_pixels_of_its_png() -> None:
    image = open_image(heic(picture()), "photo")
    assert image.format == "HEIF" and image.size == (48, 32)
    assert np.abs(to_square(image, 32).astype(int) - to_square(picture(), 32)).max() <= 3
    assert conversions(image, "IMG_1.HEIC") == ()
    assert conversions(image, "IMG_1.jpg") == ("in a different format than the suffix says",)


def test_the_colors_of_a_phone_are_converted_to_srgb() -> None:
    icc = profile(DISPLAY_P3)
    file = BytesIO()
    picture().save(file, "PNG", icc_profile=icc)
    image = open_image(heic(picture(), icc_profile=icc), "photo")
    expected = to_square(open_image(file.getvalue(), "photo"), 32).astype(int)
    assert np.abs(to_square(image, 32) - expected).max() <= 5
    assert "with the colors of another profile: converted to sRGB" in conversions(image, "IMG_1.HEIC")


def test_the_orientation_is_applied_once() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = open_image(heic(picture(), exif=exif.tobytes()), "photo")
    upright = to_square(picture().transpose(Image.Transpose.ROTATE_270), 32)
    assert np.abs(to_square(turned, 32).astype(int) - upright).max() <= 3


def test_live_photos_are_read_and_their_movies_are_counted(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    found = check.check(folder)
    assert found.problems == () and sum(map(sum, found.counts.values())) == 8
    assert found.left_out == ("1 movie .mov, not an image (cat/IMG_1.MOV)",)
    names = load_dataset(folder).train.names
    assert names and any(name.endswith(".HEIC") for name in names)


@pytest.mark.usefixtures("without_package")
def test_without_the_package_one_line_says_what_to_install(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    for number in range(2):
        picture().save(folder / "cat" / f"{number}.png")
    line = "4 files .heic, which needs pillow-heif: run pip install 'onecycle[heic]' (cat/IMG_0.HEIC, cat/IMG_1.HEIC"
    assert [reason for reason in check.check(folder).left_out if reason.startswith(line)]
    with pytest.raises(InputError, match=r"^photo: HEIC needs pillow-heif: run pip install 'onecycle\[heic\]'$"):
        open_image(heic(picture()), "photo")


def test_installing_the_package_reads_the_folder_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = photos(tmp_path / "photos")
    for number in range(2):
        picture().save(folder / "cat" / f"{number}.png")
    with monkeypatch.context() as patch:
        patch.setattr(image_files, "find_spec", lambda name: None)
        image_files.formats.cache_clear()
        image_files.suffixes.cache_clear()
        assert sum(map(len, (load_dataset(folder).train, load_dataset(folder).evaluation))) == 6
    image_files.formats.cache_clear()
    image_files.suffixes.cache_clear()
    assert sum(map(len, (load_dataset(folder).train, load_dataset(folder).evaluation))) == 10


@pytest.mark.parametrize("damage", [lambda content: content[:-200], lambda content: content[:40]])
def test_a_damaged_heic_is_refused_in_one_line(damage) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=r"^photo: [^\n]*$"):
        open_image(damage(heic(picture(256, 256))), "photo")


def test_a_part_that_is_larger_than_the_limit_is_refused_before_it_is_decoded() -> None:
    content = heic(picture())
    place = content.index(b"ispe") + 8
    large = content[:place] + (30_000).to_bytes(4, "big") * 2 + content[place + 8 :]
    with pytest.raises(InputError, match="900,000,000 pixels"):
        open_image(large, "photo")


def test_the_service_decodes_heic() -> None:
    requests, responses = BytesIO(), BytesIO()
    content = heic(picture())
    requests.write(decoder.REQUEST.pack(len(content)) + content)
    requests.seek(0)
    decoder.serve(requests, responses, size=32, most_pixels=10_000)
    answer = responses.getvalue()[len(decoder.READY) :]
    assert decoder.RESPONSE.unpack(answer[: decoder.RESPONSE.size]) == (True, 32 * 32 * 3)
