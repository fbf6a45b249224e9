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
