"""Work on a finished run: evaluate it again, interpret it, write its report again."""

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onecycle.compute import hardware
from onecycle.compute.plan import ComputePlan
from onecycle.core.config import Config
from onecycle.core.errors import InputError, OnecycleError
from onecycle.core.files import locked
from onecycle.core.recipes import BASELINE
from onecycle.data import Dataset
from onecycle.data.batches import Batches
from onecycle.models.test_time_augmentation import TestTimeAugmentation
from onecycle.predict.predictor import SHIPPED, Predictor, load
from onecycle.run import environment, results
from onecycle.run.build import load_data
from onecycle.storage.run_folder import RunFolder
from onecycle.train.loop import evaluate

SHIPPED_TOLERANCE = 0.001  # the accuracy of the included network depends slightly on the CPU


class Reevaluation(NamedTuple):
    """The recorded result and the new result as text, and whether the two results agree."""

    recorded: str
    now: str
    agrees: bool


def evaluate_run(
    path: Path, data: str | None = None, *, labels: str | None = None, network: str | None = None
) -> Reevaluation:
    """Evaluate a finished run again, from its weights and its data.

    If the data or the file with the labels has moved, `data` or `labels` is the new location. If the network is the
    user's own, `network` names its code.

    Raises:
        InputError: when there is no such run, or the data differs from the data of the run.
    """
    folder = RunFolder.open(path)
    config, recorded = folder.read_config(), folder.read_result()
    plan = _recorded_plan(folder)
    predictor = Predictor.load(folder.weights, plan, network=network)
    dataset = recorded_data(folder, config, data, labels)
    now = _evaluate(predictor, dataset, batch_size=config.batch_size, tta=config.test_time_augmentation)
    then = recorded.eval_accuracy, recorded.eval_loss, recorded.tta_accuracy
    split = recorded.evaluated_on
    return Reevaluation(_in_words(split, *then), _in_words(split, *now), now == then)


def evaluate_shipped(data: str | None = None, *, network: str | None = None) -> Reevaluation:
    """Evaluate the network that comes with the package on the test set of CIFAR-10.

    Raises:
        InputError: when `data` has other classes than CIFAR-10, or `network` names code, which this network does not
            have.
    """
    predictor = load(network=network)
    dataset = load_data(replace(BASELINE, data=data or "cifar10"))
    if dataset.evaluation.classes != predictor.classes:
        raise InputError(
            f"{dataset.source} has other classes than the included network ({', '.join(predictor.classes)}); use "
            "CIFAR-10"
        )
    accuracy, loss, tta_accuracy = _evaluate(predictor, dataset, batch_size=500, tta=True)
    assert tta_accuracy is not None
    recorded = json.loads(SHIPPED.with_suffix(".json").read_text())
    pairs = (accuracy, recorded["accuracy"]), (tta_accuracy, recorded["tta_accuracy"])
    agrees = all(abs(ours - theirs) <= SHIPPED_TOLERANCE for ours, theirs in pairs)
    then = _in_words("test", recorded["accuracy"], None, recorded["tta_accuracy"])
    return Reevaluation(then, _in_words("test", accuracy, loss, tta_accuracy), agrees)


def _evaluate(
    predictor: Predictor, dataset: Dataset, *, batch_size: int, tta: bool
) -> tuple[float, float, float | None]:
    """The accuracy, the loss, and the accuracy with test-time augmentation (None unless `tta`)."""
    plan = predictor.plan
    batches = Batches(dataset.evaluation, predictor.preprocessing, batch_size=batch_size, device=plan.device)
    split = dataset.evaluated_on
    evaluation = evaluate(predictor.model, batches, evaluated_on=split, plan=plan)
    if not tta:
        return evaluation.accuracy, evaluation.loss, None
    augmented = TestTimeAugmentation(predictor.model)
    averaged = evaluate(augmented, batches, evaluated_on=f"augmented {split}", plan=plan)
    return evaluation.accuracy, evaluation.loss, averaged.accuracy


