"""The numbers and curves of a report, collected from the run folder."""

import math
import shlex
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onecycle.core import formatting, metrics
from onecycle.core.config import Config
from onecycle.core.files import printable, reading
from onecycle.core.out_of_distribution import energy_scores_of
from onecycle.core.recipes import changed_options
from onecycle.core.statistics import accuracy_interval
from onecycle.data.readers.image_names import ImageNames
from onecycle.report import visualizations
from onecycle.report.svg import inline
from onecycle.storage.records import Interpretation, LRCurve, RunResult
from onecycle.storage.run_folder import RunFolder
from onecycle.train.scheduler import peak_step

MOST_IN_MATRIX = 20  # with more classes, the report shows the confusion matrix as a plot instead of a table
WORST_CLASSES = 10  # number of classes shown if there are more than `MOST_IN_MATRIX`; the others are folded
CONFUSIONS = 10  # number of confusions listed, most frequent first
_NAMES = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "mnist": "MNIST",
    "fashion-mnist": "Fashion-MNIST",
    "digits": "the embedded digits",
}
_PERCENT = "\N{NO-BREAK SPACE}%"
_LONGEST_NAME = 32  # a report shortens class names that have more characters


def percent(share: float | None, decimals: int = 2) -> str:
    """A fraction as a percentage, or a dash for None."""
    return "–" if share is None else formatting.percent(share, decimals, unit=_PERCENT)


def dataset_name(name: str) -> str:
    return _NAMES.get(name, name)


def shortened(name: str) -> str:
    """`name`, shortened in the middle if it is long, because a report may repeat it a thousand times."""
    half = _LONGEST_NAME // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}"


def duration(seconds: float) -> str:
    return counted(round(seconds), "second") if seconds < 100 else f"{seconds / 60:.1f} minutes"


