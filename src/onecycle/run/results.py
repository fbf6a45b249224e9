"""Write the results of a finished run: result, predictions, misclassified images and weights."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from onecycle.compute import hardware
from onecycle.core.metrics import misclassified_by_confidence, probabilities_of
from onecycle.core.out_of_distribution import energy_threshold_of
from onecycle.core.temperature import fit_temperature
from onecycle.data import Dataset, ImageSet
from onecycle.run import predictions_table
from onecycle.run.build import Experiment
from onecycle.storage.records import FittedTemperature, History, Misclassified, RunResult
from onecycle.storage.run_folder import RunFolder
from onecycle.train.loop import Evaluation, evaluate

MISCLASSIFIED_KEPT = 40
TRAINING_SAMPLE = 1000  # at most this many training images are evaluated


class TTAResult(NamedTuple):
    """The accuracy with test-time augmentation, and the duration of the evaluation that measured it."""

    accuracy: float
    seconds: float


def evaluate_training_sample(experiment: Experiment) -> Evaluation:
    """Evaluate the network on up to `TRAINING_SAMPLE` training images, without augmentation.

    With several processes, all must call this function.
    """
    images = experiment.dataset.train
    # Take images from the whole data set, because an image folder is ordered by class.
    spread = np.linspace(0, len(images) - 1, min(TRAINING_SAMPLE, len(images))).astype(int)
    batches = experiment.train.unaugmented(spread)
    return evaluate(experiment.trained, batches, evaluated_on="training", plan=experiment.plan)


def fitted_temperature(validation: Evaluation) -> FittedTemperature:
    """The temperature that fits the logits of validation images."""
    logits, labels = validation.logits.numpy(), validation.labels.numpy()
    return FittedTemperature(temperature=fit_temperature(logits, labels), images=len(labels), source="validation")


def write(
    experiment: Experiment,
    folder: RunFolder,
    evaluation: Evaluation,
    history: History,
    *,
    margins: torch.Tensor,
    rates: tuple[float, float],
    train_sample: Evaluation,
    tta: TTAResult | None,
    calibration: FittedTemperature | None,
    seconds: float,
) -> None:
    """Write all results. `result.json` is written last, so a folder with this file has all results.

    `margins` `[N]` is the margin of each training image, summed over the epochs. `rates` is (lr_min, lr_max).
    """
    logits, labels = evaluation.logits.numpy(), evaluation.labels.numpy()
    temperature = calibration.temperature if calibration else 1.0
    folder.write_arrays(folder.predictions, logits=logits, labels=labels)
    write_image_names(folder, experiment.dataset)
    write_probabilities(folder, logits, experiment.dataset, temperature)
    folder.write_arrays(folder.training_margins, margins=margins.cpu().numpy() / len(history))
    energy_threshold = energy_threshold_of(logits)
    predictor = replace(experiment.predictor, temperature=temperature, energy_threshold=energy_threshold)
    predictor.save(folder.weights)
    config, dataset = experiment.config, experiment.dataset
    best = max(history, key=lambda record: record.eval_accuracy)
    result = RunResult(
        recipe=config.recipe,
        dataset=dataset.name,
        fingerprint=dataset.fingerprint,
        evaluated_on=dataset.evaluated_on,
        train_images=len(dataset.train),
        eval_images=len(dataset.evaluation),
        # The recorded notes: a resumed run of "auto" loads the data set that "auto" chose, and has no note about this.
        notes=tuple(folder.read_json(folder.environment)["dataset"]["notes"]),
        seed=config.seed,
        parameters=sum(parameter.numel() for parameter in experiment.model.parameters()),
        lr_min=rates[0],
        lr_max=rates[1],
        epochs=config.epochs,
        train_accuracy=history[-1].train_accuracy,
        eval_loss=evaluation.loss,
        eval_accuracy=evaluation.accuracy,
        best_eval_accuracy=best.eval_accuracy,
        best_epoch=best.epoch,
        seconds=seconds,
        images_per_second=len(history) * len(dataset.train) / sum(record.seconds for record in history),
        peak_memory_gib=hardware.peak_memory_gib(),
        train_sample_accuracy=train_sample.accuracy,
        train_sample_images=len(train_sample.labels),
        tta_accuracy=tta.accuracy if tta else None,
        tta_seconds=tta.seconds if tta else None,
        validation_images=0 if dataset.validation is None else len(dataset.validation),
        validation_accuracy=None if dataset.validation is None else history[-1].eval_accuracy,
        calibration=calibration,
        energy_threshold=energy_threshold,
    )
    folder.write_json(folder.result, result.to_json())


def write_probabilities(folder: RunFolder, logits: NDArray[np.float32], dataset: Dataset, temperature: float) -> None:
    """Write the files with probabilities, from logits `[N,C]` of the evaluated images."""
    predictions_table.write(folder, logits, dataset, temperature)
    folder.write_misclassified(_misclassified(logits, dataset.evaluation, temperature))


def write_image_names(folder: RunFolder, dataset: Dataset) -> None:
    """Write the file names of all images, if the images have file names."""
    if dataset.train.names is not None and dataset.evaluation.names is not None:
        evaluated, train = dataset.evaluation.names.to_array(), dataset.train.names.to_array()
        folder.write_arrays(folder.image_names, evaluated=evaluated, train=train)


def _misclassified(logits: NDArray[np.float32], images: ImageSet, temperature: float) -> Misclassified:
    """The most confident incorrect predictions, from logits `[N,C]` in the order of `images`."""
    kept = misclassified_by_confidence(logits, images.labels, temperature)[:MISCLASSIFIED_KEPT]
    return Misclassified(
        indices=kept,
        images=images.images[kept],
        labels=images.labels[kept],
        predictions=logits[kept].argmax(axis=1),
        probabilities=probabilities_of(logits[kept], temperature).astype(np.float32),
        classes=images.classes,
    )
