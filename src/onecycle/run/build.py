"""Build the parts of a run from its configuration: data, model, optimizer, batches and compute plan."""

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.optim import Optimizer

from onecycle.compute import autotune, hardware
from onecycle.compute.autotune import Choice
from onecycle.compute.hardware import Hardware
from onecycle.compute.plan import ComputePlan, require_device
from onecycle.core.config import Config
from onecycle.core.errors import InputError
from onecycle.core.option_groups import ComputeConfig, DataConfig, RobustnessConfig, TrainingConfig
from onecycle.core.own_network import is_own_network
from onecycle.core.recipes import fitted
from onecycle.data import Dataset, ImageSet, load_dataset
from onecycle.data.augment.batched import BatchedAugmentation
from onecycle.data.augment.views import Views
from onecycle.data.batch_sources import Augment, AugmentBatch
from onecycle.data.batches import Batches
from onecycle.data.feature_batches import FeatureBatches
from onecycle.data.preprocessing import Preprocessing
from onecycle.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from onecycle.models import (
    Architecture,
    BackboneClassifier,
    ModelComposite,
    OwnNetwork,
    TrainingCrossEntropy,
    WhitenedConvNet,
)
from onecycle.models.backbones import Backbone, build
from onecycle.predict.predictor import Predictor
from onecycle.run.initial_weights import InitialWeights, with_digest
from onecycle.train.optimizers import Adam, Muon
from onecycle.train.single_images import require_trainable

if TYPE_CHECKING:
    from onecycle.data.augment.degradation import Degradation

STEPS_SUGGESTED = 4  # an error suggests a batch size with at least this many steps per epoch, if possible
# The head of a frozen backbone is trained on at most this many views of each image: the image and augmented copies.
VIEWS = 8
# Limit on the number of feature values, for all views of all training images. There are fewer than `VIEWS` views per
# image if `VIEWS` views would exceed this limit, but always at least one.
MOST_FEATURES = 2**28
# The whitening filters are computed from this many images of 32×32 pixels. With images of another size, the total
# number of pixels is the same.
WHITENING_IMAGES = 5000

