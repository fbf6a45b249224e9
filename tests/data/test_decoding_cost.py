import io
import struct

import numpy as np
import pytest
from PIL import Image

from onecycle.core.errors import InputError
from onecycle.data.decoding_cost import MOST_PASSES, MOST_VALUES, require_few_passes
from onecycle.data.image_files import conversions, open_image

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))


def encoded(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    NOISE.save(file, kind, **options)
    return file.getvalue()


def with_scans(jpeg: bytes, count: int) -> bytes:
    """`jpeg` with its last scan repeated `count` times."""
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    return jpeg[:-2] + scan * count + jpeg[-2:]


def tiff(tag: int, kind: int, values: int, *, order: str = "<", size: int = 2, is_big: bool = False) -> bytes:
    """A gray TIFF of 4×4 pixels whose table has a further entry with `values` values, which need `size` bytes each."""
    count, offset = ("Q", "Q") if is_big else ("H", "I")
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "H", 43 if is_big else 42)
    start = struct.calcsize("HHHHQ" if is_big else "HHI")
    pixels_at = start + values * size
    singles = [(256, 4), (257, 4), (258, 8), (259, 1), (262, 1), (273, pixels_at), (277, 1), (278, 4), (279, 16)]
    entries = {single: (4, 1, value) for single, value in singles} | {tag: (kind, values, start)}
    table = struct.pack(order + count, len(entries))
    for code in sorted(entries):
        table += struct.pack(f"{order}HH{offset}{offset}", code, *entries[code])
    extra = struct.pack(order + "HH", 8, 0) if is_big else b""
    first = struct.pack(order + offset, pixels_at + 16)
    return head + extra + first + bytes(values * size) + bytes(range(16)) + table + struct.pack(order + offset, 0)


BASELINE, PROGRESSIVE = encoded("JPEG"), encoded("JPEG", progressive=True)
STRIPS, MAKER_NOTE, SHORT, LONG, RATIONAL = 273, 37500, 3, 4, 5


@pytest.mark.parametrize(
    "content",
    [
        with_scans(PROGRESSIVE, MOST_PASSES),
        with_scans(BASELINE, MOST_PASSES),
        with_scans(PROGRESSIVE, MOST_PASSES).replace(b"\xff\xda", b"\xff\xff\xff\xda"),  # markers with fill bytes
        with_scans(encoded("MPO", save_all=True, append_images=[NOISE]).partition(b"\xff\xd9")[0] + b"..", 1001),
    ],
    ids=["progressive", "baseline", "fill bytes", "several images"],
)
def test_a_jpeg_with_thousands_of_scans_is_refused(content: bytes) -> None:
    with pytest.raises(InputError, match="^a.jpg: .* more than 1,000 scans of 80×60 pixels.; replace or remove it"):
        open_image(content, "a.jpg")


@pytest.mark.parametrize(
    "content",
    [
        PROGRESSIVE,
        encoded("JPEG", progressive=True, comment=b"\xff\xda\0\2" * 2000),
        encoded("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + BASELINE * 4),  # a thumbnail
        BASELINE + with_scans(BASELINE, 2000),  # another image, or a video, follows
        encoded("MPO", save_all=True, append_images=[NOISE, NOISE]),
    ],
    ids=["progressive", "comment", "thumbnail", "appended", "several images"],
)
def test_only_the_scans_of_the_image_itself_count(content: bytes) -> None:
    assert open_image(content, "a.jpg").size == (80, 60)


def test_a_larger_image_may_have_fewer_scans() -> None:
    for count, side, is_refused in [(900, 1000, False), (100, 4000, False), (900, 4000, True), (30, 9400, True)]:
        content = with_scans(PROGRESSIVE, count)
        try:
            require_few_passes(content, "JPEG", (side, side))
        except ValueError:
            assert is_refused
        else:
            assert not is_refused
    require_few_passes(PROGRESSIVE, "JPEG", (12_000, 7_400))  # a progressive photograph of the largest size


@pytest.mark.parametrize(
    "content",
    [
        tiff(STRIPS, SHORT, MOST_VALUES),
        tiff(STRIPS, SHORT, MOST_VALUES, order=">"),
        tiff(STRIPS, LONG, MOST_VALUES, size=4),
        tiff(STRIPS, SHORT, MOST_VALUES, is_big=True),
        tiff(MAKER_NOTE, RATIONAL, MOST_VALUES, size=8),
        tiff(STRIPS, SHORT, MOST_VALUES)[:-20],  # the end of the table is missing
    ],
    ids=["short", "big-endian", "long", "BigTIFF", "rational", "truncated"],
)
def test_a_tiff_with_very_large_tables_is_refused(content: bytes) -> None:
    with pytest.raises(InputError, match="^a.tif: .*its tables have more than 262,144 values"):
        open_image(content, "a.tif")


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_exif_data_with_very_large_tables_are_refused(kind: str) -> None:
    content = encoded(kind, exif=b"Exif\0\0" + tiff(0x0112, RATIONAL, MOST_VALUES, size=8))
    with pytest.raises(InputError, match="its tables have more than 262,144 values"):
        open_image(content, "a")


@pytest.mark.parametrize(
    "content",
    [
        encoded("TIFF"),
        encoded("TIFF", compression="tiff_lzw", tiffinfo={278: 1}),
        encoded("TIFF", big_tiff=True),
        encoded("TIFF", compression="jpeg"),
        tiff(MAKER_NOTE, 7, 4 * MOST_VALUES, size=1),  # bytes
        tiff(MAKER_NOTE, SHORT, 2**30, size=0),  # the entry is damaged
    ],
    ids=["one strip", "a strip for each row", "BigTIFF", "JPEG", "a large block of bytes", "a damaged entry"],
)
def test_an_ordinary_tiff_is_read(content: bytes) -> None:
    open_image(content, "a.tif")


def test_an_animation_is_recognized_by_its_second_frame() -> None:
    content = encoded("TIFF", save_all=True, append_images=[NOISE])
    image = open_image(content[:-2], "a.tif")  # the second frame is damaged, but only the first is used
    assert conversions(image, "a.tif") == ("animated: only the first frame is used",)
