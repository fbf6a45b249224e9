"""Reading a mutated file either succeeds, or raises an error with a message of one line."""

import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from onecycle.core.errors import InputError
from onecycle.data.image_files import conversions, open_image, to_square
from onecycle.data.readers.entries import entries_of
from onecycle.data.readers.loading import load_dataset
from onecycle.storage.checkpoint import load_tensors, save_tensors

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
FRAMES = [Image.fromarray(np.roll(PIXELS, turn, axis=0)) for turn in range(3)]
ROTATED = Image.Exif()
ROTATED[0x0112] = 6


def encoded(format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    FRAMES[0].save(buffer, format, **options)
    return buffer.getvalue()


IMAGES = {
    **{format: encoded(format) for format in ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")},
    **{f"rotated {format}": encoded(format, exif=ROTATED.tobytes()) for format in ("JPEG", "PNG", "WEBP")},
    "animated GIF": encoded("GIF", save_all=True, append_images=FRAMES[1:]),
    "animated PNG": encoded("PNG", save_all=True, append_images=FRAMES[1:]),
    "animated WEBP": encoded("WEBP", save_all=True, append_images=FRAMES[1:]),
}

# The position of a change as a fraction of the file's length, the new bytes, and whether to insert or overwrite.
Mutation = tuple[float, bytes, bool]
mutations = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8), st.booleans()), max_size=6)


def mutated(content: bytes, changes: list[Mutation], kept: float) -> bytes:
    changed = bytearray(content)
    for place, new, inserted in changes:
        start = int(place * len(changed))
        changed[start : start if inserted else start + len(new)] = new
    return bytes(changed[: int(kept * len(changed))])


@pytest.mark.parametrize("kind", IMAGES)
@settings(max_examples=25)
@given(changes=mutations, kept=st.sampled_from([1.0, 1.0, 0.9, 0.5, 0.1]))
def test_a_mutated_image_is_read_or_refused_in_one_line(kind: str, changes: list[Mutation], kept: float) -> None:
    try:
        image = open_image(mutated(IMAGES[kind], changes, kept), "image.png")
    except InputError as error:
        assert str(error).startswith("image.png: ") and "\n" not in str(error)
    else:
        assert to_square(image, 32).shape == (32, 32, 3)
        conversions(image, "image.png")


def a_tar(files: dict[str, bytes], mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def a_zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


ARCHIVES: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "tar": lambda files: a_tar(files, "w"),
    "tar.gz": lambda files: a_tar(files, "w:gz"),
    "zip": a_zip,
}
FILES = {f"{split}/{name}/{row}.png": IMAGES["PNG"] for split in ("train", "test") for name in "ab" for row in range(2)}


@pytest.mark.parametrize("kind", ARCHIVES)
@settings(max_examples=25)
@given(changes=mutations, kept=st.sampled_from([1.0, 1.0, 0.9, 0.5, 0.1]))
def test_a_mutated_archive_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, kind: str, changes: list[Mutation], kept: float
) -> None:
    path = tmp_path_factory.mktemp("archive") / f"images.{kind}"
    path.write_bytes(mutated(ARCHIVES[kind](FILES), changes, kept))
    try:
        for entry in entries_of(path):
            if not entry.is_folder:
                entry.read()
        dataset = load_dataset(path)
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert dataset.train.images.shape[1:] == (32, 32, 3)


def a_parquet() -> bytes:
    images = pa.array([{"bytes": IMAGES["PNG"]}] * 6, pa.struct([("bytes", pa.binary())]))
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": images, "label": [0, 1] * 3}), buffer)
    return buffer.getvalue()


def an_npz(save: Callable[..., None]) -> bytes:
    buffer = io.BytesIO()
    save(buffer, x_train=np.stack([PIXELS] * 6), y_train=np.array([0, 1] * 3))
    return buffer.getvalue()


def an_idx(values: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


# The content of a file, and of other files beside it.
TABLES: dict[str, tuple[str, bytes, dict[str, bytes]]] = {
    "parquet": ("train.parquet", a_parquet(), {}),
    "npz": ("set.npz", an_npz(np.savez), {}),
    "compressed npz": ("set.npz", an_npz(np.savez_compressed), {}),
    "idx": (
        "train-images-idx3-ubyte",
        an_idx(PIXELS.transpose(2, 0, 1).repeat(2, axis=0)),
        {"train-labels-idx1-ubyte": an_idx(np.array([0, 1] * 3, np.uint8))},
    ),
}


@pytest.mark.parametrize("kind", TABLES)
@settings(max_examples=25)
@given(changes=mutations, kept=st.sampled_from([1.0, 1.0, 0.9, 0.5, 0.1]))
def test_a_mutated_table_or_array_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, kind: str, changes: list[Mutation], kept: float
) -> None:
    name, content, others = TABLES[kind]
    folder = tmp_path_factory.mktemp("table")
    (folder / name).write_bytes(mutated(content, changes, kept))
    for other, bytes_beside in others.items():
        (folder / other).write_bytes(bytes_beside)
    try:
        dataset = load_dataset(folder)
    except InputError as error:
        assert str(folder) in str(error) and "\n" not in str(error)
    else:
        assert dataset.train.images.shape[1:] == (32, 32, 3)


@settings(max_examples=50)
@given(changes=mutations.filter(bool), kept=st.sampled_from([1.0, 1.0, 0.9, 0.5, 0.1]))
def test_mutated_weights_are_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, changes: list[Mutation], kept: float
) -> None:
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_tensors(path, {"weights": torch.arange(100.0)}, {"classes": ["a", "b"]})
    content = path.read_bytes()
    path.write_bytes(mutated(content, changes, kept))
    if path.read_bytes() == content:
        return
    with pytest.raises(InputError, match="weights.safetensors") as refused:
        load_tensors(path)
    assert "\n" not in str(refused.value)
