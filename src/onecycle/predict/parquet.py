"""The parquet tables of bulk prediction. Only this module knows their columns and imports pyarrow."""

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from onecycle.core.files import printable, reading, replacing
from onecycle.core.formatting import without_controls
from onecycle.data.readers.left_out import LeftOut
from onecycle.predict.chunks import Chunk, ChunkFile, ChunkImage
from onecycle.predict.predictor import Prediction

_CLASS = pa.struct([pa.field("class_name", pa.string(), nullable=False), pa.field("probability", pa.float32())])
_SOURCE = [pa.field("file", pa.string(), nullable=False), pa.field("member", pa.string())]
PREDICTIONS = pa.schema(
    [
        *_SOURCE,
        pa.field("class_name", pa.string(), nullable=False),
        pa.field("probability", pa.float32(), nullable=False),
        pa.field("predictions", pa.list_(_CLASS), nullable=False),
        pa.field("in_distribution", pa.bool_()),  # null if the network has no energy threshold
        pa.field("energy_score", pa.float32(), nullable=False),
    ]
)
UNREADABLE = pa.schema([*_SOURCE, pa.field("reason", pa.string(), nullable=False)])
_LISTING = pa.schema(
    [
        pa.field("chunk", pa.int32(), nullable=False),
        pa.field("file", pa.binary(), nullable=False),  # not every file name is valid text
        pa.field("first", pa.int64(), nullable=False),
        pa.field("length", pa.int64()),
        pa.field("reason", pa.string()),
        pa.field("names", pa.string()),
    ]
)
_KEY = b"onecycle"
_LEFT_OUT_KEY = b"left_out"
_ROWS_AT_ONCE = 100_000


def predictions_table(rows: Sequence[tuple[ChunkImage, Prediction]], top: int) -> bytes:
    """The content of a parquet file that lists images, each with its `top` most likely classes."""
    ranked = [prediction.top(top) for _, prediction in rows]
    columns: dict[str, list[Any]] = {
        **_sources([image for image, _ in rows]),
        "class_name": [best[0][0] for best in ranked],
        "probability": [best[0][1] for best in ranked],
        "predictions": [[{"class_name": name, "probability": value} for name, value in best] for best in ranked],
        "in_distribution": [prediction.in_distribution for _, prediction in rows],
        "energy_score": [prediction.energy_score for _, prediction in rows],
    }
    return _parquet(columns, PREDICTIONS)


def unreadable_table(rows: Sequence[tuple[ChunkImage, str]]) -> bytes:
    """The content of a parquet file that lists unreadable images, each with the reason."""
    columns: dict[str, list[Any]] = {
        **_sources([image for image, _ in rows]),
        "reason": [without_controls(reason) for _, reason in rows],
    }
    return _parquet(columns, UNREADABLE)


def _sources(images: Iterable[ChunkImage]) -> dict[str, list[str | None]]:
    def text(name: str | None) -> str | None:
        return None if name is None else printable(name)

    images = list(images)
    return {"file": [text(image.path) for image in images], "member": [text(image.member) for image in images]}


def _parquet(columns: Mapping[str, Sequence[Any]], schema: pa.Schema) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=schema), buffer, compression="zstd")
    return buffer.getvalue()


def row_count(file: Path) -> int:
    """The number of rows of a parquet file, read from its footer.

    Raises:
        InputError: when the file is damaged.
    """
    with reading(file):
        return int(pq.read_metadata(file).num_rows)


def write_listing(path: Path, chunks: Iterable[Chunk], settings: Mapping[str, Any], left_out: LeftOut) -> None:
    """Write the listing of all `chunks`, with the `settings` that produced them and the lines of `left_out`.

    The iteration over `chunks` may fill `left_out`: the lines of `left_out` are read only after the last chunk.

    Raises:
        StorageError: when the file cannot be written.
    """
    schema = _LISTING.with_metadata({_KEY: json.dumps(settings)})
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for chunk in chunks:
            files = [file._replace(reason=file.reason and without_controls(file.reason)) for file in chunk.files]
            values = [(chunk.number, os.fsencode(file.path), *file[1:]) for file in files]
            rows = [dict(zip(_LISTING.names, row, strict=True)) for row in values]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
        writer.add_key_value_metadata({_LEFT_OUT_KEY: json.dumps(left_out.lines())})


def read_settings(path: Path) -> Any:
    """The settings that produced the listing at `path`.

    Raises:
        InputError: when the file is damaged.
    """
    with reading(path):
        return json.loads(pq.read_schema(path).metadata[_KEY])


def read_left_out(path: Path) -> tuple[str, ...]:
    """The lines of `left_out` in the listing at `path`: one line for each reason why files were left out.

    Raises:
        InputError: when the file is damaged.
    """
    with reading(path):
        return tuple(json.loads(pq.read_metadata(path).metadata.get(_LEFT_OUT_KEY, b"[]")))


def read_listing(path: Path) -> Iterator[Chunk]:
    """Yield the chunks that `write_listing` saved at `path`.

    Raises:
        InputError: when the file is damaged.
    """
    with reading(path), pq.ParquetFile(path) as file:
        batches = file.iter_batches(_ROWS_AT_ONCE)
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, of_chunk in groupby(rows, key=lambda row: row["chunk"]):
            others = ChunkFile._fields[1:]
            files = (ChunkFile(os.fsdecode(row["file"]), *map(row.__getitem__, others)) for row in of_chunk)
            yield Chunk(number, tuple(files))
