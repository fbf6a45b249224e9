"""What a run writes down: plain values, to and from JSON and npz. Everything shown about a run is drawn from these."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One line of `history.jsonl`. Accuracies are fractions, losses means over samples, `lr` the rate of the last step.

    `test_loss` and `test_accuracy` are those of the split the run evaluates on, which `RunResult.evaluated_on` names.
    The training figures are gathered during the epoch, on the augmented images.
    """

    epoch: int  # 1-based: the first epoch is 1
    lr: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float
    training_seconds: float | None = None  # without the evaluation; the first version did not measure it


History = list[EpochRecord]


@dataclass(frozen=True, kw_only=True)
class LRCurve:
    """An LR finder's sweep and what was read off it.

    `lrs`, `losses` (raw) and `smoothed` have one entry a step, in sweep order. `suggestions` are named learning rates;
    `lr_min` and `lr_max` are the pair for the schedule, each by the rule that `lr_finder` documents.
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
    """What a run came to: `result.json`. Accuracies are fractions; the headline is `test_accuracy`, the last epoch's.

    `best_test_accuracy` is the highest of the history, chosen by looking at the evaluation split: shown, never claimed.
    """

    recipe: str
    dataset: str
    fingerprint: str
    evaluated_on: str  # "test" or "validation"
    train_images: int
    test_images: int  # of the split evaluated on
    notes: tuple[str, ...]  # what a reader must know about the data: an unverified archive, a stand-in set
    seed: int
    parameters: int
    lr_min: float
    lr_max: float
    epochs: int
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    best_test_accuracy: float
    best_epoch: int
    seconds: float  # the whole run: LR finder, training, evaluation
    images_per_second: float  # training images over the time of the epochs, each with its evaluation
    peak_memory_gib: float  # of the training process
    tta_accuracy: float | None = None  # with test-time augmentation, where the run was asked for it
    tta_seconds: float | None = None  # that evaluation took

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return cls(**{**values, "notes": tuple(values["notes"])})


@dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """One layer of a network: its numbered name, the shape of its output without the batch, its own parameters."""

    layer: str
    output_shape: tuple[int, ...]
    parameters: int


@dataclass(frozen=True, kw_only=True)
class NetworkSummary:
    """A network layer by layer, in running order. Sizes are in MB of 2^20 bytes for one image, at float32."""

    input_shape: tuple[int, int, int]  # C,H,W
    layers: tuple[LayerSummary, ...]
    parameters: int
    trainable_parameters: int

    @property
    def input_mb(self) -> float:
        return math.prod(self.input_shape) * 4 / 2**20

    @property
    def forward_backward_mb(self) -> float:
        """Every layer's output is held once going forward and once, as its gradient, coming back."""
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
class Mistakes:
    """The incorrect predictions a run shows, most confident first: `mistakes.npz`."""

    indices: NDArray[np.int64]  # [M] positions in the evaluated split
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
    """What only the network or the data can tell, kept so that a report needs neither: `interpretation.npz`.

    Positions are those in the evaluated split, or in the training set where the name says so. Lists are ranked, the
    most suspicious first; of the longer ones only the first have their images.
    """

    mistakes: NDArray[np.int64]  # [M] positions of incorrect predictions, most confident first
    mistake_images: NDArray[np.uint8]  # [M,H,W,3]
    heat: NDArray[np.uint8]  # [M,h,w] Grad-CAM for the predicted class, 255 where it is greatest
    suspects: NDArray[np.int64]  # [S] positions of images whose label may be wrong
    suspect_images: NDArray[np.uint8]  # [s,H,W,3] of the first
    train_suspects: NDArray[np.int64]  # [T] the same in the training set
    train_suspect_margins: NDArray[np.float32]  # [T] means over the epochs
    train_suspect_labels: NDArray[np.int64]  # [T]
    train_suspect_guesses: NDArray[np.int64]  # [t] of the first: the network's likeliest class but for the label
    train_suspect_images: NDArray[np.uint8]  # [t,H,W,3]
    duplicates: NDArray[np.int64]  # [D,2] positions: an evaluated image, the training image that is most like it
    duplicate_similarities: NDArray[np.float32]  # [D] correlations
    duplicate_labels: NDArray[np.int64]  # [D,2]
    duplicate_images: NDArray[np.uint8]  # [d,2,H,W,3] of the first

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        return vars(self)

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Self:
        return cls(**arrays)
