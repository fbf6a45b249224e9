"""Tables of labels, as parquet: the one place that knows their columns and pyarrow."""

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from onecycle.core.files import reading, replacing, shown
from onecycle.predict.chunks import Part, Picture, Piece
from onecycle.predict.predictor import Prediction

_RANKED = pa.list_(pa.struct([pa.field("label", pa.string(), nullable=False), pa.field("probability", pa.float32())]))
_WHERE = [pa.field("file", pa.string(), nullable=False), pa.field("member", pa.string())]
PREDICTIONS = pa.schema(
    [
        *_WHERE,
        pa.field("label", pa.string(), nullable=False),
        pa.field("probability", pa.float32(), nullable=False),
        pa.field("predictions", _RANKED, nullable=False),
    ]
)
UNREADABLE = pa.schema([*_WHERE, pa.field("reason", pa.string(), nullable=False)])
_LISTING = pa.schema(
    [
        pa.field("part", pa.int32(), nullable=False),
        pa.field("file", pa.binary(), nullable=False),  # a file's name may be no text
        pa.field("first", pa.int64(), nullable=False),
        pa.field("length", pa.int64()),
        pa.field("reason", pa.string()),
        pa.field("names", pa.string()),
    ]
)
_KEY = b"onecycle"
_ROWS_AT_ONCE = 100_000


def predictions_table(rows: Sequence[tuple[Picture, Prediction]], top: int) -> bytes:
    """Labelled pictures as a parquet file, with their `top` likeliest classes."""
    ranked = [prediction.top(top) for _, prediction in rows]
    columns: dict[str, list[Any]] = {
        **_where([picture for picture, _ in rows]),
        "label": [best[0][0] for best in ranked],
        "probability": [best[0][1] for best in ranked],
        "predictions": [[{"label": name, "probability": value} for name, value in best] for best in ranked],
    }
    return _parquet(columns, PREDICTIONS)


def unreadable_table(rows: Sequence[tuple[Picture, str]]) -> bytes:
    """Pictures that cannot be read, each with the reason, as a parquet file."""
    columns: dict[str, list[Any]] = {
        **_where([picture for picture, _ in rows]),
        "reason": [reason for _, reason in rows],
    }
    return _parquet(columns, UNREADABLE)


def _where(pictures: Iterable[Picture]) -> dict[str, list[str | None]]:
    def text(name: str | None) -> str | None:
        return None if name is None else shown(name)

    pictures = list(pictures)
    return {"file": [text(each.path) for each in pictures], "member": [text(each.member) for each in pictures]}


def _parquet(columns: Mapping[str, Sequence[Any]], schema: pa.Schema) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=schema), buffer, compression="zstd")
    return buffer.getvalue()


def rows_of(file: Path) -> int:
    """How many rows a parquet file has, by its end.

    Raises:
        InputError: when it is damaged.
    """
    with reading(file):
        return int(pq.read_metadata(file).num_rows)


def write_listing(path: Path, parts: Iterable[Part], about: Mapping[str, Any]) -> None:
    """Write down all parts, and what they are the parts of.

    Raises:
        InputError: when that cannot be written.
    """
    schema = _LISTING.with_metadata({_KEY: json.dumps(about)})
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for part in parts:
            values = [(part.number, os.fsencode(each.path), *each[1:]) for each in part.pieces]
            rows = [dict(zip(_LISTING.names, row, strict=True)) for row in values]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def read_about(path: Path) -> Any:
    """What the listing in `path` is the listing of.

    Raises:
        InputError: when it is damaged.
    """
    with reading(path):
        return json.loads(pq.read_schema(path).metadata[_KEY])


def read_listing(path: Path) -> Iterator[Part]:
    """The parts that `write_listing` wrote.

    Raises:
        InputError: when they are damaged.
    """
    with reading(path), pq.ParquetFile(path) as file:
        batches = file.iter_batches(_ROWS_AT_ONCE)
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, several in groupby(rows, key=lambda row: row["part"]):
            others = Piece._fields[1:]
            pieces = (Piece(os.fsdecode(row["file"]), *map(row.__getitem__, others)) for row in several)
            yield Part(number, tuple(pieces))
