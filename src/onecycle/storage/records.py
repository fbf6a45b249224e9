"""The records of a run, and their conversion to and from JSON and arrays. Plots and reports use only these records."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from onecycle.core.class_names import require_class_names
from onecycle.core.option_groups import MOST_STEPS
from onecycle.core.out_of_distribution import LARGEST_SCORE
from onecycle.core.temperature import HIGHEST, LOWEST
from onecycle.core.validated import AtLeastOne, Between, Count, Fraction, Shape, validated

Split = Literal["test", "validation"]
"""A set on which a network is evaluated."""

Seconds = Annotated[float, Between(0, 1e9)]  # up to 30 years

SAMPLE_MARGIN = 0.02  # the accuracy on the training sample may be this much below the training accuracy

_Rate = Annotated[float, Between(1e-30, 1e30)]  # a learning rate of a sweep; positive, because the axis is logarithmic
RateOfRun = Annotated[float, Between(0, 1e30)]
EpochNumber = Annotated[int, Between(1, MOST_STEPS)]


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One line of `history.jsonl`. Accuracies are fractions, and losses are means over samples.

    `lr` is the learning rate of the epoch's last step. `eval_loss` and `eval_accuracy` are measured on the split
    `RunResult.epoch_evaluated_on`. The training values are collected during the epoch, on augmented images.
    """

    epoch: EpochNumber  # the first epoch is 1
    lr: RateOfRun
    train_loss: float
    train_accuracy: Fraction
    eval_loss: float
    eval_accuracy: Fraction
    seconds: float
    training_seconds: float | None = None  # excludes the evaluation; None in runs of the package's first version

    @classmethod
    def from_json(cls, values: object) -> Self:
        return validated(cls, values)


History = list[EpochRecord]