def _in_words(split: str, accuracy: float, loss: float | None, tta_accuracy: float | None) -> str:
    parts = [f"{split} accuracy {accuracy}"]
    parts += [f"loss {loss}"] if loss is not None else []
    parts += [f"accuracy with test-time augmentation {tta_accuracy}"] if tta_accuracy is not None else []
    return ", ".join(parts)


def report_run(path: Path, data: str | None = None, *, labels: str | None = None, network: str | None = None) -> Path:
    """Write the report of a run again from its folder, and return its path.

    If a complete run has no interpretation yet (heatmaps, label issues, near-duplicates), first compute one from the
    weights and the data. If the data or the file with the labels has moved, `data` or `labels` is the new location. If
    the network is the user's own, `network` names its code. The report of an unfinished run shows the progress of the
    run.

    Raises:
        InputError: when there is no such run. Also when the run cannot be interpreted, for example because its data
            has changed or this machine lacks the device of the run. The report is then written without the
            interpretation, before the error is raised.
    """
    folder = RunFolder.open(path)
    missing = [path for path in (folder.weights, folder.training_margins) if not path.exists()]
    if folder.is_complete and not missing and not folder.interpretation.exists():
        try:
            with locked(folder.path):
                predictor = Predictor.load(folder.weights, _recorded_plan(folder), network=network)
                interpret_run(folder, predictor, recorded_data(folder, folder.read_config(), data, labels))
        except OnecycleError as error:
            raise InputError(f"{write_report(folder)} is written without the interpretation: {error}") from error
    return write_report(folder)


def interpret_run(folder: RunFolder, predictor: Predictor, dataset: Dataset) -> None:
    """Compute and save the interpretation of a complete run: heatmaps, label issues and near-duplicates.

    Raises:
        InputError: when the recorded predictions or margins are not those of the images in `dataset`.
    """
    from onecycle.predict.explain import interpret

    logits = folder.read_predictions().logits
    margins = folder.read_training_margins()
    _require_shape(folder.predictions, logits, (len(dataset.evaluation), len(dataset.train.classes)))
    _require_shape(folder.training_margins, margins, (len(dataset.train),))
    results.write_image_names(folder, dataset)  # older runs did not record the names
    folder.write_arrays(folder.interpretation, **interpret(predictor, dataset, logits, margins).to_arrays())


def _require_shape(path: Path, values: NDArray[np.float32], shape: tuple[int, ...]) -> None:
    if values.shape != shape:
        raise InputError(
            f"{path} does not belong to this run: it has the shape {list(values.shape)} instead of {list(shape)}; "
            "restore the file"
        )


def draw_plots(folder: RunFolder) -> None:
    """Draw the plots of the run in `folder`, with everything that is recorded so far."""
    from onecycle.report import plots  # imported late: matplotlib would delay the first step

    plots.draw(folder)


def write_report(folder: RunFolder) -> Path:
    """Write the report of the run in `folder`, with everything that is recorded so far."""
    from onecycle import report  # imported late: matplotlib would delay the first step

    return report.write(folder)


def _recorded_plan(folder: RunFolder) -> ComputePlan:
    """Apply the evaluation variant of the run's compute plan to this process, and return this variant."""
    plan = environment.recorded_plan(folder).for_evaluation()
    plan.require(hardware.detect())
    plan.apply()
    return plan


def recorded_data(folder: RunFolder, config: Config, data: str | None, labels: str | None) -> Dataset:
    """The data of the run in `folder`.

    If the data or the file with the labels has moved, `data` or `labels` is the new location.

    Raises:
        InputError: when the data is missing, or differs from that of the run.
    """
    config = replace(config, data=data or config.data, labels=labels or config.labels)
    environment.require_data(folder, config)
    dataset = load_data(config)
    environment.require_same_data(folder, dataset)
    return dataset