# These values are from airbench94 with Muon (see models/whitened_convnet.py). airbench94 trains its linear layer with
# learning rate 0.67. There the loss is a sum over the batch, the initial weights have std 1, and the logits are divided
# by 256. SGD_LR_SCALE converts this learning rate: here the loss is a mean, and the linear layer has another scale.
FILTER_MOMENTUM = 0.6  # the momentum for filters; Muon orthogonalizes their steps
MOMENTUM = 0.85
SGD_LR_SCALE = 0.0035  # SGD learning rate / (Muon learning rate × batch size), for losses averaged over the batch


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The parts of a run, ready to train."""

    asked: Config
    """The configuration before its values were fitted to the data."""

    config: Config
    dataset: Dataset
    preprocessing: Preprocessing
    model: ModelComposite
    optimizer: Optimizer
    train: Batches
    evaluation: Batches
    """The images on which the result is measured."""
    epoch_evaluation: Batches
    """The images on which `trained` is evaluated after every epoch: the validation images if there are any, otherwise
    the images of `evaluation`. For a frozen backbone, these batches hold features of the images."""
    plan: ComputePlan
    choice: Choice | None
    """The measurements behind the plan; None if the plan was given."""

    @property
    def trained(self) -> ModelComposite:
        """The part of the model that training changes: all of it, or the head of a frozen backbone."""
        return _trained(self.model)

    @property
    def group(self) -> ProcessGroup:
        """The processes that compute the run."""
        return self.train.group

    @property
    def predictor(self) -> Predictor:
        return Predictor(
            model=self.model,
            architecture=Architecture.of(self.config),
            preprocessing=self.preprocessing,
            classes=self.dataset.train.classes,
            plan=self.plan,
        )


def load_data(config: DataConfig) -> Dataset:
    """Load the data set of `config`, split and limited as `config` says. The seed has no influence on the data set.

    Raises:
        InputError: when the data is missing, damaged or too small.
    """
    return load_dataset(
        config.data,
        labels=config.labels,
        validation=config.validation,
        limit=config.limit,
        input_size=config.size,
        coarse=config.coarse,
    )


def assemble(config: Config, plan: ComputePlan | None = None, *, group: ProcessGroup = SINGLE_PROCESS) -> Experiment:
    """Build the parts of the run that `config` describes. Without `plan`, use the fastest compute plan on this machine.

    Raises:
        InputError: when the data, the device, the initial weights or the code of the user's own network is missing.
            Also when the initial weights are of another network, when there are too few images or steps, or when the
            images are too small for the augmentation. Also when a batch or shard has only one image, and the network
            cannot be trained on a single image.
    """
    machine = hardware.detect()
    if plan is None:
        require_device(machine, config.device)
    backbone = build(config.backbone, pretrained=True) if config.network == "pretrained" else None
    dataset = load_data(config)
    train = dataset.train
    asked, config = config, with_digest(fitted(config, len(train)))
    _require_cycle(config, len(train))
    own = OwnNetwork.load(config.network) if is_own_network(config.network) else None
    if own and not config.network_sha256:
        config = replace(config, network_sha256=own.sha256)
    initial = InitialWeights.of(config)
    preprocessing = _preprocessing(train, backbone)
    if initial:
        preprocessing = initial.preprocessing(preprocessing)
    # Set the number of threads first, because it affects how the whitening filters are rounded.
    torch.set_num_threads((plan and plan.threads) or machine.cores)
    torch.manual_seed(config.seed)
    model = _network(config, dataset, preprocessing, backbone, own, whiten=config.whitening and not initial)
    if initial:
        dataset = replace(dataset, notes=(*dataset.notes, initial.load_into(model, train.classes, own)))
    training_batches = partial(_training_batches, config, train, preprocessing, backbone, group=group)
    # Check this first, because measuring plans takes seconds.
    require_trainable(_trained(model), training_batches(device="cpu"))
    choice = None
    if plan is None:
        choice = _choose_plan(config, model, preprocessing.input_size, machine, group)
        plan = choice.plan
    if group.size > 1 and plan.device != "cpu":
        raise InputError(f"several processes can only train on CPUs, and this run uses {plan.device}; use --device cpu")
    plan.apply()
    model.to(plan.device)
    training = training_batches(device=plan.device)

    def evaluation_batches(images: ImageSet) -> Batches:
        return Batches(images, preprocessing, batch_size=config.batch_size, device=plan.device, group=group)

    evaluation = evaluation_batches(dataset.evaluation)
    if isinstance(training, FeatureBatches):
        epoch_evaluation: Batches = training.of_evaluation(dataset.epoch_evaluation)
    else:
        epoch_evaluation = evaluation if dataset.validation is None else evaluation_batches(dataset.validation)
    return Experiment(
        asked=asked,
        config=config,
        dataset=dataset,
        preprocessing=preprocessing,
        model=model,
        optimizer=_optimizer(config, _trained(model), plan.precision),
        train=training,
        evaluation=evaluation,
        epoch_evaluation=epoch_evaluation,
        plan=plan,
        choice=choice,
    )


def _require_cycle(config: TrainingConfig, images: int) -> None:
    """Check that `images` training images fill a batch, and that the run has at least two steps.

    Raises:
        InputError: when there are too few images or steps.
    """
    if images < config.batch_size:
        enough = 2 ** max(0, (images // STEPS_SUGGESTED).bit_length() - 1)
        raise InputError(
            f"{images:,} training images are too few for batches of {config.batch_size}; use --batch-size {enough}, or "
            "add images"
        )
    steps = config.epochs * -(-images // config.batch_size)
    if steps < 2:
        raise InputError(
            f"{images} images in batches of {config.batch_size} make only {steps} step, but one cycle needs at least "
            "2; use a lower --batch-size or more --epochs"
        )


def _choose_plan(
    config: ComputeConfig, model: ModelComposite, size: int, machine: Hardware, group: ProcessGroup
) -> Choice:
    """The plan that is the fastest in the main process's measurements. All processes use this plan.

    Raises:
        InputError: when this machine cannot run the plan.
    """

    def choose() -> dict[str, Any]:
        return autotune.choose(model, size, machine, device=config.device, precision=config.precision).to_json()

    choice = Choice.from_json(group.broadcast_object(choose))
    choice.plan.require(machine)
    return choice


def _trained(model: ModelComposite) -> ModelComposite:
    return model.head if isinstance(model, BackboneClassifier) and model.has_frozen_backbone else model


def _views(channels: int, images: int) -> int:
    """The number of views per image, from 1 to `VIEWS`, for `images` training images with `channels` features each."""
    return min(VIEWS, max(1, MOST_FEATURES // (channels * images)))


def _preprocessing(train: ImageSet, backbone: Backbone | None) -> Preprocessing:
    """Normalize with the mean and standard deviation of the training images. A `backbone` brings its own values."""
    size = train.images.shape[1]
    if backbone:
        backbone.require_map(size)
        return Preprocessing(input_size=size, mean=backbone.mean, std=backbone.std, gray=train.is_gray)
    return Preprocessing.of_sums(train.channel_sums, images=len(train), input_size=size, gray=train.is_gray)


def _network(
    config: Config,
    dataset: Dataset,
    preprocessing: Preprocessing,
    backbone: Backbone | None,
    own: OwnNetwork | None,
    *,
    whiten: bool,
) -> ModelComposite:
    classes = len(dataset.train.classes)
    if backbone:
        classifier = BackboneClassifier(backbone.network, backbone.channels, classes)
        if config.freeze_backbone:
            classifier.freeze_backbone()
        model: ModelComposite = classifier
    else:
        model = Architecture.of(config).build(classes, preprocessing.input_size, own)
    if isinstance(model, WhitenedConvNet):
        if whiten:
            # Take images from the whole data set, because an image folder is ordered by class.
            enough = min(WHITENING_IMAGES * 32**2 // preprocessing.input_size**2, len(dataset.train))
            spread = np.linspace(0, len(dataset.train) - 1, max(1, enough)).astype(int)
            model.whiten(preprocessing.normalize(torch.from_numpy(dataset.train.images[spread])))
        elif config.whitening:
            model.freeze_filters()
        if config.dirac:
            model.initialize_as_identity()
    if config.label_smoothing or config.class_weights:
        weight = _class_weights(dataset) if config.class_weights else None
        _trained(model).criterion = TrainingCrossEntropy(label_smoothing=config.label_smoothing, weight=weight)
    return model


def _class_weights(dataset: Dataset) -> torch.Tensor:
    """The loss weight of each class, float32 `[C]`. All classes have equal total weight. Images weigh 1 on average."""
    counts = np.bincount(dataset.train.labels, minlength=len(dataset.train.classes))
    # Only classes that have images share the total weight. For a class without images, `np.maximum` avoids a division
    # by zero.
    return torch.from_numpy(len(dataset.train) / (np.count_nonzero(counts) * np.maximum(counts, 1))).float()


def _optimizer(config: Config, model: ModelComposite, precision: str) -> Optimizer:
    """The optimizer that `config` names: Adam, SGD or Muon. Muon trains only the filters; SGD trains the rest.

    The `lr_scale` of a parameter group is its learning rate relative to the schedule. A group with `epochs` is frozen
    after that many epochs.
    """
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if config.optimizer == "adam":
        return Adam(list(trainable.values()))
    freezes_later = config.whitening and config.whitening_epochs is not None
    whitening = [trainable.pop("whitening.bias")] if freezes_later else []
    filters = [parameter for parameter in trainable.values() if parameter.dim() == 4]
    biases = [parameter for parameter in trainable.values() if parameter.dim() == 1]
    others = [parameter for parameter in trainable.values() if parameter.dim() == 2]
    sgd = {"momentum": MOMENTUM, "lr_scale": SGD_LR_SCALE * config.batch_size}
    sgd_of_biases = {**sgd, "lr_scale": sgd["lr_scale"] * config.bias_lr_scale}
    muon = {"momentum": FILTER_MOMENTUM, "lr_scale": 1, "orthogonalize": precision}
    return Muon(
        [
            {"params": filters, **(muon if config.optimizer == "muon" else sgd)},
            {"params": biases, **sgd_of_biases},
            {"params": others, **sgd},
            {"params": whitening, **sgd_of_biases, "epochs": config.whitening_epochs},
        ]
    )


def _training_batches(
    config: Config,
    train: ImageSet,
    preprocessing: Preprocessing,
    backbone: Backbone | None,
    *,
    device: str,
    group: ProcessGroup,
) -> Batches:
    """The batches of augmented training images, or of their features if the backbone is frozen."""
    augment, augment_batch = _augmentation(config, preprocessing)
    degrade = _degradation(config)
    if backbone and config.freeze_backbone:
        assert isinstance(augment_batch, BatchedAugmentation), "as the configuration requires"
        return FeatureBatches(
            train,
            preprocessing,
            Views(augment_batch, _views(backbone.channels, len(train)), degrade),
            batch_size=config.batch_size,
            shuffle=True,
            epochs=config.epochs,
            shards=config.shards,
            seed=config.seed,
            device=device,
            group=group,
        )
    return Batches(
        train,
        preprocessing,
        batch_size=config.batch_size,
        shuffle=True,
        augment=augment,
        augment_batch=augment_batch,
        degrade=degrade,
        sizes=config.sizes,
        epochs=config.epochs,
        shards=config.shards,
        seed=config.seed,
        workers=config.workers,
        device=device,
        group=group,
    )


def _augmentation(config: Config, preprocessing: Preprocessing) -> tuple[Augment | None, AugmentBatch | None]:
    size, fill = preprocessing.input_size, [255 * value for value in preprocessing.mean]
    if config.cutout > size:
        raise InputError(f"--cutout is {config.cutout}; it must be at most the size of the images, which is {size}")
    if config.padding >= size:
        raise InputError(f"--padding is {config.padding}; it must be below the size of the images, which is {size}")
    if config.augmentation == "batched":
        return None, BatchedAugmentation(
            size,
            fill,
            padding=config.padding,
            cutout=config.cutout,
            flip=config.flip,
            brightness=config.brightness,
            contrast=config.contrast,
        )
    # Imported late: importing albumentations takes seconds.
    from onecycle.data.augment.albumentations import Augmentation

    return Augmentation(size, fill), None


def _degradation(config: RobustnessConfig) -> "Degradation | None":
    if not config.degraded:
        return None
    from onecycle.data.augment.degradation import Degradation  # imported late: importing OpenCV takes long

    return Degradation(config.degraded)