@dataclass(frozen=True, kw_only=True)
class LRCurve:
    """The sweep of an LR finder, and the learning rates derived from it.

    `lrs`, `losses` (raw) and `smoothed` have one entry per step. `lr_min` and `lr_max` are the learning rates for
    the schedule, by the rules in `train.lr_finder`. `suggestions` maps the names of other rules to their
    learning rates.
    """

    lrs: tuple[_Rate, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestions: dict[str, _Rate]  # the keys are "steepest", "valley" and "minimum/10"
    lr_min: _Rate
    lr_max: _Rate
    stopped: str  # why the sweep ended: "completed", "diverged" or "not finite"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        found = validated(cls, values)
        if not 0 < len(found.lrs) == len(found.losses) == len(found.smoothed):
            steps = f"{len(found.lrs)} learning rates, {len(found.losses)} losses, {len(found.smoothed)} smoothed"
            raise ValueError(f"it has {steps}; these three numbers must be equal, and at least 1")
        return found


@dataclass(frozen=True, kw_only=True)
class FittedTemperature:
    """The temperature of a network, and the images whose logits were used to fit it.

    The network that computed the logits was not trained on these images. If `source` is "validation", they are the
    validation images of the run. If `source` is "second network", they are a part of the training images of the run.
    A second network was trained on the other training images, and computed the logits.
    """

    temperature: Annotated[float, Between(LOWEST, HIGHEST)]
    images: AtLeastOne
    source: Literal["validation", "second network"]

    @property
    def fitted_on(self) -> str:
        """A description of the images, for example "5,000 validation images"."""
        kind = {"validation": "validation images", "second network": "training images held out from a second network"}
        return f"{self.images:,} {kind[self.source]}"


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The result of a run: `result.json`. Accuracies are fractions. The main result is `eval_accuracy`.

    `eval_accuracy` is the accuracy at the last epoch. `best_eval_accuracy` is the highest accuracy of any epoch on
    the split `epoch_evaluated_on`. The best epoch is chosen on that split, so its accuracy is not the main result.
    """

    recipe: str
    dataset: str
    fingerprint: str
    evaluated_on: Split
    train_images: AtLeastOne
    eval_images: AtLeastOne  # number of images in the split `evaluated_on`
    notes: tuple[str, ...]  # warnings about the data, such as an unverified archive
    seed: int
    parameters: Count
    lr_min: RateOfRun
    lr_max: RateOfRun
    epochs: Count
    train_accuracy: Fraction
    eval_loss: float
    eval_accuracy: Fraction
    best_eval_accuracy: Fraction
    best_epoch: Count
    seconds: Seconds  # duration of the whole run: LR finder, training, evaluation
    images_per_second: float  # trained images per second, over all epochs including their evaluations
    peak_memory_gib: float  # the peak memory of the training process
    # The accuracy of the final network on a sample of the training images, without augmentation.
    train_sample_accuracy: Fraction | None = None
    train_sample_images: Count = 0
    tta_accuracy: Fraction | None = None  # accuracy with test-time augmentation; None if it is off
    tta_seconds: Seconds | None = None  # duration of the evaluation with test-time augmentation
    # The size of the validation set, and the accuracy on it at the last epoch. Both are set only if the data also has a
    # test set.
    validation_images: Count = 0
    validation_accuracy: Fraction | None = None
    calibration: FittedTemperature | None = None  # None: the probabilities are not calibrated
    # At least 95 % of the images in the split `evaluated_on` have this energy score or a higher one. The field is None
    # if the split has fewer than 20 images.
    energy_threshold: Annotated[float, Between(-LARGEST_SCORE, LARGEST_SCORE)] | None = None

    @property
    def temperature(self) -> float:
        """The number by which the logits are divided before the softmax."""
        return self.calibration.temperature if self.calibration else 1.0

    @property
    def epoch_evaluated_on(self) -> Split:
        """The split that was evaluated after every epoch."""
        return "validation" if self.validation_images else self.evaluated_on

    @property
    def warning(self) -> str | None:
        """A warning if the final network is worse on its training images than it was during training. Otherwise None.

        The final network is evaluated on a sample of the training images, without augmentation. These images are easier
        than augmented ones, so the accuracy on them should be at least the training accuracy. A shortfall of up to
        `SAMPLE_MARGIN` plus three standard errors causes no warning.
        """
        if self.train_sample_accuracy is None or not self.train_sample_images:
            return None
        variances = [share * (1 - share) for share in (self.train_accuracy, self.train_sample_accuracy)]
        error = math.sqrt(max(variances) / self.train_sample_images)
        if self.train_sample_accuracy >= self.train_accuracy - SAMPLE_MARGIN - 3 * error:
            return None
        return (
            f"Do not trust this network: it classifies only {self.train_sample_accuracy:.1%} of "
            f"{self.train_sample_images:,} training images correctly, although it reached {self.train_accuracy:.1%} in "
            "training. The statistics of its normalization layers may not fit its weights, or its last steps may have "
            "damaged it: use more steps (more --epochs or a smaller --batch-size), or a lower --lr-max"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return validated(cls, values)


@dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """One layer of a network.

    `layer` is a numbered name such as "ReLU-3". `output_shape` does not include the batch dimension. `parameters` is
    the number of parameters.
    """

    layer: str
    output_shape: tuple[Count, ...]
    parameters: Count


@dataclass(frozen=True, kw_only=True)
class NetworkSummary:
    """The layers of a network in execution order. Sizes are in MB (2^20 bytes), for one float32 image."""

    input_shape: tuple[Count, Count, Count]  # C,H,W
    layers: tuple[LayerSummary, ...]
    parameters: Count
    trainable_parameters: Count

    @property
    def input_mb(self) -> float:
        return math.prod(self.input_shape) * 4 / 2**20

    @property
    def forward_backward_mb(self) -> float:
        """The size of all layer outputs plus the size of the outputs' gradients, in MB."""
        return 2 * sum(math.prod(layer.output_shape) for layer in self.layers) * 4 / 2**20

    @property
    def parameters_mb(self) -> float:
        return self.parameters * 4 / 2**20

    @property
    def total_mb(self) -> float:
        return self.input_mb + self.forward_backward_mb + self.parameters_mb

    def to_json(self) -> dict[str, Any]:
        sizes = ("input_mb", "forward_backward_mb", "parameters_mb", "total_mb")
        return {**asdict(self), **{name: round(getattr(self, name), 2) for name in sizes}}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return validated(cls, {name: value for name, value in values.items() if not name.endswith("_mb")})


@dataclass(frozen=True, kw_only=True)
class Misclassified:
    """Incorrect predictions of a run, most confident first. They are stored in `misclassified.npz`."""

    indices: Annotated[NDArray[np.int64], Shape("M")]  # indices into the evaluated split
    images: Annotated[NDArray[np.uint8], Shape("M H W 3")]
    labels: Annotated[NDArray[np.int64], Shape("M")]  # the true classes
    predictions: Annotated[NDArray[np.int64], Shape("M")]  # the predicted classes
    probabilities: Annotated[NDArray[np.float32], Shape("M C")]  # calibrated if the run is calibrated
    classes: tuple[str, ...]

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        return {**vars(self), "classes": np.array(self.classes)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Self:
        classes = require_class_names(arrays["classes"].tolist())
        found = validated(cls, {**arrays, "classes": classes})
        _require_below(len(classes), "classes", found.labels, found.predictions)
        _require_pixels(found.images)
        if found.probabilities.shape[1] != len(classes):
            raise ValueError(f"it has probabilities for {found.probabilities.shape[1]} classes, not {len(classes)}")
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluatedLogits:
    """The outputs of the final network for the evaluated split. They are stored in `predictions.npz`."""

    logits: Annotated[NDArray[np.float32], Shape("N C")]
    labels: Annotated[NDArray[np.int64], Shape("N")]

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Self:
        found = validated(cls, arrays)
        _require_below(found.logits.shape[1], "classes", found.labels)
        if not found.labels.size:
            raise ValueError("it has no images")
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class NamesOfImages:
    """The file names of all images of a run. They are stored in `image_names.npz` if the images have names.

    The names are in UTF-8, and each is ended by a zero byte.
    """

    evaluated: Annotated[NDArray[np.uint8], Shape("E")]  # the names of the images in the evaluated split
    train: Annotated[NDArray[np.uint8], Shape("T")]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingMargins:
    """For each training image, the mean margin of its label. It is stored in `training_margins.npz`."""

    margins: Annotated[NDArray[np.float32], Shape("T")]


@dataclass(frozen=True, kw_only=True, eq=False)
class AugmentedImages:
    """A few training images before and after augmentation. They are stored in `augmentations.npz`."""

    originals: Annotated[NDArray[np.uint8], Shape("N H W 3")]
    augmented: Annotated[NDArray[np.uint8], Shape("N H W 3")]

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Self:
        found = validated(cls, arrays)
        if not found.originals.size:
            raise ValueError("it has no images")
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Interpretation:
    """Explanations and data issues of a run. They are stored in `interpretation.npz`.

    With this record, a report needs neither the network nor the data. Indices refer to the evaluated split, or to the
    training set if the field's name starts with `train`. Lists are ranked, most suspicious first. For a long list, only
    the images of its first entries are stored.
    """

    misclassified: Annotated[NDArray[np.int64], Shape("M")]  # indices of incorrect predictions, most confident first
    misclassified_images: Annotated[NDArray[np.uint8], Shape("m H W 3")]  # images of the first m predictions
    heatmaps: Annotated[NDArray[np.uint8], Shape("m h w")]  # Grad-CAM of the predicted class, 255 at the maximum
    label_issues: Annotated[NDArray[np.int64], Shape("S")]  # indices of images whose label may be wrong
    label_issue_images: Annotated[NDArray[np.uint8], Shape("s H W 3")]  # images of the first s label issues
    train_label_issues: Annotated[NDArray[np.int64], Shape("T")]  # indices of training images whose label may be wrong
    # The margin is the logit of the label minus the largest other logit. This field is the mean margin over the epochs.
    train_label_issue_margins: Annotated[NDArray[np.float32], Shape("T")]
    train_label_issue_labels: Annotated[NDArray[np.int64], Shape("T")]  # the labels that may be wrong
    # For each of the first t training label issues, the most likely class other than the label.
    train_label_issue_predictions: Annotated[NDArray[np.int64], Shape("t")]
    train_label_issue_images: Annotated[NDArray[np.uint8], Shape("q H W 3")]  # images of the first q of these issues
    # Pairs of indices: an evaluated image, and the training image that is most similar to it.
    duplicates: Annotated[NDArray[np.int64], Shape("D 2")]
    duplicate_similarities: Annotated[NDArray[np.float32], Shape("D")]  # correlation of the two images at 8×8 pixels
    duplicate_labels: Annotated[NDArray[np.int64], Shape("D 2")]  # labels of both images
    duplicate_images: Annotated[NDArray[np.uint8], Shape("d 2 H W 3")]  # images of the first d duplicates

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        return vars(self)

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Self:
        found = validated(cls, arrays)
        issues = min(len(found.train_label_issues), len(found.train_label_issue_predictions))
        for images, listed in (
            (found.misclassified_images, len(found.misclassified)),
            (found.label_issue_images, len(found.label_issues)),
            (found.train_label_issue_images, issues),
            (found.duplicate_images, len(found.duplicates)),
        ):
            if len(images) > listed:
                raise ValueError(f"it has {len(images)} images for {listed} entries")
        # Every run has training images and pairs to list, but perhaps no incorrect prediction.
        if not found.train_label_issue_images.size or not found.duplicate_images.size:
            raise ValueError("it has no images of training label issues, or none of duplicates")
        _require_pixels(found.heatmaps[..., None])
        return found

    def require_match(self, images: int, train_images: int, classes: int) -> None:
        """Check that every index fits the given numbers of evaluated images, training images and classes.

        Raises:
            ValueError: when an index is negative or too large.
        """
        _require_below(images, "images", self.misclassified, self.label_issues, self.duplicates[:, 0])
        _require_below(train_images, "training images", self.train_label_issues, self.duplicates[:, 1])
        labels = self.train_label_issue_labels, self.train_label_issue_predictions, self.duplicate_labels
        _require_below(classes, "classes", *labels)


@dataclass(frozen=True, kw_only=True)
class DatasetRecord:
    """The values in `environment.json` that describe the data, limited to those that a report needs."""

    name: str
    fingerprint: str
    notes: tuple[str, ...]
    evaluated_on: Split | None = None  # None in runs of older versions, which wrote neither this field nor the next
    epoch_evaluated_on: Split | None = None


@dataclass(frozen=True, kw_only=True)
class PlanRecord:
    """The values of the compute plan that a report needs from `environment.json`."""

    device: str
    precision: str
    threads: Count | None = None


@dataclass(frozen=True, kw_only=True)
class EnvironmentRecord:
    """The values that a report needs from `environment.json`."""

    command: str
    date: str
    system: str
    versions: dict[str, str]
    hardware: dict[str, Any]
    compute_plan: dict[str, Any]
    dataset: dict[str, Any]
    commit: str | None = None


def require_environment(values: dict[str, Any]) -> None:
    """Check that the `values` from `environment.json` include everything that a report needs.

    Raises:
        ValueError: when a value is missing or of another type.
    """
    _require_fields(EnvironmentRecord, values)
    _require_fields(DatasetRecord, values["dataset"])
    _require_fields(PlanRecord, values["compute_plan"])


def _require_fields(record: type, values: dict[str, Any]) -> None:
    known = [field.name for field in fields(record)]
    validated(record, {name: values[name] for name in known if name in values})


def _require_pixels(*images: NDArray[np.uint8]) -> None:
    """Raise a ValueError if `images` `[N,H,W,C]` have no pixels. There may be no images."""
    if any(0 in each.shape[1:] for each in images):
        raise ValueError("its images have no pixels")


def _require_below(end: int, what: str, *indices: NDArray[np.int64]) -> None:
    """Raise a ValueError unless all `indices` are from 0 to `end` - 1. The message calls the indexed items `what`."""
    if any(each.size and not 0 <= each.min() <= each.max() < end for each in indices):
        raise ValueError(f"it has an index outside the {end} {what}")