def counted(count: int, noun: str) -> str:
    """`count` and the noun, such as "1 epoch" or "2,000 epochs"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


ClassRow = tuple[str, metrics.ClassMetrics, str]
"""The name of a class, its metrics, and the confidence interval of its recall as text."""


class Reliability(NamedTuple):
    """The calibration and the log loss of a run. If the run has no temperature, the values before scaling are None."""

    after: metrics.Calibration
    before: metrics.Calibration | None
    log_loss: float
    log_loss_before: float | None

    def diagram(self) -> str:
        """The reliability diagram as SVG."""
        described = (
            f"Accuracy against confidence in bins; the expected calibration error is {percent(self.after.error, 1)}"
        )
        return inline(visualizations.reliability_diagram(self.after, self.before), "calibration", described)


class Page:
    """The content of a report, read from the files in `folder`. Attributes whose file does not exist are None or empty.

    Raises:
        InputError: when a required file of the run folder is missing or damaged.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.config: Config = folder.read_config()
        self.environment: dict[str, Any] = folder.read_environment()
        self.result: RunResult | None = folder.read_result() if folder.result.exists() else None
        self.history = folder.read_history() if folder.history.exists() else []
        self.lr_curve: LRCurve | None = folder.read_lr_curve()
        self.network = folder.read_network()
        self.stopped: str | None = folder.read_json(folder.stopped).get("why") if folder.stopped.exists() else None
        self.classes: tuple[str, ...] = ()
        self.logits: NDArray[np.float32] = np.empty((0, 0), np.float32)
        self.labels: NDArray[np.int64] = np.empty(0, np.int64)
        self.interpretation: Interpretation | None = None
        self._names: ImageNames | None = None
        self._train_names: ImageNames | None = None
        if self.result:
            self.classes = tuple(shortened(name) for name in folder.read_misclassified().classes)
            predictions = folder.read_predictions()
            self.logits, self.labels = predictions.logits, predictions.labels
            self.interpretation = folder.read_interpretation()
            with reading(folder.predictions):
                if not self.history or self.logits.shape[1] != len(self.classes):
                    raise ValueError(
                        f"the predictions have {self.logits.shape[1]} classes and must have {len(self.classes)}, one "
                        f"for each class name; the run has {len(self.history)} epochs and must have at least 1"
                    )
            with reading(folder.interpretation):
                if self.interpretation:
                    images = len(self.labels), self.result.train_images
                    self.interpretation.require_match(*images, classes=len(self.classes))
            if recorded := folder.read_image_names():
                with reading(folder.image_names):
                    self._names = ImageNames.validated(recorded.evaluated, len(self.labels))
                    self._train_names = ImageNames.validated(recorded.train, self.result.train_images)
        self.predictions = self.logits.argmax(axis=1) if self.result else self.labels
        self.probabilities = np.empty((0, 0))
        if self.result:
            self.probabilities = metrics.probabilities_of(self.logits, self.result.temperature)

    @property
    def changed_options(self) -> str:
        """The options that differ from those of the recipe."""
        return changed_options(self.config)

    @property
    def dataset(self) -> str:
        return dataset_name(self.environment["dataset"]["name"])

    @property
    def command(self) -> str:
        """The command that repeats the run."""
        return f"onecycle train --config {shlex.quote(str(self.folder.config))}"

    @property
    def rates_from(self) -> str:
        """Where LR min and LR max come from, in words."""
        given = [rate is not None for rate in (self.config.lr_min, self.config.lr_max)]
        return {0: "found by the LR finder", 1: "one found by the LR finder, one given", 2: "given"}[sum(given)]

    @property
    def incorrect(self) -> int:
        """The number of incorrect predictions."""
        return int((self.predictions != self.labels).sum())

    @property
    def has_names(self) -> bool:
        """Whether the images have file names."""
        return self._names is not None

    def image_name(self, image: int) -> str:
        """The file name of an evaluated image. If no names are recorded, a text such as "test image 123"."""
        return f"{self.evaluated_on} image {image}" if self._names is None else printable(self._names[image])

    def train_image_name(self, image: int) -> str:
        """The file name of a training image. If no names are recorded, a text such as "training image 123"."""
        return f"training image {image}" if self._train_names is None else printable(self._train_names[image])

    @property
    def evaluated_on(self) -> str:
        """The name of the split that the result was measured on."""
        return self.environment["dataset"].get("evaluated_on") or ("validation" if self.config.validation else "test")

    @property
    def epoch_evaluated_on(self) -> str:
        """The split that was evaluated after every epoch."""
        return self.environment["dataset"].get("epoch_evaluated_on") or self.evaluated_on

    @property
    def hardware(self) -> str:
        """The GPU, or the CPU and the number of threads, in a few words."""
        machine, plan = self.environment["hardware"], self.environment["compute_plan"]
        threads = plan.get("threads")
        if plan["device"] != "cpu":
            return str(machine.get("gpu") or plan["device"])
        cpu = str(machine.get("cpu", "a CPU"))
        return f"{cpu}, {threads} thread{'' if threads == 1 else 's'}" if threads else cpu

    @property
    def interval(self) -> tuple[float, float]:
        assert self.result
        return accuracy_interval(int((self.predictions == self.labels).sum()), len(self.labels))

    def figures(self) -> dict[str, str]:
        """The curves as SVG, by name."""
        figures = {}
        if self.history:
            evaluated_on, last = self.epoch_evaluated_on, self.history[-1]
            figures["accuracy"] = inline(
                visualizations.accuracy_curves(self.history, evaluated_on=evaluated_on),
                "accuracy",
                f"Accuracy by epoch; last epoch: {percent(last.eval_accuracy)} ({evaluated_on}), "
                f"{percent(last.train_accuracy)} (train)",
            )
            figures["loss"] = inline(
                visualizations.loss_curves(
                    self.history,
                    evaluated_on=evaluated_on,
                    label_smoothing=self.config.label_smoothing,
                    class_weights=self.config.class_weights,
                ),
                "loss",
                f"Loss by epoch; last epoch: {formatting.loss(last.eval_loss)} ({evaluated_on}), "
                f"{formatting.loss(last.train_loss)} (train)",
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
                f"Learning rate by epoch: at most {self.result.lr_max:.3g}, at the end {self.result.lr_min:.3g}",
            )
        if self.lr_curve:
            figures["lr-finder"] = inline(
                visualizations.lr_finder_curve(self.lr_curve),
                "lr-finder",
                f"Training loss against learning rate; the finder chose {self.lr_curve.lr_min:.3g} to "
                f"{self.lr_curve.lr_max:.3g}",
            )
        return figures

    def calibration(self) -> Reliability:
        """The calibration and the log loss of the probabilities, before and after temperature scaling.

        Raises:
            ValueError: when the run has no result.
        """
        plain = None
        if self.result and self.result.calibration:
            plain = metrics.probabilities_of(self.logits)
        return Reliability(
            after=metrics.calibration(self.probabilities, self.labels),
            before=None if plain is None else metrics.calibration(plain, self.labels),
            log_loss=metrics.log_loss(self.probabilities, self.labels),
            log_loss_before=None if plain is None else metrics.log_loss(plain, self.labels),
        )

    def below(self, energy_threshold: float) -> int:
        """The number of evaluated images with an energy score below `energy_threshold`."""
        return int((energy_scores_of(self.logits) < energy_threshold).sum())

    @property
    def counts(self) -> NDArray[np.int64]:
        """The confusion matrix `[C,C]`."""
        return metrics.confusion_counts(self.labels, self.predictions, len(self.classes))

    def matrix_plot(self) -> str | None:
        """The confusion matrix as a plot. None if there are few enough classes for a table."""
        if len(self.classes) <= MOST_IN_MATRIX:
            return None
        figure = visualizations.confusion_matrix(self.labels, self.predictions, self.classes)
        return inline(figure, "confusion", "Confusion matrix: how often each true class was predicted as each class")

    def confusions(self) -> list[tuple[str, str, int]]:
        """The most frequent confusions: true class, predicted class, count."""
        counts = self.counts
        np.fill_diagonal(counts, 0)
        order = np.argsort(-counts, axis=None, kind="stable")[:CONFUSIONS]
        pairs = [divmod(int(place), len(self.classes)) for place in order]
        return [(self.classes[t], self.classes[p], int(counts[t, p])) for t, p in pairs if counts[t, p]]

    def class_rows(self) -> Iterator[ClassRow]:
        for name, found in zip(self.classes, metrics.class_metrics(self.counts), strict=True):
            low, high = accuracy_interval(found.correct, found.images) if found.images else (None, None)
            yield name, found, f"{percent(low, 1)} to {percent(high, 1)}" if found.images else "–"

    def worst_classes(self) -> tuple[list[ClassRow], list[ClassRow]]:
        """The rows of the classes in two lists: the report shows the first list and folds the second.

        With more than `MOST_IN_MATRIX` classes, the rows are sorted by recall and then by F1, lowest first, and the
        first list has the first `WORST_CLASSES` rows. Otherwise the first list has all rows, in the order of classes.
        """
        rows = list(self.class_rows())
        if len(rows) <= MOST_IN_MATRIX:
            return rows, []

        def rank(row: ClassRow) -> tuple[float, float]:
            recall, f1 = row[1].recall, row[1].f1
            return (math.inf if recall is None else recall), f1 or 0  # a class without images is last

        rows.sort(key=rank)
        return rows[:WORST_CLASSES], rows[WORST_CLASSES:]
