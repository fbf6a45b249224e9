"""The options of a run in groups, with their defaults and allowed values. `config` combines the groups."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from onecycle.core.own_network import is_own_network
from onecycle.core.validated import OptionGroup

PADDING = 4  # pixels added on each side of an image
CUTOUT = 8  # side of the square that is cut out, in pixels
LARGEST_SIZE = 1024  # pixels; a network for larger images would need many GiB
WIDEST = 4096  # limit for each number of channels in `widths`
MOST_WORKERS = 1024
MOST_STEPS = 1_000_000  # `epochs` and `batch_size` may each be at most this
LARGEST_SEED = 2**63 - 1
SMALLEST_SIZE = 9  # pixels; the whitened network cannot take smaller images

EFFICIENTNET_LITE0 = "efficientnet_lite0"
_BACKBONE = re.compile(rf"{EFFICIENTNET_LITE0}|timm:[\w.]+")

RecipeName = Literal["baseline", "quick", "fast", "accurate", "transfer"]
IncludedNetwork = Literal["custom_resnet", "whitened_convnet", "pretrained"]
Activation = Literal["relu", "hardswish"]
OptimizerName = Literal["adam", "muon", "sgd"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "float32", "bfloat16"]
AugmentationKind = Literal["albumentations", "batched"]
Flip = Literal["random", "alternating"]
FromData = Literal["batch_size", "epochs", "sizes"]


def is_backbone(name: str) -> bool:
    """Whether `name` has the form of a backbone's name. In `timm:NAME`, NAME cannot be a path or an address."""
    return _BACKBONE.fullmatch(name) is not None


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class DataConfig(OptionGroup):
    """The data set and its splits."""

    data: str = "cifar10"
    """cifar10, auto (cifar10 or digits), a name, or a path."""

    coarse: bool = False
    """Use the 20 coarse classes of CIFAR-100."""

    labels: str | None = None
    """CSV file with the label of each image; none reads the class folders."""

    size: int = 32
    """Height and width to which images are resized."""

    validation: int = 0
    """Evaluate on this many training images, not on the test set."""

    limit: int | None = None
    """Use only this many images of each split."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("size")
        self._require_at_most(LARGEST_SIZE, "size")
        self._require("validation", self.validation >= 0, "at least 0")
        self._require("limit", self.limit is None or self.limit >= 1, "at least 1")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class TrainingConfig(OptionGroup):
    """The recipe, the schedule and the seed."""

    recipe: RecipeName = "baseline"
    """Sets the defaults of all other options."""

    epochs: int = 24
    """Passes over the training set."""

    batch_size: int = 512
    """Images per step."""

    lr_max: float | None = None
    """Learning rate at the peak; by default from the LR finder."""

    lr_min: float | None = None
    """Lowest learning rate; by default from the LR finder."""

    class_weights: bool = False
    """Weight the loss to balance the classes."""

    seed: int = 0
    """Seed of all random numbers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("epochs", "batch_size")
        self._require_at_most(MOST_STEPS, "epochs", "batch_size")
        infinity = float("inf")
        self._require("lr_max", self.lr_max is None or 0 < self.lr_max < infinity, "a positive number")
        self._require("lr_min", self.lr_min is None or 0 <= self.lr_min < infinity, "a number of at least 0")
        if self.lr_min is not None and self.lr_max is not None:
            self._require("lr_min", self.lr_min <= self.lr_max, f"at most --lr-max, which is {self.lr_max}")
        self._require("seed", 0 <= self.seed <= LARGEST_SEED, "from 0 to below 2**63")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class OptimizationConfig(OptionGroup):
    """Details of the optimizer, the schedule and the loss."""

    optimizer: OptimizerName = "adam"
    """The optimizer; muon uses SGD for all parameters but filters, and the custom ResNet needs adam."""

    bias_lr_scale: float = 1
    """Learning rate of the norms' biases, relative to that of the other parameters that SGD trains."""

    peak_fraction: float = 5 / 24
    """Fraction of all steps before the learning rate peaks."""

    label_smoothing: float = 0
    """Fraction of each label that is spread over all classes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("bias_lr_scale", 0 < self.bias_lr_scale < float("inf"), "a positive number")
        self._require("peak_fraction", 0 <= self.peak_fraction < 1, "from 0 to below 1")
        self._require("label_smoothing", 0 <= self.label_smoothing < 1, "from 0 to below 1")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class NetworkConfig(OptionGroup):
    """Which network is trained, and how it is evaluated at the end."""

    network: str = "custom_resnet"
    """custom_resnet, whitened_convnet, or your own: module:function or file.py:function."""

    init: str | None = None
    """Start from weights: a run, a file, or the word shipped."""

    test_time_augmentation: bool = False
    """Also evaluate with test-time augmentation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        included = get_args(IncludedNetwork)
        is_network = self.network in included or is_own_network(self.network)
        self._require("network", is_network, f"{', '.join(included)}, or your own as module:function")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class PretrainedNetworkConfig(OptionGroup):
    """Options of the pretrained network only."""

    backbone: str = EFFICIENTNET_LITE0
    """The pretrained backbone: efficientnet_lite0, or timm:NAME for a network of timm."""

    freeze_backbone: bool = False
    """Train only the last layer, on features that are computed once and cached."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            "backbone", is_backbone(self.backbone), f"{EFFICIENTNET_LITE0}, or timm:NAME for a network of timm"
        )


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class WhitenedNetworkConfig(OptionGroup):
    """Options of the whitened network only."""

    widths: tuple[int, ...] = (64, 256, 256)
    """Channels of the three groups of the network."""

    whitening: bool = True
    """Whiten images with frozen filters in the first layer; otherwise train its filters."""

    whitening_epochs: int | None = None
    """Train the first layer's biases for this many epochs; all epochs by default."""

    activation: Activation = "relu"
    """The activation after each convolution."""

    residual: bool = False
    """Add a third convolution to each group, and a skip connection around the last two."""

    dirac: bool = True
    """Initialize convolutions as the identity (Dirac) instead of at random."""

    sizes: tuple[int, ...] = ()
    """Train on images of these sizes in turn, each for an equal number of steps; the last must equal --size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("widths", len(self.widths) == 3 and min(self.widths) >= 1, "three numbers of channels")
        self._require_at_most(WIDEST, "widths")
        self._require_at_most(LARGEST_SIZE, "sizes")
        self._require("whitening_epochs", self.whitening_epochs is None or self.whitening_epochs >= 0, "at least 0")
        is_large = all(size >= SMALLEST_SIZE for size in self.sizes)
        self._require("sizes", is_large, f"sizes of at least {SMALLEST_SIZE} pixels")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class AugmentationConfig(OptionGroup):
    """How training images are augmented."""

    augmentation: AugmentationKind = "albumentations"
    """Augment each image in worker processes, or whole batches."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class BatchedAugmentationConfig(OptionGroup):
    """Options of the batched augmentation. With albumentations, only the defaults are allowed."""

    padding: int = PADDING
    """Pixels added on each side before the random crop."""

    cutout: int = CUTOUT
    """Side of the square that is filled with the mean color; 0 fills none."""

    flip: Flip = "random"
    """Mirror half of the images at random, or every image in alternating epochs."""

    brightness: float = 0
    """Largest change of brightness, as a fraction of the full range."""

    contrast: float = 0
    """Largest relative change of contrast."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("padding", "cutout"):
            self._require(field, getattr(self, field) >= 0, "at least 0")
        self._require_at_most(LARGEST_SIZE, "padding", "cutout")
        for field in ("brightness", "contrast"):
            self._require(field, 0 <= getattr(self, field) <= 1, "from 0 to 1")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class RobustnessConfig(OptionGroup):
    """How training images are degraded, so that they resemble the images that the network will meet."""

    degraded: float = 0
    """Fraction of the training images to degrade in each epoch: by JPEG compression, blur or noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("degraded", 0 <= self.degraded <= 1, "from 0 to 1")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ComputeConfig(OptionGroup):
    """Where and how a run computes: device, precision, processes and shards."""

    device: Device = "auto"
    """auto is the GPU, if any."""

    precision: Precision = "auto"
    """auto is the faster one."""

    workers: int = 1
    """Processes that run albumentations."""

    shards: int = 1
    """Split each batch into this many shards, which processes share."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("workers", self.workers >= 0, "at least 0")
        self._require_at_most(MOST_WORKERS, "workers")
        self._require_positive("shards")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class OutputConfig(OptionGroup):
    """What a run writes, and where."""

    report: bool = True
    """Write an HTML report at the end."""

    tensorboard: bool = False
    """Write TensorBoard files while training."""

    out: Path = Path("runs")
    """Where to create the run folder."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class OpenConfig(OptionGroup):
    """Open values. A run determines them before it starts, so the configuration in a run folder has no open values."""

    from_data: tuple[FromData, ...] = ()
    """Options that the user has not set. Their values follow from the data: see `recipes.fitted`."""

    init_sha256: str | None = None
    """The SHA-256 of the weights that `init` names."""

    network_sha256: str | None = None
    """The SHA-256 of the source file of the user's own network."""
