"""Predict the classes of a large number of images, and write them into a folder of parquet files.

The listing is written first: `listing.parquet` assigns every image to a chunk. A chunk is done when its file is in
`predictions`, so any process can find out what is left to do. An engine decides where chunks are predicted: in this
process, or on a Ray cluster (`predict.ray`).
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from onecycle.core.errors import InputError
from onecycle.core.files import locked, printable, reading, replacing, writing
from onecycle.core.regular_files import make_folder, read_regular
from onecycle.core.signals import Interrupted
from onecycle.data.readers.left_out import LeftOut
from onecycle.data.store.decode import Unreadable
from onecycle.models.test_time_augmentation import TestTimeAugmentation
from onecycle.predict.chunks import Chunk, ChunkImage, read_images, split_into_chunks
from onecycle.predict.parquet import (
    predictions_table,
    read_left_out,
    read_listing,
    read_settings,
    row_count,
    unreadable_table,
    write_listing,
)
from onecycle.predict.predictor import Prediction, Predictor, load_file
from onecycle.predict.stream import predict_each
from onecycle.storage.checkpoint import MOST_TENSOR_BYTES

_FORMAT = 4


class Counts(NamedTuple):
    """How many images an output folder lists, and how many of them are unreadable.

    `left_out` has one line for each reason why files of the sources were left out.
    """

    images: int
    unreadable: int
    left_out: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ChunkResult:
    """The result of a chunk. `predictions` and `unreadable` are the contents of two parquet files."""

    number: int
    images: int
    predictions: bytes
    unreadable: bytes


@dataclass(frozen=True)
class ChunkPredictor:
    """A network that predicts chunks. Each process loads it once, from the content of its weights file."""

    weights: bytes
    tta: bool
    top: int
    network: str | None = None  # the value of --network if the network is the user's own

    @cached_property
    def predictor(self) -> Predictor:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "weights.safetensors")
            path.write_bytes(self.weights)
            predictor = load_file(path, network=self.network)
        return replace(predictor, model=TestTimeAugmentation(predictor.model)) if self.tta else predictor

    def predict(self, chunk: Chunk) -> ChunkResult:
        """Predict all images of `chunk`.

        Raises:
            InputError: when an archive has changed, or this machine finds none of the chunk's files.
        """
        predictions: list[tuple[ChunkImage, Prediction]] = []
        unreadable: list[tuple[ChunkImage, str]] = []
        for image, prediction in predict_each(self.predictor, read_images(chunk)):
            image = image._replace(content=b"")  # frees memory
            if isinstance(prediction, Unreadable):
                unreadable.append((image, prediction.reason))
            else:
                predictions.append((image, prediction))
        return ChunkResult(
            number=chunk.number,
            images=chunk.images,
            predictions=predictions_table(predictions, self.top),
            unreadable=unreadable_table(unreadable),
        )


class PredictionEngine(Protocol):
    """Predicts chunks, in this process or elsewhere."""

    def predict(self, predictor: ChunkPredictor, chunks: Sequence[Chunk]) -> Iterator[ChunkResult]:
        """Predict all `chunks`. The results may come in any order.

        Raises:
            InputError: when a chunk cannot be predicted.
            PeerError: when the cluster fails.
            Interrupted: on SIGINT or SIGTERM.
        """
        ...


class LocalPredictionEngine:
    """Predicts one chunk after another in this process."""

    def predict(self, predictor: ChunkPredictor, chunks: Sequence[Chunk]) -> Iterator[ChunkResult]:
        return map(predictor.predict, chunks)


LOCAL_PREDICTION_ENGINE = LocalPredictionEngine()


def predict_into(
    out: Path,
    sources: Sequence[str],
    weights: Path,
    console: Console,
    *,
    tta: bool,
    top: int,
    network: str | None = None,
    engine: PredictionEngine = LOCAL_PREDICTION_ENGINE,
) -> Counts:
    """Predict all images in `sources` with the network in `weights`, and write the results into the folder `out`.

    An interrupted call can be repeated, with any engine. The repeated call predicts only the remaining chunks.

    Raises:
        InputError: when `out` holds unrelated files or predictions with different settings, or when a chunk cannot be
            predicted.
        StorageError: when `out` cannot be written.
        PeerError: when the cluster fails; repeat the call to go on.
        Interrupted: on SIGINT or SIGTERM; repeat the call to go on.
    """
    with reading(weights):
        predictor = ChunkPredictor(read_regular(weights, MOST_TENSOR_BYTES), tta, top, network)
    settings = {
        "format": _FORMAT,
        "sources": [source and os.path.abspath(source) for source in sources],
        "network": hashlib.sha256(predictor.weights).hexdigest(),
        "tta": tta,
        "top": top,
    }
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        try:
            _write_listing(out, settings, predictor)
            _predict_remaining(out, predictor, engine, console)
        except Interrupted as stopped:
            raise Interrupted(stopped.number, "repeat the command to go on") from None
        return _count(out)


def _write_listing(out: Path, settings: dict[str, Any], predictor: ChunkPredictor) -> None:
    """Write the listing, unless an earlier call with the same settings has written it."""
    listing = out / "listing.parquet"
    if listing.exists():
        earlier = read_settings(listing)
        if differing := [name for name, value in settings.items() if earlier.get(name) != value]:
            raise InputError(f"{out} holds predictions with different {' and '.join(differing)}; use another --out")
        return
    if others := [path.name for path in out.iterdir() if not path.name.startswith(".")]:
        raise InputError(f"{out} holds {printable(others[0])} but no listing.parquet; use an empty or new folder")
    left_out = LeftOut()
    chunks = split_into_chunks(settings["sources"], predictor.predictor.batch_size, left_out)
    write_listing(listing, chunks, settings, left_out)


def _predict_remaining(out: Path, predictor: ChunkPredictor, engine: PredictionEngine, console: Console) -> None:
    chunks = list(read_listing(out / "listing.parquet"))
    remaining = [chunk for chunk in chunks if not all(file.exists() for file in _files(out, chunk.number))]
    bar = Progress(
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} images"),
        BarColumn(bar_width=None),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
        expand=True,
    )
    with bar:
        total = sum(chunk.images for chunk in chunks)
        task = bar.add_task("", total=total, completed=total - sum(chunk.images for chunk in remaining))
        for result in engine.predict(predictor, remaining):
            _save(out, result)
            bar.advance(task, result.images)


def _save(out: Path, result: ChunkResult) -> None:
    """Write the two files of a chunk. A chunk with both files is done."""
    for file, content in zip(_files(out, result.number), (result.unreadable, result.predictions), strict=True):
        with writing(file):
            make_folder(file.parent)
        with replacing(file) as temporary:
            temporary.write_bytes(content)


def _files(out: Path, number: int) -> tuple[Path, Path]:
    name = f"part-{number:06}.parquet"
    return out / "unreadable" / name, out / "predictions" / name


def _count(out: Path) -> Counts:
    """Count the images in the parquet files of all chunks.

    Raises:
        InputError: when the files of a chunk do not hold as many images as the listing says.
    """
    total = unreadable = 0
    for chunk in read_listing(out / "listing.parquet"):
        without, with_prediction = map(row_count, _files(out, chunk.number))
        if without + with_prediction != chunk.images:
            raise InputError(
                f"{_files(out, chunk.number)[1]} does not hold the images that were listed; remove it and repeat the "
                "command"
            )
        total, unreadable = total + chunk.images, unreadable + without
    return Counts(total, unreadable, read_left_out(out / "listing.parquet"))
