"""What a finished run leaves: its result, predictions, mistakes and weights."""

import numpy as np
import torch
from numpy.typing import NDArray

from onecycle.compute import hardware
from onecycle.core.metrics import confident_mistakes, probabilities_of
from onecycle.data import ImageSet
from onecycle.run.build import Experiment
from onecycle.storage.records import History, Mistakes, RunResult
from onecycle.storage.run_folder import RunFolder
from onecycle.train.loop import Evaluation

MISTAKES_SHOWN = 40


def write(
    experiment: Experiment,
    folder: RunFolder,
    evaluation: Evaluation,
    history: History,
    *,
    margins: torch.Tensor,
    rates: tuple[float, float],
    views: tuple[float, float] | None,
    seconds: float,
) -> None:
    """Write what the run came to; `result.json` last, so that a folder that has it has all of this.

    `margins` `[N]` are sums over the epochs, of each training image; `rates` are (lr_min, lr_max); `views`, where
    there was test-time augmentation, its accuracy and seconds.
    """
    logits, labels = evaluation.logits.numpy(), evaluation.labels.numpy()
    folder.write_arrays(folder.predictions, logits=logits, labels=labels)
    folder.write_arrays(folder.training_margins, margins=margins.cpu().numpy() / len(history))
    folder.write_mistakes(_mistakes(logits, experiment.dataset.evaluation))
    experiment.predictor.save(folder.weights)
    config, dataset = experiment.config, experiment.dataset
    best = max(history, key=lambda record: record.test_accuracy)
    result = RunResult(
        recipe=config.recipe,
        dataset=dataset.name,
        fingerprint=dataset.fingerprint,
        evaluated_on=dataset.evaluated_on,
        train_images=len(dataset.train),
        test_images=len(dataset.evaluation),
        notes=dataset.notes,
        seed=config.seed,
        parameters=sum(parameter.numel() for parameter in experiment.model.parameters()),
        lr_min=rates[0],
        lr_max=rates[1],
        epochs=config.epochs,
        train_accuracy=history[-1].train_accuracy,
        test_loss=evaluation.loss,
        test_accuracy=evaluation.accuracy,
        best_test_accuracy=best.test_accuracy,
        best_epoch=best.epoch,
        seconds=seconds,
        images_per_second=len(history) * len(dataset.train) / sum(record.seconds for record in history),
        peak_memory_gib=hardware.peak_memory_gib(),
        tta_accuracy=views[0] if views else None,
        tta_seconds=views[1] if views else None,
    )
    folder.write_json(folder.result, result.to_json())


def _mistakes(logits: NDArray[np.float32], images: ImageSet) -> Mistakes:
    """The most confident incorrect predictions: of logits `[N,C]`, in the order of `images`."""
    shown = confident_mistakes(logits, images.labels)[:MISTAKES_SHOWN]
    return Mistakes(
        indices=shown,
        images=images.images[shown],
        labels=images.labels[shown],
        predictions=logits[shown].argmax(axis=1),
        probabilities=probabilities_of(logits[shown]).astype(np.float32),
        classes=images.classes,
    )
