"""Calibrate a finished run: fit a temperature to images on which its network was not trained.

The network of a run is trained on all training images. So a second network is trained in the same way on nine tenths of
them, and the temperature is fitted to its logits of the held-out tenth. The temperature depends on the recipe and the
data. It hardly differs between the two networks, so it suits the network of the run.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from onecycle.core.config import Config
from onecycle.core.errors import InputError
from onecycle.core.files import locked, reading
from onecycle.core.out_of_distribution import energy_threshold_of
from onecycle.core.own_network import require_consent
from onecycle.core.signals import Interrupted
from onecycle.data import Dataset
from onecycle.data.batches import Batches
from onecycle.distributed import job
from onecycle.predict.predictor import Predictor
from onecycle.run import experiment, finished, results
from onecycle.run.expected_time import duration
from onecycle.storage.records import FittedTemperature, RunResult
from onecycle.storage.run_folder import RunFolder
from onecycle.train.loop import evaluate

HELD_OUT_SHARE = 0.1  # the share of the training images that is held out


def calibrate_run(
    path: Path,
    console: Console,
    data: str | None = None,
    *,
    labels: str | None = None,
    init: str | None = None,
    network: str | None = None,
) -> FittedTemperature:
    """Fit the temperature of a finished run, and save it in the run's weights and result. Returns the temperature.

    If the run has validation images, the temperature is fitted to them. Otherwise, a second network is trained in the
    run's folder `calibration`. If a call is interrupted, the next call resumes this training. The folder is removed at
    the end, because only the temperature is needed. A run that is already calibrated stays as it is.

    If the data, the file with the labels or the initial weights have moved, `data`, `labels` or `init` is the new
    location. `network` names the code of the user's own network.

    Raises:
        OnecycleError: when there is no such run, when it is not complete, when its data is missing or differs, when no
            training images can be held out, or when the training fails.
        Interrupted: on SIGINT or SIGTERM. Another call then resumes the training.
    """
    if job.is_part():
        raise InputError("calibrate runs in one process; start it without torchrun")
    folder = RunFolder.open(path)
    if not folder.is_complete:
        raise InputError(f"{path} is not complete; `{folder.resume_command(folder.read_config())}` continues it")
    second = RunFolder(folder.calibration)
    with locked(folder.path):
        fitted = folder.read_result().calibration
        # The second network is removed last. If it is still there, an earlier call was interrupted.
        if fitted is None or second.is_complete:
            config = folder.read_config()
            moved = replace(config, data=data or config.data, labels=labels or config.labels, init=init or config.init)
            fitted = _fit(folder, second, console, moved, network)
        second.discard()
    return fitted


def _fit(
    folder: RunFolder, second: RunFolder, console: Console, config: Config, network: str | None
) -> FittedTemperature:
    result = folder.read_result()
    require_consent(config.network, network, str(folder.path))
    predictor = Predictor.load(folder.weights, network=network)  # on the CPU, even if the run was trained on a GPU
    dataset = finished.recorded_data(folder, config, config.data, config.labels)
    with reading(folder.weights):
        if predictor.classes != dataset.train.classes:
            raise ValueError("its classes are not those of the run's data")
    if dataset.epoch_evaluated_on == "validation":
        fitted = _fitted_on_validation(predictor, dataset, config)
    else:
        smaller = _with_held_out_images(config, result, dataset, folder)
        del dataset  # the second network loads the data again
        fitted = _fitted_on_second_network(second, smaller, result, console, network)
        dataset = finished.recorded_data(folder, config, config.data, config.labels)
    _save(folder, predictor, dataset, fitted)
    return fitted


def _fitted_on_validation(predictor: Predictor, dataset: Dataset, config: Config) -> FittedTemperature:
    """Fit the temperature to the validation images of a run that an earlier version of onecycle trained."""
    batches = Batches(dataset.epoch_evaluation, predictor.preprocessing, batch_size=config.batch_size)
    return results.fitted_temperature(evaluate(predictor.model, batches, evaluated_on="validation"))


def _with_held_out_images(config: Config, result: RunResult, dataset: Dataset, folder: RunFolder) -> Config:
    """The configuration of the run, changed for the second network: a tenth of the training images is held out.

    Raises:
        InputError: when a class has only one training image.
    """
    images, classes = len(dataset.train), dataset.train.classes
    counts = np.bincount(dataset.train.labels, minlength=len(classes))
    if 1 in counts:
        raise InputError(
            f"{folder.path} cannot be calibrated: class {classes[int(np.argmax(counts == 1))]!r} has only one training "
            "image, and one of each class must be held out; add images, and train again"
        )
    held_out = max(len(classes), round(HELD_OUT_SHARE * images))
    return replace(
        config,
        validation=held_out,
        limit=config.limit and images - held_out,
        batch_size=min(config.batch_size, images - held_out),
        lr_min=result.lr_min,
        lr_max=result.lr_max,
        test_time_augmentation=False,
        report=False,
        tensorboard=False,
        out=folder.path,
    )


def _fitted_on_second_network(
    second: RunFolder, config: Config, result: RunResult, console: Console, network: str | None
) -> FittedTemperature:
    """Train the second network, or resume its training, and return the temperature that fits its held-out images."""
    if second.path.is_symlink():
        raise InputError(f"{second.path} is a symbolic link; remove it")
    if not second.is_complete:
        console.out(
            f"Training a second network without {config.validation:,} of the {result.train_images:,} training images, "
            f"to fit the temperature to them. This takes about as long as the run: {duration(result.seconds)}",
            highlight=False,
        )
        try:
            _train(second, config, console, network)
        except Interrupted as stopped:
            raise Interrupted(stopped.number, "repeat the command to go on") from None
    with reading(second.result):
        fitted = second.read_result().calibration
        if fitted is None:
            raise ValueError("it has no temperature")
    return replace(fitted, source="second network")


def _train(second: RunFolder, config: Config, console: Console, network: str | None) -> None:
    if not second.config.exists():
        second.discard()  # an earlier call that was killed may have left files
        experiment.run(config, console, second.path)
        return
    try:
        # Resuming with changed code is fine: only the temperature of the second network is needed, not its exact bits.
        experiment.resume(second.path, console, config, network=network, allow_code_changes=True)
    except InputError as error:
        raise InputError(f"{error}; or remove {second.path} and repeat the command, to train it anew") from error


def _save(folder: RunFolder, predictor: Predictor, dataset: Dataset, fitted: FittedTemperature) -> None:
    """Write the temperature into the files of the run that depend on it. Each file is replaced as a whole."""
    logits = folder.read_predictions().logits
    with reading(folder.predictions):
        if logits.shape != (len(dataset.evaluation), len(dataset.evaluation.classes)):
            raise ValueError(f"its logits have the shape {list(logits.shape)}")
    threshold = predictor.energy_threshold
    if threshold is None:  # earlier versions recorded no threshold
        threshold = energy_threshold_of(logits)
    replace(predictor, temperature=fitted.temperature, energy_threshold=threshold).save(folder.weights)
    results.write_probabilities(folder, logits, dataset, fitted.temperature)
    result = replace(folder.read_result(), calibration=fitted, energy_threshold=threshold)
    folder.write_json(folder.result, result.to_json())
    finished.draw_plots(folder)
    if folder.report.exists():
        finished.write_report(folder)
