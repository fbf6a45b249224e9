"""The parts of a run, put together from its configuration."""

from dataclasses import dataclass

import torch
from torch.optim import Adam, Optimizer

from onecycle import autotune, hardware
from onecycle.acceleration import Acceleration, require_device
from onecycle.autotune import Choice
from onecycle.batch_sources import Augment, AugmentBatch
from onecycle.batched_transforms import BatchedAugmentation
from onecycle.batches import Batches
from onecycle.config import Config
from onecycle.dataset import Dataset, load_dataset
from onecycle.models import CustomResNet
from onecycle.predictor import Predictor
from onecycle.preprocessing import Preprocessing


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The parts of a run, made from its configuration alone and ready to train."""

    config: Config
    dataset: Dataset
    preprocessing: Preprocessing
    model: CustomResNet
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
            preprocessing=self.preprocessing,
            classes=self.dataset.train.classes,
            acceleration=self.acceleration,
        )


def load_data(config: Config) -> Dataset:
    """The data that `config` names, cut as it says.

    Raises:
        InputError: when they cannot be had.
    """
    return load_dataset(config.data, validation=config.validation, limit=config.limit, seed=config.seed)


def assemble(config: Config, how: Acceleration | None = None) -> Experiment:
    """The parts of the run that `config` describes, to be computed the way `how`, or as is fastest on this machine.

    Raises:
        InputError: when the data or the device cannot be had.
    """
    machine = hardware.detect()
    if how is None:
        require_device(machine, config.device)
    dataset = load_data(config)
    preprocessing = Preprocessing.of(dataset.train.images)
    torch.manual_seed(config.seed)
    model = CustomResNet(len(dataset.train.classes), preprocessing.input_size)
    choice = None
    if how is None:
        choice = autotune.choose(
            model, preprocessing.input_size, machine, device=config.device, precision=config.precision
        )
        how = choice.acceleration
    how.apply()
    model.to(how.device)
    augment, augment_batch = _augmentation(config, preprocessing)
    return Experiment(
        config=config,
        dataset=dataset,
        preprocessing=preprocessing,
        model=model,
        optimizer=Adam(model.parameters()),
        train=Batches(
            dataset.train,
            preprocessing,
            batch_size=config.batch_size,
            shuffle=True,
            augment=augment,
            augment_batch=augment_batch,
            seed=config.seed,
            workers=config.workers,
            device=how.device,
        ),
        evaluation=Batches(dataset.evaluation, preprocessing, batch_size=config.batch_size, device=how.device),
        acceleration=how,
        choice=choice,
    )


def _augmentation(config: Config, preprocessing: Preprocessing) -> tuple[Augment | None, AugmentBatch | None]:
    fill = [255 * value for value in preprocessing.mean]
    if config.augmentation == "batched":
        return None, BatchedAugmentation(preprocessing.input_size, fill)
    # Imported here because albumentations takes seconds, which nothing else need wait for.
    from onecycle.transforms import Augmentation

    return Augmentation(preprocessing.input_size, fill), None
