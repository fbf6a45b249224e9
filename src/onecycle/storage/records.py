"""The records of a run, and their conversion to and from JSON and arrays. Plots and reports use only these records."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

SAMPLE_MARGIN = 0.02  # accuracy by which the training sample may fall short of the training accuracy


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One line of `history.jsonl`. Accuracies are fractions, and losses are means over samples.

    `lr` is the learning rate of the epoch's last step. `eval_loss` and `eval_accuracy` are measured on the split
    `RunResult.evaluated_on`. The training values are collected during the epoch, on augmented images.
    """

    epoch: int  # the first epoch is 1
    lr: float
    train_loss: float
    train_accuracy: float
    eval_loss: float
    eval_accuracy: float
    seconds: float
    training_seconds: float | None = None  # without the evaluation; None in runs of the package's first version


History = list[EpochRecord]


@dataclass(frozen=True, kw_only=True)
class LRCurve:
    """The sweep of an LR finder, and the learning rates derived from it.

    `lrs`, `losses` (raw) and `smoothed` have one entry per step. `lr_min` and `lr_max` are the learning rates for
    the schedule, by the rules in `train.lr_finder`. `suggestions` maps the names of other rules to their
    learning rates.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestions: dict[str, float]  # "steepest", "valley", "minimum/10"
    lr_min: float
    lr_max: float
    stopped: str  # why the sweep ended: "completed", "diverged" or "not finite"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        sequences = ("lrs", "losses", "smoothed")
        return cls(**{**values, **{name: tuple(values[name]) for name in sequences}})


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The result of a run: `result.json`. Accuracies are fractions. The main result is `eval_accuracy`.

    `eval_accuracy` is the accuracy at the last epoch. `best_eval_accuracy` is the highest of all epochs. It is not the
    main result, because the best epoch is chosen on the evaluation split.
    """

    recipe: str
    dataset: str
    fingerprint: str
    evaluated_on: str  # "test" or "validation"
    train_images: int
    eval_images: int  # number of images in the split `evaluated_on`
    notes: tuple[str, ...]  # warnings about the data, such as an unverified archive
    seed: int
    parameters: int
    lr_min: float
    lr_max: float
    epochs: int
    train_accuracy: float
    eval_loss: float
    eval_accuracy: float
    best_eval_accuracy: float
    best_epoch: int
    seconds: float  # duration of the whole run: LR finder, training, evaluation
    images_per_second: float  # trained images per second, over all epochs including their evaluations
    peak_memory_gib: float  # of the training process
    # of the final network on a sample of the training images, without augmentation
    train_sample_accuracy: float | None = None
    train_sample_images: int = 0
    tta_accuracy: float | None = None  # with test-time augmentation, if configured
    tta_seconds: float | None = None  # duration of the evaluation with test-time augmentation

    @property
    def warning(self) -> str | None:
        """A sentence that doubts the result, if the final network is worse on its training images than during training.

        Without augmentation the images are easier, so the accuracy on them should be at least the training accuracy.
        The sample may fall short of it by `SAMPLE_MARGIN` and three standard errors.
        """
        if self.train_sample_accuracy is None:
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
        return cls(**{**values, "notes": tuple(values["notes"])})


@dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """One layer of a network: a numbered name such as "ReLU-3", the output shape without the batch dimension, and the
    number of parameters.
    """

    layer: str
    output_shape: tuple[int, ...]
    parameters: int


@dataclass(frozen=True, kw_only=True)
class NetworkSummary:
    """The layers of a network in execution order. Sizes are in MB (2^20 bytes), for one float32 image."""

    input_shape: tuple[int, int, int]  # C,H,W
    layers: tuple[LayerSummary, ...]
    parameters: int
    trainable_parameters: int

    @property
    def input_mb(self) -> float:
        return math.prod(self.input_shape) * 4 / 2**20

    @property
    def forward_backward_mb(self) -> float:
        """The size of all layers' outputs, and of the gradients of these outputs."""
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
        layers = tuple(
            LayerSummary(**{**layer, "output_shape": tuple(layer["output_shape"])}) for layer in values["layers"]
        )
        return cls(
            input_shape=tuple(values["input_shape"]),
            layers=layers,
            parameters=values["parameters"],
            trainable_parameters=values["trainable_parameters"],
        )


@dataclass(frozen=True, kw_only=True)
class Misclassified:
    """Incorrect predictions of a run, most confident first. They are stored in `misclassified.npz`."""

    indices: NDArray[np.int64]  # [M] indices into the evaluated split
    images: NDArray[np.uint8]  # [M,H,W,3]
    labels: NDArray[np.int64]  # [M] the true classes
    predictions: NDArray[np.int64]  # [M] the predicted classes
    probabilities: NDArray[np.float32]  # [M,C] softmax of the logits
    classes: tuple[str, ...]

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        return {**vars(self), "classes": np.array(self.classes)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Self:
        return cls(**{**arrays, "classes": tuple(arrays["classes"].tolist())})  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True, eq=False)
class Interpretation:
    """Explanations and data issues of a run. They are stored in `interpretation.npz`.

    With this record, a report needs neither the network nor the data. Indices refer to the evaluated split, or to the
    training set if the field's name starts with `train`. Lists are ranked, most suspicious first. For a long list, only
    the images of its first entries are stored.
    """

    misclassified: NDArray[np.int64]  # [M] indices of incorrect predictions, most confident first
    misclassified_images: NDArray[np.uint8]  # [M,H,W,3]
    heatmaps: NDArray[np.uint8]  # [M,h,w] Grad-CAM of the predicted class, 255 at the maximum
    label_issues: NDArray[np.int64]  # [S] indices of images whose label may be wrong
    label_issue_images: NDArray[np.uint8]  # [s,H,W,3] images of the first s label issues
    train_label_issues: NDArray[np.int64]  # [T] indices of training images whose label may be wrong
    train_label_issue_margins: NDArray[np.float32]  # [T] label logit minus largest other logit, mean over epochs
    train_label_issue_labels: NDArray[np.int64]  # [T] the labels that may be wrong
    train_label_issue_predictions: NDArray[np.int64]  # [t] for the first t issues, the most likely other class
    train_label_issue_images: NDArray[np.uint8]  # [t,H,W,3] images of the first t training label issues
    duplicates: NDArray[np.int64]  # [D,2] indices of an evaluated image and of the most similar training image
    duplicate_similarities: NDArray[np.float32]  # [D] correlation of the two images at 8×8 pixels
    duplicate_labels: NDArray[np.int64]  # [D,2] labels of both images
    duplicate_images: NDArray[np.uint8]  # [d,2,H,W,3] images of the first d duplicates

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        return vars(self)

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Self:
        return cls(**arrays)
