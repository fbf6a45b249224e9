"""The parts of a run, put together from its configuration."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.optim import Adam, Optimizer

from onecycle.compute import autotune, hardware
from onecycle.compute.autotune import Choice
from onecycle.compute.hardware import Hardware
from onecycle.compute.plan import Acceleration, require_device
from onecycle.core.config import Config
from onecycle.core.errors import InputError
from onecycle.data import Dataset, load_dataset
from onecycle.data.augment.batched import BatchedAugmentation
from onecycle.data.batch_sources import Augment, AugmentBatch
from onecycle.data.batches import Batches
from onecycle.data.preprocessing import Preprocessing
from onecycle.distributed import ranks
from onecycle.models import Architecture, ModelComposite, TrainingCrossEntropy, WhitenedConvNet
from onecycle.predict.predictor import Predictor
from onecycle.train.optimizers import Muon

IMAGES_WHITENED = 5000  # of 32×32, of the training set, from which the whitening layer is made; of larger ones fewer

# As in airbench94's version with Muon (see models/whitened_convnet.py). Its linear layer learns at 0.67 for sums of
# losses, with weights of deviation 1 and logits divided by 256; scaled to the layer here, that is this rate, too.
FILTER_MOMENTUM = 0.6  # of what Muon orthogonalizes
MOMENTUM = 0.85
SGD_LR_SCALE = 0.0035  # for each image of a batch: the rate of what SGD trains to that of Muon, for mean losses


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The parts of a run, made from its configuration alone and ready to train."""

    config: Config
    dataset: Dataset
    preprocessing: Preprocessing
    model: ModelComposite
    optimizer: Optimizer
    train: Batches
    evaluation: Batches
    acceleration: Acceleration
    choice: Choice | None
    """What the acceleration was chosen by; None when it was given."""

    @property
    def predictor(self) -> Predictor:
        return Predictor(
            model=self.model,
            architecture=Architecture.of(self.config),
            preprocessing=self.preprocessing,
            classes=self.dataset.train.classes,
            acceleration=self.acceleration,
        )


def load_data(config: Config) -> Dataset:
    """The data that `config` names, cut as it says: in the same way for every seed, so that runs can be compared.

    Raises:
        InputError: when they cannot be had.
    """
    return load_dataset(config.data, validation=config.validation, limit=config.limit, input_size=config.size)


def assemble(config: Config, how: Acceleration | None = None) -> Experiment:
    """The parts of the run that `config` describes, to be computed the way `how`, or as is fastest on this machine.

    Raises:
        InputError: when the data or the device cannot be had.
    """
    machine = hardware.detect()
    if how is None:
        require_device(machine, config.device)
    dataset = load_data(config)
    train = dataset.train
    preprocessing = Preprocessing.of_sums(train.channel_sums, images=len(train), input_size=train.images.shape[1])
    torch.set_num_threads((how and how.threads) or machine.cores)  # whitening sums, too, by the run's threads
    torch.manual_seed(config.seed)
    model = _network(config, dataset, preprocessing)
    choice = None
    if how is None:
        choice = _choice(config, model, preprocessing.input_size, machine)
        how = choice.acceleration
    if ranks.current().size > 1 and how.device != "cpu":
        raise InputError(f"several processes compute on CPUs, and this run on {how.device}; give --device cpu")
    how.apply()
    model.to(how.device)
    augment, augment_batch = _augmentation(config, preprocessing)
    return Experiment(
        config=config,
        dataset=dataset,
        preprocessing=preprocessing,
        model=model,
        optimizer=_optimizer(config, model, how.precision),
        train=Batches(
            dataset.train,
            preprocessing,
            batch_size=config.batch_size,
            shuffle=True,
            augment=augment,
            augment_batch=augment_batch,
            sizes=config.sizes,
            epochs=config.epochs,
            shards=config.shards,
            seed=config.seed,
            workers=config.workers,
            device=how.device,
        ),
        evaluation=Batches(dataset.evaluation, preprocessing, batch_size=config.batch_size, device=how.device),
        acceleration=how,
        choice=choice,
    )


def _choice(config: Config, model: ModelComposite, size: int, machine: Hardware) -> Choice:
    """The fastest way, by the measure of the process that leads, for all that compute the run.

    Raises:
        InputError: when this machine cannot go it.
    """

    def choose() -> dict[str, Any]:
        return autotune.choose(model, size, machine, device=config.device, precision=config.precision).to_json()

    choice = Choice.from_json(ranks.current().from_leader(choose))
    choice.acceleration.require(machine)
    return choice


def _network(config: Config, dataset: Dataset, preprocessing: Preprocessing) -> ModelComposite:
    model = Architecture.of(config).build(len(dataset.train.classes), preprocessing.input_size)
    if isinstance(model, WhitenedConvNet):
        if config.whitening:
            # Evenly spread: the images of a folder come class by class.
            enough = min(IMAGES_WHITENED * 32**2 // preprocessing.input_size**2, len(dataset.train))
            spread = np.linspace(0, len(dataset.train) - 1, max(1, enough)).astype(int)
            model.whiten(preprocessing.normalize(torch.from_numpy(dataset.train.images[spread])))
        if config.dirac:
            model.pass_inputs_on()
    if config.label_smoothing or config.class_weights:
        weight = _class_weights(dataset) if config.class_weights else None
        model.criterion = TrainingCrossEntropy(label_smoothing=config.label_smoothing, weight=weight)
    return model


def _class_weights(dataset: Dataset) -> torch.Tensor:
    """What an image of each class counts for, float32 `[C]`: all classes to the same sum, images to 1 on average."""
    counts = np.bincount(dataset.train.labels, minlength=len(dataset.train.classes))
    return torch.from_numpy(len(dataset.train) / (len(counts) * np.maximum(counts, 1))).float()


def _optimizer(config: Config, model: ModelComposite, precision: str) -> Optimizer:
    """Adam for all; or Muon for filters and SGD for the rest; or SGD for all.

    The `lr_scale` of a group is its rate to that of the schedule; `epochs` are those it learns in.
    """
    learned = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if config.optimizer == "adam":
        return Adam(list(learned.values()))
    fixed_later = config.whitening and config.whitening_epochs is not None
    whitening = [learned.pop("whitening.bias")] if fixed_later else []
    filters = [parameter for parameter in learned.values() if parameter.dim() == 4]
    biases = [parameter for parameter in learned.values() if parameter.dim() == 1]
    others = [parameter for parameter in learned.values() if parameter.dim() == 2]
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


def _augmentation(config: Config, preprocessing: Preprocessing) -> tuple[Augment | None, AugmentBatch | None]:
    size, fill = preprocessing.input_size, [255 * value for value in preprocessing.mean]
    if config.hole > size:
        raise InputError(f"--hole is {config.hole}; it must be at most the images' side, which is {size}")
    if config.padding >= size:
        raise InputError(f"--padding is {config.padding}; it must be below the images' side, which is {size}")
    if config.augmentation == "batched":
        return None, BatchedAugmentation(
            size,
            fill,
            padding=config.padding,
            hole=config.hole,
            flip=config.flip,
            brightness=config.brightness,
            contrast=config.contrast,
        )
    # Imported here because albumentations takes seconds, which nothing else need wait for.
    from onecycle.data.augment.albumentations import Augmentation

    return Augmentation(size, fill), None
