"""The parts of a run, put together from its configuration."""

from dataclasses import dataclass

import torch
from torch.optim import Adam, Optimizer

from onecycle import acceleration, hardware
from onecycle.acceleration import Acceleration
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
    """The parts of the run that `config` describes, to be computed the way `how`, or as is best on this machine.

    Raises:
        InputError: when the data or the device cannot be had.
    """
    # Imported here because albumentations takes seconds, which evaluation need not wait for.
    from onecycle.transforms import Augmentation

    how = how or acceleration.choose(hardware.detect(), device=config.device, precision=config.precision)
    how.apply()
    dataset = load_data(config)
    preprocessing = Preprocessing.of(dataset.train.images)
    torch.manual_seed(config.seed)
    model = CustomResNet(len(dataset.train.classes), preprocessing.input_size).to(how.device)
    augment = Augmentation(preprocessing.input_size, fill=[255 * value for value in preprocessing.mean])
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
            seed=config.seed,
            workers=config.workers,
            device=how.device,
        ),
        evaluation=Batches(dataset.evaluation, preprocessing, batch_size=config.batch_size, device=how.device),
        acceleration=how,
    )
