"""What a run is asked to do. A recipe is a value of `Config`; a variant is `dataclasses.replace(BASELINE, …)`."""

import json
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

from onecycle.core.errors import InputError

PADDING = 4  # pixels that an image is padded by on each side before it is cropped again
HOLE = 8  # side of the square that CoarseDropout fills
SMALLEST_SIZE = 9  # of images that the whitened network takes

Recipe = Literal["baseline", "quick", "fast"]
Network = Literal["custom_resnet", "whitened_convnet"]
Activation = Literal["relu", "hardswish"]
Optimization = Literal["adam", "muon", "sgd"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "float32", "bfloat16"]
Augmentation = Literal["albumentations", "batched"]
Flip = Literal["random", "alternating"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """What a run is asked to do.

    Raises:
        InputError: when a value is not allowed; the message names the field, the value and what is allowed.
    """

    recipe: Recipe = "baseline"
    """Name of the recipe the values start from."""

    data: str = "cifar10"
    """cifar10, digits, auto (CIFAR-10 if it can be had, else digits), or a path: an archive or a folder of images."""

    size: int = 32
    """Height and width of the images: others are resized by their short side, and their centre is cropped."""

    epochs: int = 24
    """Passes over the training set."""

    batch_size: int = 512
    """Images a step; the last batch of an epoch may be shorter and counts."""

    shards: int = 1
    """Parts that each batch is cut into, with batch norm of their own: what several processes share out."""

    lr_max: float | None = None
    """Learning rate at the peak; found by the LR finder when left out."""

    lr_min: float | None = None
    """Learning rate at both ends of the cycle; found by the LR finder when left out."""

    peak_fraction: float = 5 / 24
    """Part of all steps after which the peak is reached: the end of epoch 5 of 24."""

    seed: int = 0
    """Decides initial weights, data order and augmentation."""

    validation: int = 0
    """Evaluate on this many images held out of the training set, instead of on the test set."""

    limit: int | None = None
    """Use only this many images of each split, drawn evenly from the classes."""

    device: Device = "auto"
    """Where to train; auto takes a GPU if there is one."""

    precision: Precision = "auto"
    """Arithmetic of the forward and backward pass; auto takes bfloat16 where it is measured to be faster."""

    network: Network = "custom_resnet"
    """The custom ResNet, or a smaller network whose first layer whitens."""

    widths: tuple[int, ...] = (64, 256, 256)
    """Channels of the whitened network's three groups."""

    whitening: bool = True
    """Whether the filters of the whitened network's first layer are fixed to whiten, or learned like the others."""

    whitening_epochs: int | None = None
    """Epochs in which the biases of a first layer that whitens learn, until they are fixed; all if left out."""

    activation: Activation = "relu"
    """What follows the whitened network's convolutions."""

    dirac: bool = True
    """Whether the whitened network's convolutions begin by passing their inputs on, or at random."""

    optimizer: Optimization = "adam"
    """adam; muon for the filters, with SGD for the rest; or sgd for all. The last two are for the whitened network."""

    bias_lr_scale: float = 1
    """How many times faster than the rest of what SGD trains the biases of norms learn."""

    label_smoothing: float = 0
    """Part of each label that is spread evenly over all classes."""

    class_weights: bool = False
    """Weigh classes in the training loss so that each counts alike, however many images it has."""

    sizes: tuple[int, ...] = ()
    """Train on images resized to these sides, each for an equal part of the steps; the last is --size."""

    augmentation: Augmentation = "albumentations"
    """albumentations, image by image in worker processes, or batched: the same on whole batches, on the device."""

    padding: int = PADDING
    """Pixels that an image is padded by on each side before it is cropped again; albumentations takes 4."""

    hole: int = HOLE
    """Side of the square that is filled in; 0 fills none; albumentations takes 8."""

    flip: Flip = "random"
    """Flip half of the images, or each in every other epoch; albumentations flips at random."""

    brightness: float = 0
    """Brighten or darken each image by up to this part of the full range; albumentations takes 0."""

    contrast: float = 0
    """Change each image's contrast by up to this part; albumentations takes 0."""

    test_time_augmentation: bool = False
    """At the end also evaluate the mean over several views of an image; its accuracy stands beside the usual one."""

    workers: int = 1
    """Processes in which albumentations runs; the result does not depend on their number."""

    report: bool = True
    """At the end look into the network and its data, and write a page about the run."""

    tensorboard: bool = False
    """Also write what TensorBoard shows, into the run's folder, while training."""

    out: Path = Path("runs")
    """Folder in which the run's own folder is made."""

    def __post_init__(self) -> None:
        for field, hint in typing.get_type_hints(type(self)).items():
            _require(self, field, _fits(getattr(self, field), hint), _in_words(hint))
        for field in ("size", "epochs", "batch_size", "shards"):
            _require(self, field, getattr(self, field) >= 1, "at least 1")
        _require(self, "shards", self.shards <= self.batch_size, f"at most --batch-size, which is {self.batch_size}")
        _require(self, "widths", len(self.widths) == 3 and min(self.widths) >= 1, "three numbers of channels")
        _require(
            self, "sizes", all(size >= SMALLEST_SIZE for size in self.sizes), f"sides of {SMALLEST_SIZE} pixels or more"
        )
        _require(self, "whitening_epochs", self.whitening_epochs is None or self.whitening_epochs >= 0, "at least 0")
        _require(self, "label_smoothing", 0 <= self.label_smoothing < 1, "from 0 to below 1")
        for field in ("brightness", "contrast"):
            _require(self, field, 0 <= getattr(self, field) <= 1, "from 0 to 1")
        _require(self, "bias_lr_scale", 0 < self.bias_lr_scale < float("inf"), "a positive number")
        for field in ("padding", "hole"):
            _require(self, field, getattr(self, field) >= 0, "at least 0")
        if self.augmentation == "albumentations":
            self._require_fixed("albumentations", padding=PADDING, hole=HOLE, flip="random", brightness=0, contrast=0)
        if self.network == "custom_resnet":
            self._require_fixed("the custom ResNet", widths=(64, 256, 256), activation="relu", sizes=())
            self._require_fixed("the custom ResNet", whitening=True, whitening_epochs=None, dirac=True)
        ways_out = f"give --sizes {self.size}, or several"
        _require(
            self, "sizes", not self.sizes or self.sizes[-1] == self.size, f"sides that end with --size; {ways_out}"
        )
        if self.optimizer == "adam":
            self._require_fixed("adam", bias_lr_scale=1, whitening_epochs=None)
        else:
            _require(self, "optimizer", self.network != "custom_resnet", "adam for the custom ResNet")
        for field in ("seed", "validation", "workers"):
            _require(self, field, getattr(self, field) >= 0, "at least 0")
        _require(self, "seed", self.seed < 2**64, "below 2**64")
        _require(self, "limit", self.limit is None or self.limit >= 1, "at least 1")
        infinity = float("inf")
        _require(self, "lr_max", self.lr_max is None or 0 < self.lr_max < infinity, "a positive number")
        _require(self, "lr_min", self.lr_min is None or 0 <= self.lr_min < infinity, "a number from 0 up")
        if self.lr_min is not None and self.lr_max is not None:
            _require(self, "lr_min", self.lr_min <= self.lr_max, f"at most lr_max, which is {self.lr_max}")
        _require(self, "peak_fraction", 0 <= self.peak_fraction < 1, "from 0 to below 1")

    def _require_fixed(self, what: str, **values: object) -> None:
        for field, value in values.items():
            _require(self, field, getattr(self, field) == value, f"{value} with {what}")

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "widths": list(self.widths), "sizes": list(self.sizes), "out": str(self.out)}

    def defining_values(self) -> dict[str, Any]:
        """The values that a run's result depends on, by field."""
        return {name: value for name, value in self.to_json().items() if name not in _WITHOUT_EFFECT}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            InputError: on a field that `Config` does not have, or a value that is not allowed.
        """
        known = sorted(field.name for field in fields(cls))
        if unknown := sorted(values.keys() - set(known)):
            raise InputError(f"configuration field {unknown[0]!r} is not known; the fields are {', '.join(known)}")
        if isinstance(out := values.get("out"), str):
            values = {**values, "out": Path(out)}
        for field in ("widths", "sizes"):
            if isinstance(values.get(field), list):
                values = {**values, field: tuple(values[field])}
        return cls(**values)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The configuration a run saved in its `config.json`.

        Raises:
            InputError: when the file cannot be read, is not JSON or holds something else.
        """
        try:
            values = json.loads(path.read_text())
        except OSError as error:
            raise InputError(f"cannot read the configuration {path}: {error.strerror}") from error
        except ValueError as error:
            raise InputError(f"{path} is not a configuration: {error}") from error
        if not isinstance(values, dict):
            raise InputError(f"{path} is not a configuration: it must hold one JSON object")
        try:
            return cls.from_json(values)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


