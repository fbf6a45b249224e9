"""Labelling a part of many pictures, and what takes parts to where that is done: an engine. The local one is here."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

from onecycle.core.errors import InputError
from onecycle.models.test_time_augmentation import Averaged
from onecycle.predict.chunks import Part, Picture, read
from onecycle.predict.parquet import predictions_table, unreadable_table
from onecycle.predict.predictor import Prediction, Predictor, load_file
from onecycle.predict.stream import each_labelled


@dataclass(frozen=True, kw_only=True)
class LabelledPart:
    """What came of a part: two tables, as parquet files."""

    number: int
    pictures: int
    predictions: bytes
    unreadable: bytes


@dataclass(frozen=True)
class PartLabeller:
    """A network that labels parts. It is loaded once in a process, from its file's content."""

    weights: bytes
    tta: bool
    top: int

    @cached_property
    def predictor(self) -> Predictor:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "weights.safetensors")
            path.write_bytes(self.weights)
            predictor = load_file(path)
        return replace(predictor, model=Averaged(predictor.model)) if self.tta else predictor

    def label(self, part: Part) -> LabelledPart:
        """Label the pictures of a part.

        Raises:
            InputError: when an archive has changed, or nothing of the part can be seen from here.
        """
        predictions: list[tuple[Picture, Prediction]] = []
        unreadable: list[tuple[Picture, str]] = []
        for picture, told in each_labelled(self.predictor, read(part)):
            picture = picture._replace(content=b"")  # whose bytes are of no more use
            if isinstance(told, InputError):
                unreadable.append((picture, str(told)))
            else:
                predictions.append((picture, told))
        return LabelledPart(
            number=part.number,
            pictures=part.pictures,
            predictions=predictions_table(predictions, self.top),
            unreadable=unreadable_table(unreadable),
        )


class Engine(Protocol):
    """Where parts are labelled."""

    def label(self, labeller: PartLabeller, parts: Sequence[Part]) -> Iterator[LabelledPart]:
        """Label all `parts`, in any order.

        Raises:
            InputError: when that cannot be done.
            Interrupted: by SIGINT or SIGTERM.
        """
        ...


class Local:
    """This process, one part after another."""

    def label(self, labeller: PartLabeller, parts: Sequence[Part]) -> Iterator[LabelledPart]:
        return map(labeller.label, parts)


LOCAL = Local()
