"""What the page about a run says, gathered from the run's folder."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onecycle import metrics, visualizations
from onecycle.config import Config
from onecycle.records import Interpretation, LRCurve, RunResult
from onecycle.report.figures import inline
from onecycle.report.sprites import Sheet, heat_sheet, image_sheet
from onecycle.run_folder import RunFolder
from onecycle.scheduler import peak_step
from onecycle.statistics import accuracy_interval

MOST_IN_MATRIX = 20  # classes; of more the matrix is a picture
CONFUSIONS = 10  # of the most frequent, listed
SUSPECTS = 48  # shown of each list
_NAMES = {"cifar10": "CIFAR-10", "digits": "the embedded digits"}
_MISTAKES_BYTES, _OTHERS_BYTES = 900_000, 150_000  # of sheets; base64 makes a third more of them


@dataclass(frozen=True, kw_only=True)
class Tile:
    """An image of a sheet with what stands below it."""

    place: tuple[int, int]
    name: str  # "test image 123"
    label: str
    predicted: str  # or what the network would rather have said
    lines: tuple[str, ...]  # more about it


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Tiles and the sheets that they are on."""

    sheet: Sheet
    tiles: list[Tile]
    heat: Sheet | None = None


@dataclass(frozen=True, kw_only=True)
class Suspects:
    """A ranked list: the first as tiles, all of it as positions."""

    gallery: Gallery
    listed: tuple[int, ...]


def percent(share: float | None, decimals: int = 2) -> str:
    """`share`, a fraction, as people read it; a dash where there is none."""
    return "–" if share is None else f"{100 * share:.{decimals}f} %"


def dataset_name(name: str) -> str:
    return _NAMES.get(name, name)


def duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.1f} minutes"