# The place of the data, the number of workers, and what is written where change no result.
_WITHOUT_EFFECT = ("data", "workers", "out", "report", "tensorboard")


def _require(config: Config, field: str, holds: bool, allowed: str) -> None:
    if not holds:
        option = "--" + field.replace("_", "-")
        raise InputError(f"{option} is {getattr(config, field)!r}; it must be {allowed}")


def _fits(value: object, hint: Any) -> bool:
    if typing.get_origin(hint) is Literal:
        return value in get_args(hint)
    if isinstance(hint, types.UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(part, get_args(hint)[0]) for part in value)
    if hint is bool:
        return isinstance(value, bool)
    return isinstance(value, int | float if hint is float else hint) and not isinstance(value, bool)


def _in_words(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(get_args(hint))
    if isinstance(hint, types.UnionType):
        return _in_words(get_args(hint)[0])
    if typing.get_origin(hint) is tuple:
        return "whole numbers"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}[hint]


BASELINE = Config()
"""The specification: the custom ResNet on CIFAR-10, batch 512, one cycle over 24 epochs with its peak at epoch 5."""

QUICK = Config(
    recipe="quick",
    network="whitened_convnet",
    widths=(64, 160, 256),
    whitening_epochs=1,
    epochs=4,
    batch_size=1000,
    optimizer="muon",
    bias_lr_scale=64,
    label_smoothing=0.2,
    sizes=(24, 28, 32),
    augmentation="batched",
    padding=2,
    hole=0,
    flip="alternating",
    lr_max=0.248,
    lr_min=0.0,
    peak_fraction=0.0,
)
"""Over 90 % on CIFAR-10, in a minute on two cores of a recent Xeon; see results/studies/quick."""

FAST = replace(
    QUICK,
    recipe="fast",
    widths=(64, 256, 256),
    activation="hardswish",
    epochs=11,
    batch_size=1500,
    label_smoothing=0.1,
    brightness=0.035,
    contrast=0.13,
    lr_max=0.248,
    test_time_augmentation=True,
)
"""94 % on CIFAR-10 over several views of an image, in three and a half minutes; see results/studies/fast."""

RECIPES: Mapping[str, Config] = {"baseline": BASELINE, "quick": QUICK, "fast": FAST}
