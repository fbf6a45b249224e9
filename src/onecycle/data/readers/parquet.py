"""Read the parquet files of Hugging Face data sets. Each row has one image and one label.

Source: https://huggingface.co/docs/datasets/image_dataset. The schema metadata "huggingface" holds the
`datasets.Features`. These include the class names.
"""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onecycle.core.errors import InputError
from onecycle.core.extras import require
from onecycle.core.files import printable
from onecycle.data.image_files import LARGEST_FILE
from onecycle.data.readers.entries import is_ignored, one_line_errors
from onecycle.data.readers.formats import FileNames, ReadOptions, RowFormat
from onecycle.data.readers.labels import classes_of
from onecycle.data.readers.left_out import OTHER, LeftOut
from onecycle.data.store.decode import Unreadable
from onecycle.data.store.rows import Content, Rows, RowSets

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_SUFFIX = ".parquet"
_MAGIC = b"PAR1"
_SPLITS = ("train", "validation", "test")
# A word in the name of a file or of its folder gives the split, as on the Hub: train-00000-of-00002.parquet.
_WORDS = {
    "training": "train",
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "testing": "test",
    "test": "test",
    "evaluation": "test",
    "eval": "test",
}
_BETWEEN_WORDS = re.compile(r"[-._ 0-9]+")
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\b.*")
_LABEL_NAMES = ("label", "labels")
_FINE, _COARSE = "fine_label", "coarse_label"  # the label columns of CIFAR-100
_ROWS_AT_ONCE = 32  # this is small, because an image may have 64 MiB
_BUFFER = 2**20  # bytes; without it, all images of a row group would be read at once


class _Columns(NamedTuple):
    """The columns that are read. `names` are the class names in the schema, or None if the schema has none."""

    image: str
    label: str
    names: tuple[str, ...] | None


class _File(NamedTuple):
    """A file with its columns and its labels. The labels are numbers, int64 `[n]`, or texts."""

    path: Path
    columns: _Columns
    labels: NDArray[np.int64] | list[str]


class Parquet(RowFormat):
    """Tables with a column of images and a column of labels, in one or more files for each split."""

    name = "Hugging Face parquet files"
    example = "train-00000-of-00001.parquet"
    has_coarse = True

    def find(self, files: FileNames) -> list[Path]:
        folders = files.folders(_is_parquet)
        return sorted(
            {folder.parent if folder != files.top and _split_of(folder.name) else folder for folder in folders}
        )

    def is_file(self, name: str, start: bytes) -> bool:
        return start.startswith(_MAGIC) or _is_parquet(name)

    def rows(self, path: Path, options: ReadOptions) -> RowSets:
        require("parquet", "pyarrow")
        by_split, left_out = _files_by_split(path)
        files = {split: [_read_labels(file, options) for file in paths] for split, paths in by_split.items()}
        first = files["train"][0]
        for file in (file for of_split in files.values() for file in of_split):
            if file.columns != first.columns or type(file.labels) is not type(first.labels):
                raise InputError(
                    f"{file.path}: has other columns or class names than {first.path.name}; give the files of one data "
                    "set"
                )
        top = path if path.is_dir() else path.parent
        labels, names = _numbered(files, first.columns.names)

        def row_name(split: str, row: int) -> str:
            return next(itertools.islice(_row_names(files[split], top), row, None))

        classes = classes_of(labels, str(path), row_name, names)
        return RowSets(
            source=f"Hugging Face parquet files from {path}",
            prefix=f"{top}/",
            path=path,
            files=[file for paths in by_split.values() for file in paths],
            classes=classes.names,
            by_split={
                split: Rows(
                    labels=classes.labels[split],
                    names=partial(_row_names, of_split, top),
                    contents=partial(_contents, of_split),
                )
                for split, of_split in files.items()
            },
            left_out=(*left_out.lines(), *classes.left_out.lines()),
        )


def _is_parquet(name: str) -> bool:
    return name.lower().endswith(_SUFFIX)


def _split_of(name: str) -> str | None:
    """The split that a word of `name` stands for. None if no word stands for a split."""
    found = {_WORDS[word] for word in _BETWEEN_WORDS.split(name.lower()) if word in _WORDS}
    if len(found) > 1:
        raise InputError(f"{name}: the name has words for several splits ({', '.join(sorted(found))}); rename it")
    return next(iter(found), None)


def _files_by_split(path: Path) -> tuple[dict[str, list[Path]], LeftOut]:
    """The parquet files at `path` by split, in order of their names. Also returns the files that are left out."""
    left_out = LeftOut()
    if not path.is_dir():
        _require_all_shards([path])
        return {"train": [path]}, left_out
    files: list[Path] = []
    with one_line_errors(path):
        for file in sorted(itertools.chain(path.glob("*"), path.glob("*/*"))):
            if file.is_dir() or any(is_ignored(part, is_folder=False) for part in file.relative_to(path).parts):
                continue
            if _is_parquet(file.name) and (file.parent == path or _split_of(file.parent.name)):
                files.append(file)
            else:
                left_out.add(OTHER, file.relative_to(path).as_posix())
    splits = {
        file: _split_of(file.stem) or (_split_of(file.parent.name) if file.parent != path else None) for file in files
    }
    if not any(splits.values()):
        splits = dict.fromkeys(files, "train")
    by_split: dict[str, list[Path]] = {split: [] for split in _SPLITS}
    for file, split in splits.items():
        if split:
            by_split[split].append(file)
        else:
            left_out.add("parquet file whose name has no split", file.relative_to(path).as_posix())
    if not by_split["train"]:
        raise InputError(f"{path}: has no parquet file for training, such as train-00000-of-00001.parquet; add one")
    for of_split in by_split.values():
        _require_all_shards(of_split)
    return {split: of_split for split, of_split in by_split.items() if of_split}, left_out