class Page:
    """The parts of the page, each from the records in `folder`; None or empty where the run did not get that far.

    Raises:
        InputError: when a record is missing that every run has, or one is damaged.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.config: Config = folder.read_config()
        self.environment: dict[str, Any] = folder.read_json(folder.environment)
        self.result: RunResult | None = folder.read_result() if folder.result.exists() else None
        self.history = folder.read_history() if folder.history.exists() else []
        self.lr_curve: LRCurve | None = folder.read_lr_curve()
        self.network = folder.read_network()
        self.stopped: str | None = folder.read_json(folder.stopped).get("why") if folder.stopped.exists() else None
        self.classes: tuple[str, ...] = ()
        self.logits: NDArray[np.float32] = np.empty((0, 0), np.float32)
        self.labels: NDArray[np.int64] = np.empty(0, np.int64)
        self.interpretation: Interpretation | None = None
        if self.result:
            self.classes = folder.read_mistakes().classes
            predictions = folder.read_arrays(folder.predictions)
            self.logits, self.labels = predictions["logits"], predictions["labels"]
            self.interpretation = folder.read_interpretation()
        self.predictions = self.logits.argmax(axis=1) if self.result else self.labels
        self.probabilities = metrics.probabilities_of(self.logits) if self.result else np.empty((0, 0))

    @property
    def dataset(self) -> str:
        return dataset_name(self.environment["dataset"]["name"])

    @property
    def evaluated_on(self) -> str:
        return "validation" if self.config.validation else "test"

    @property
    def hardware(self) -> str:
        """The machine in a few words."""
        machine, how = self.environment["hardware"], self.environment["acceleration"]
        threads = how.get("threads")
        if how["device"] != "cpu":
            return str(machine.get("gpu") or how["device"])
        return str(machine.get("cpu", "a CPU")) + (f", {threads} threads" if threads else "")

    @property
    def interval(self) -> tuple[float, float]:
        assert self.result
        return accuracy_interval(int((self.predictions == self.labels).sum()), len(self.labels))

    def figures(self) -> dict[str, str]:
        """The curves, by name."""
        figures = {}
        if self.history:
            evaluated_on, last = self.evaluated_on, self.history[-1]
            figures["accuracy"] = inline(
                visualizations.accuracy_curves(self.history, evaluated_on=evaluated_on),
                "accuracy",
                f"Accuracy by epoch: at the last {percent(last.test_accuracy)} ({evaluated_on}), "
                f"{percent(last.train_accuracy)} (train)",
            )
            figures["loss"] = inline(
                visualizations.loss_curves(self.history, evaluated_on=evaluated_on),
                "loss",
                f"Loss by epoch: at the last {last.test_loss:.3f} ({evaluated_on}), {last.train_loss:.3f} (train)",
            )
        if self.result:
            steps = -(-self.result.train_images // self.config.batch_size)
            total = steps * self.config.epochs
            figures["learning-rate"] = inline(
                visualizations.learning_rate_curve(
                    lr_min=self.result.lr_min,
                    lr_max=self.result.lr_max,
                    total_steps=total,
                    peak_step=peak_step(total, self.config.peak_fraction),
                    steps_per_epoch=steps,
                ),
                "learning-rate",
                f"Learning rate by epoch: from {self.result.lr_min:.3g} up to {self.result.lr_max:.3g} and back",
            )
        if self.lr_curve:
            figures["lr-finder"] = inline(
                visualizations.lr_finder_curve(self.lr_curve),
                "lr-finder",
                f"Training loss against learning rate; the finder chose {self.lr_curve.lr_min:.3g} to "
                f"{self.lr_curve.lr_max:.3g}",
            )
        return figures

    def calibration(self) -> tuple[metrics.Calibration, str]:
        found = metrics.calibration(self.probabilities, self.labels)
        described = f"Accuracy against confidence in bins; the expected calibration error is {percent(found.error, 1)}"
        return found, inline(visualizations.reliability_diagram(found), "calibration", described)

    @property
    def counts(self) -> NDArray[np.int64]:
        """The confusion matrix `[C,C]`."""
        return metrics.confusion_counts(self.labels, self.predictions, len(self.classes))

    def matrix_picture(self) -> str | None:
        """The confusion matrix as a picture, where it has too many classes for a table."""
        if len(self.classes) <= MOST_IN_MATRIX:
            return None
        figure = visualizations.confusion_matrix(self.labels, self.predictions, self.classes)
        return inline(figure, "confusion", "Confusion matrix: how often each class was taken for each")

    def confusions(self) -> list[tuple[str, str, int]]:
        """The most frequent mistakes: true class, predicted class, how often."""
        counts = self.counts
        np.fill_diagonal(counts, 0)
        order = np.argsort(-counts, axis=None, kind="stable")[:CONFUSIONS]
        pairs = [divmod(int(place), len(self.classes)) for place in order]
        return [(self.classes[t], self.classes[p], int(counts[t, p])) for t, p in pairs if counts[t, p]]

    def class_rows(self) -> Iterator[tuple[str, metrics.ClassMetrics, str]]:
        """Class by class: its name, its figures, the interval of its recall."""
        for name, found in zip(self.classes, metrics.class_metrics(self.counts), strict=True):
            low, high = accuracy_interval(found.correct, found.images) if found.images else (None, None)
            yield name, found, f"{percent(low, 1)} to {percent(high, 1)}" if found.images else "–"

    def mistakes(self) -> Gallery | None:
        """The incorrect predictions, most confident first, with what the network looked at."""
        if not (found := self.interpretation) or not len(found.mistakes):
            return None
        sheet = image_sheet(found.mistake_images, most_bytes=_MISTAKES_BYTES)
        tiles = [self._tile(sheet, number, int(image)) for number, image in enumerate(found.mistakes)]
        return Gallery(sheet=sheet, heat=heat_sheet(found.heat, sheet.tile), tiles=tiles)

    def _tile(self, sheet: Sheet, number: int, image: int) -> Tile:
        likeliest = np.argsort(-self.probabilities[image], kind="stable")[:3]
        return Tile(
            place=sheet.place(number),
            name=f"{self.evaluated_on} image {image}",
            label=self.classes[self.labels[image]],
            predicted=self.classes[self.predictions[image]],
            lines=tuple(f"{self.classes[c]} {_sure(self.probabilities[image, c])}" for c in likeliest),
        )

    def suspects(self) -> Suspects | None:
        """Evaluated images whose label may be wrong."""
        if not (found := self.interpretation):
            return None
        sheet = image_sheet(found.suspect_images[:SUSPECTS], most_bytes=_OTHERS_BYTES)
        tiles = [self._tile(sheet, number, int(image)) for number, image in enumerate(found.suspects[:SUSPECTS])]
        return Suspects(gallery=Gallery(sheet=sheet, tiles=tiles), listed=tuple(found.suspects.tolist()))

    def train_suspects(self) -> Suspects | None:
        """Training images whose label may be wrong."""
        if not (found := self.interpretation):
            return None
        sheet = image_sheet(found.train_suspect_images[:SUSPECTS], most_bytes=_OTHERS_BYTES)
        tiles = [
            Tile(
                place=sheet.place(number),
                name=f"training image {found.train_suspects[number]}",
                label=self.classes[found.train_suspect_labels[number]],
                predicted=self.classes[found.train_suspect_guesses[number]],
                lines=(f"margin {found.train_suspect_margins[number]:.2f}",),
            )
            for number in range(min(SUSPECTS, len(found.train_suspect_images)))
        ]
        return Suspects(gallery=Gallery(sheet=sheet, tiles=tiles), listed=tuple(found.train_suspects.tolist()))

    def duplicates(self) -> Gallery | None:
        """Evaluated images, each with the training image that is most like it: two tiles a pair."""
        if not (found := self.interpretation):
            return None
        pairs = found.duplicate_images[:SUSPECTS]  # [d,2,S,S,3]
        sheet = image_sheet(pairs.reshape(-1, *pairs.shape[2:]), most_bytes=2 * _OTHERS_BYTES)
        tiles = [
            Tile(
                place=sheet.place(2 * number + side),
                name=f"{split} image {found.duplicates[number, side]}",
                label=self.classes[found.duplicate_labels[number, side]],
                predicted=self.classes[found.duplicate_labels[number, 1 - side]],
                lines=(f"{100 * found.duplicate_similarities[number]:.1f} % alike",),
            )
            for number in range(len(pairs))
            for side, split in enumerate((self.evaluated_on, "training"))
        ]
        return Gallery(sheet=sheet, tiles=tiles)

    def augmentations(self) -> Gallery | None:
        """Training images and what augmentation made of them: the first half of the tiles, and the second."""
        if not self.folder.augmentations.exists():
            return None
        arrays = self.folder.read_arrays(self.folder.augmentations)
        both = np.concatenate([arrays["originals"], arrays["augmented"]])
        sheet = image_sheet(both, most_bytes=_OTHERS_BYTES)
        half = len(both) // 2
        tiles = [
            Tile(
                place=sheet.place(number),
                name=f"training image, {'augmented' if number >= half else 'as it is'}",
                label="",
                predicted="",
                lines=(),
            )
            for number in range(len(both))
        ]
        return Gallery(sheet=sheet, tiles=tiles)


def _sure(probability: float) -> str:
    return ">99.9 %" if 0.9995 <= probability < 1 else f"{100 * probability:.1f} %"
