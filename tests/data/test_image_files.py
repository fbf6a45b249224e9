import io
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from onecycle.core.errors import InputError
from onecycle.data import image_files
from onecycle.data.image_files import conversions, open_image, to_square

any_images = arrays.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3)))


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


def hidden(kind: str) -> Image.Image:
    """An image of several colors that its transparency hides everywhere."""
    colors = Image.new("RGB", (8, 8), (10, 20, 30))
    colors.paste((200, 100, 50), (0, 0, 4, 8))
    if kind == "LA":
        return Image.merge("LA", [colors.convert("L"), Image.new("L", (8, 8), 0)])
    if kind == "P":
        return reopened(colors.quantize(2), "PNG", transparency=bytes(2))
    colors.putalpha(0)
    return reopened(colors, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "TGA", "LA", "P"])
def test_transparency_that_hides_all_of_an_image_with_several_colors_is_ignored(kind: str) -> None:
    image = hidden(kind)
    assert image.has_transparency_data
    square = to_square(image, 8)
    left, right = ([124] * 3, [18] * 3) if kind == "LA" else ([200, 100, 50], [10, 20, 30])
    assert (square[:, :4] == left).all() and (square[:, 4:] == right).all()
    assert "transparent everywhere: transparency is ignored" in conversions(image, "image")
    assert "transparent: blended with white" not in conversions(image, "image")


def test_an_image_of_one_color_or_with_any_visible_pixel_is_blended_with_white() -> None:
    one_color = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    assert (to_square(one_color, 8) == 255).all()
    assert "transparent: blended with white" in conversions(one_color, "image")
    one_pixel = hidden("PNG")
    one_pixel.putpixel((0, 0), (200, 100, 50, 255))
    square = to_square(one_pixel, 8).reshape(-1, 3)
    assert square[0].tolist() == [200, 100, 50] and (square[1:] == 255).all()


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


def test_gray_of_16_bits_with_the_high_byte_first_is_scaled_to_8() -> None:
    values = (np.arange(256) * 257).astype(">u2").reshape(16, 16)
    tags = {256: 16, 257: 16, 258: 16, 259: 1, 262: 1, 273: 8, 277: 1, 278: 16, 279: 512}  # tags of a TIFF
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags.items())
    file = b"MM\0*" + struct.pack(">I", 520) + values.tobytes() + struct.pack(">H", len(tags)) + entries + bytes(4)
    image = open_image(file, "scan.tif")
    assert image.mode == "I;16B"
    assert (to_square(image, 16) == np.arange(256).reshape(16, 16, 1)).all()


def test_gray_with_premultiplied_alpha_is_blended_with_white() -> None:
    image = Image.new("LA", (4, 4), (0, 128)).convert("La")
    assert to_square(image, 4)[0, 0].tolist() == [127] * 3


def test_an_image_that_pillow_cannot_convert_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise ValueError("image has\nwrong mode")

    monkeypatch.setattr(image_files, "_to_rgb", fails)
    message = (
        r"^scan.tif: the image has the mode L, which cannot be converted \(image has wrong mode\); save it as RGB$"
    )
    with pytest.raises(InputError, match=message):
        to_square(Image.new("L", (4, 4)), 4, "scan.tif")


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
    monkeypatch.setattr(image_files, "MOST_PIXELS", 400 * 640 // factor**2)
    opened = open_image(file.getvalue(), "photo.jpg")
    assert opened.size == (640 // factor, 400 // factor)
    difference = to_square(opened, 32).astype(int) - to_square(Image.fromarray(pixels), 32)
    assert np.abs(difference).max() < 8


def test_an_image_that_cannot_be_decoded_smaller_is_refused_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "MOST_PIXELS", 255)
    refused = r"^scan\.png: the image has 16×16 pixels; the limit is 255 pixels; make the image smaller$"
    file = io.BytesIO()
    Image.fromarray(gradient(16, 16)).save(file, "PNG")
    with pytest.raises(InputError, match=refused):
        open_image(file.getvalue(), "scan.png")
    file = io.BytesIO()
    Image.fromarray(gradient(640, 640)).save(file, "JPEG")  # smaller by 8 is still too large
    with pytest.raises(InputError, match=r"photo\.jpg: the image has 80×80 pixels; the limit is 255"):
        open_image(file.getvalue(), "photo.jpg")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "I;16", "I"])
def test_a_large_image_is_converted_in_strips_to_the_same_pixels(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 4), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image = Image.fromarray(pixels.view(np.int32)[..., 0] % 65536) if mode == "I" else image.convert(mode)
    whole = to_square(image, 16)
    monkeypatch.setattr("onecycle.data.image_files._STRIP_PIXELS", 100)
    assert (to_square(image, 16) == whole).all()


def test_an_image_whose_palette_is_missing_is_refused() -> None:
    header = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 1, 8, 8, 8, 2)  # a PSD of indexed colors
    with pytest.raises(InputError, match="it has no palette"):
        open_image(header + struct.pack(">IIIH", 0, 0, 0, 0) + bytes(64), "image.psd")


def test_a_webp_whose_decoder_would_need_too_much_memory_is_refused() -> None:
    buffer = io.BytesIO()
    Image.new("L", (8000, 8000)).save(buffer, "WEBP", quality=0, method=0)
    with pytest.raises(InputError, match="8000×8000 pixels; the limit is 60,000,000 pixels"):
        open_image(buffer.getvalue(), "image.webp")


def test_decoders_of_formats_that_are_not_read_are_not_even_imported() -> None:
    program = (
        "import sys; from onecycle.data.image_files import InputError, open_image, suffixes\n"
        "refused = {f'PIL.{name}ImagePlugin' for name in ('Eps', 'Iptc', 'Jpeg2K')}\n"
        "try:\n    open_image(b'%!PS-Adobe', 'a.eps')\nexcept InputError as error:\n    print(error)\n"
        "print({'.jpg', '.tif', '.webp'} <= suffixes() and not refused & sys.modules.keys())"
    )
    completed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert completed.stdout == "a.eps: not an image (10 bytes); replace or remove it\nTrue\n"