def _require_all_shards(files: Sequence[Path]) -> None:
    """Check that all files of a series such as train-00000-of-00002.parquet are there."""
    names = {match.group(1, 2, 3) for file in files if (match := _SHARD.fullmatch(file.name))}
    for stem, _, count in sorted(names):
        for number in range(int(count)):
            if (stem, f"{number:05}", count) not in names:
                raise InputError(
                    f"{files[0].parent}: {stem}-{number:05}-of-{count}{_SUFFIX} is missing; download it, and give the "
                    "folder with all files"
                )


@contextmanager
def _opened(path: Path) -> Iterator["pq.ParquetFile"]:
    import pyarrow.parquet as pq

    with (
        one_line_errors(path),
        pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True) as file,
    ):
        yield file


def _read_labels(path: Path, options: ReadOptions) -> _File:
    """Read the schema and the labels of a file, but not its images."""
    import pyarrow as pa

    with _opened(path) as file:
        columns = _columns(path, file.schema_arrow, options)
        column = file.read([columns.label], use_threads=False).column(0)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if column.null_count:
            row = column.is_null().to_pylist().index(True)
            raise InputError(f"{path}, row {row}: has no label; remove the rows without a label")
        if pa.types.is_integer(column.type):
            return _File(path, columns, column.cast(pa.int64()).to_numpy())
        return _File(path, columns, column.to_pylist())


def _columns(path: Path, schema: "pa.Schema", options: ReadOptions) -> _Columns:
    features = _features(path, schema)
    kinds = {name: feature.get("_type") for name, feature in features.items() if isinstance(feature, dict)}
    images = [field.name for field in schema if _holds_images(field.type)]
    images = [name for name in images if kinds.get(name) == "Image"] or images
    if len(images) != 1:
        raise InputError(
            f"{path}: has {_listed(images)} with images; it must have one column of images, stored as bytes "
            "or as the structs that datasets.Image writes (bytes and path)"
        )
    labels = [field.name for field in schema if _holds_labels(field.type)]
    labels = [name for name in labels if kinds.get(name) == "ClassLabel"] or labels
    if options.coarse and _COARSE not in labels:
        raise InputError(f"--coarse is for CIFAR-100, and {path} has no column {_COARSE}; leave out --coarse")
    if len(labels) > 1:
        wanted = (_COARSE if options.coarse else _FINE,) if {_FINE, _COARSE} <= set(labels) else _LABEL_NAMES
        labels = [name for name in labels if name in wanted] or labels
    if len(labels) != 1:
        raise InputError(
            f"{path}: has {_listed(labels)} with labels; it must have one column of labels (integers or texts); "
            "name this column 'label'"
        )
    names = features.get(labels[0], {}).get("names") if kinds.get(labels[0]) == "ClassLabel" else None
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise InputError(f"{path}: the class names in its schema are not a list of texts; write the file again")
    return _Columns(images[0], labels[0], None if names is None else tuple(names))


def _features(path: Path, schema: "pa.Schema") -> dict[str, Any]:
    """The features that the library `datasets` wrote into the schema. Returns {} if there are none."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    except (ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: the huggingface metadata of its schema is damaged; write the file again") from error
    return features if isinstance(features, dict) else {}


def _holds_images(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0) and _holds_images(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _holds_labels(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _listed(columns: Sequence[str]) -> str:
    names = ", ".join(map(printable, columns))
    return f"the columns {names}" if len(columns) > 1 else f"the column {names}" if columns else "no column"


def _numbered(
    files: Mapping[str, Sequence[_File]], names: Sequence[str] | None
) -> tuple[dict[str, NDArray[np.int64]], Sequence[str] | None]:
    """The labels of each split as numbers. Also returns the class names.

    If the labels are texts, the class names are these texts, sorted. Otherwise, the class names are `names`.
    """
    labels = {split: [file.labels for file in of_split] for split, of_split in files.items()}
    if isinstance(labels["train"][0], list):
        names = sorted({label for of_split in labels.values() for of_file in of_split for label in of_file})
        numbers = {name: number for number, name in enumerate(names)}
        labels = {
            split: [np.array([numbers[label] for label in of_file], np.int64) for of_file in of_split]
            for split, of_split in labels.items()
        }
    return {split: np.concatenate(of_split) for split, of_split in labels.items()}, names


def _row_names(files: Sequence[_File], top: Path) -> Iterator[str]:
    for file in files:
        name = printable(file.path.relative_to(top).as_posix())
        yield from (f"{name}, row {row}" for row in range(len(file.labels)))


def _contents(files: Sequence[_File]) -> Iterator[Content]:
    for path, columns, labels in files:
        row = 0
        with _opened(path) as file:
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[columns.image], use_threads=False):
                column = batch.column(0)
                for value in column.field("bytes") if hasattr(column, "field") else column:
                    yield _content(value.as_py(), f"{path}, row {row}")
                    row += 1
        if row != len(labels):
            raise InputError(f"{path}: has {row:,} images and {len(labels):,} labels; get it again")


def _content(content: bytes | None, where: str) -> bytes | Unreadable:
    if content is None:
        return Unreadable(f"{where}: there is no image, perhaps only its path; embed the images, as push_to_hub does")
    if len(content) > LARGEST_FILE:
        return Unreadable(f"{where}: has {len(content):,} bytes; the limit is {LARGEST_FILE:,}; replace or remove it")
    return content
