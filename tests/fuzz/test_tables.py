"""Tables and arrays with a few other bytes are read, or refused in one line that names the file."""

import io
import struct
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from onecycle.core.errors import InputError
from onecycle.data.readers.loading import load_dataset

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)

# The position of a change as a fraction of the file's length, the new bytes, and whether to insert or overwrite.
Mutation = tuple[float, bytes, bool]
mutations = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8), st.booleans()), max_size=6)


def mutated(content: bytes, changes: list[Mutation], kept: float) -> bytes:
    changed = bytearray(content)
    for place, new, inserted in changes:
        start = int(place * len(changed))
        changed[start : start if inserted else start + len(new)] = new
    return bytes(changed[: int(kept * len(changed))])


def a_parquet() -> bytes:
    image = io.BytesIO()
    Image.fromarray(PIXELS).save(image, "PNG")
    images = pa.array([{"bytes": image.getvalue()}] * 6, pa.struct([("bytes", pa.binary())]))
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
