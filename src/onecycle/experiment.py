"""What a run does, from its configuration to its folder. The composition root: it owns the folder and the screen."""

import math
import time
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from onecycle import environment, hardware, outcome
from onecycle.acceleration import Acceleration
from onecycle.assembly import Experiment, assemble, load_data
from onecycle.batches import Batches
from onecycle.checkpoint import load_state, save_state
from onecycle.config import Config
from onecycle.dataset import Dataset
from onecycle.errors import InputError
from onecycle.lr_finder import find_lr
from onecycle.predictor import Predictor
from onecycle.progress import RunProgress
from onecycle.records import EpochRecord, History, LRCurve
from onecycle.run_folder import RunFolder, new_folder, reading
from onecycle.test_time_augmentation import Averaged
from onecycle.training import Evaluation, evaluate, fit

SWEEP_STEPS = 100
AUGMENTATIONS_SHOWN = 8


def run(config: Config, console: Console, place: Path | None = None) -> RunFolder:
    """Find the learning rates, train, evaluate, write it all down: the whole of `onecycle train`.

    The run's folder is `place`, or a new one in `config.out`.

    Raises:
        InputError: when the configuration cannot be run; no folder is left behind unless training had begun.
    """
    with RunProgress(console) as progress:
        started = time.perf_counter()
        experiment = assemble(config)
        _announce(experiment, progress)
        _check_cycle(experiment)
        folder = _new_folder(experiment, config.recipe, place)
        progress.say(f"Run folder: {folder.path}")
        try:
            rates = _rates(experiment, folder, progress)
        except InputError:
            folder.discard()
            raise
        return _train(experiment, folder, progress, rates=rates, history=[], started=started)


def resume(path: Path, console: Console) -> RunFolder:
    """Go on with an interrupted run after its last whole epoch, computing the way it began.

    Raises:
        InputError: when there is no such run, it is complete, or its data are not what they were.
    """
    folder = RunFolder.open(path)
    if folder.complete:
        raise InputError(f"{path} is complete: there is nothing to resume")
    folder.remove_strays()
    with RunProgress(console) as progress:
        started = time.perf_counter()
        how = _recorded_acceleration(folder)
        how.require(hardware.detect())
        experiment = assemble(folder.read_config(), how)
        _check_fingerprint(folder, experiment.dataset)
        _announce(experiment, progress)
        rates = _rates(experiment, folder, progress)
        history: History = []
        if folder.checkpoint.exists():
            state = load_state(folder.checkpoint, experiment.model, experiment.optimizer)
            history = [EpochRecord(**record) for record in state["history"]]
            folder.write_history(history)  # it may lack the epoch that the checkpoint has
            started -= state["seconds"]
        progress.say(f"Resuming {path} after epoch {len(history)}")
        return _train(experiment, folder, progress, rates=rates, history=history, started=started)


def find_rates(config: Config, console: Console) -> RunFolder:
    """Run only the LR finder, and write its curve and picture into a folder of its own."""
    with RunProgress(console) as progress:
        experiment = assemble(config)
        _announce(experiment, progress)
        folder = _new_folder(experiment, "find-lr", None)
        try:
            _sweep(experiment, folder, progress)
        except InputError:
            folder.discard()
            raise
    _draw(folder)
    return folder


def evaluate_run(path: Path, data: str | None = None) -> tuple[Evaluation, float | None]:
    """Compute a finished run's result again from its weights, on the data it was trained on, from `data` if given.

    The second is the accuracy with test-time augmentation, where the run was asked for it.

    Raises:
        InputError: when there is no such run, or the data are not those of the run.
    """
    folder = RunFolder.open(path)
    config = folder.read_config()
    how = _recorded_acceleration(folder).for_evaluation()
    how.require(hardware.detect())
    how.apply()
    predictor = Predictor.load(folder.weights, how)
    dataset = load_data(config if data is None else replace(config, data=data))
    _check_fingerprint(folder, dataset)
    batches = Batches(dataset.evaluation, predictor.preprocessing, batch_size=config.batch_size, device=how.device)
    evaluation = evaluate(predictor.model, batches, acceleration=how)
    if not config.test_time_augmentation:
        return evaluation, None
    return evaluation, evaluate(Averaged(predictor.model), batches, acceleration=how).accuracy


def _draw(folder: RunFolder) -> None:
    from onecycle import pictures  # only now: it loads matplotlib, for which the first step need not wait

    pictures.draw(folder)


def _recorded_acceleration(folder: RunFolder) -> Acceleration:
    with reading(folder.environment):
        return Acceleration.from_json(folder.read_json(folder.environment)["acceleration"])


def _check_fingerprint(folder: RunFolder, dataset: Dataset) -> None:
    with reading(folder.environment):
        then = folder.read_json(folder.environment)["dataset"]["fingerprint"]
    now = dataset.fingerprint
    if now != then:
        raise InputError(
            f"{folder.path} was trained on other data: fingerprint {then[:12]}, and {dataset.source} has {now[:12]}"
        )


def _announce(experiment: Experiment, progress: RunProgress) -> None:
    dataset, how = experiment.dataset, experiment.acceleration
    for note in dataset.notes:
        progress.warn(note)
    progress.say(
        f"Data: {dataset.source}: {len(dataset.train):,} training images, "
        f"{len(dataset.evaluation):,} {dataset.evaluated_on} images, fingerprint {dataset.fingerprint[:12]}"
    )
    threads = f"{how.threads} thread{'' if how.threads == 1 else 's'}"
    progress.say(f"Computing on {how.device} with {threads}: {experiment.choice or how}")


def _check_cycle(experiment: Experiment) -> None:
    steps = experiment.config.epochs * len(experiment.train)
    if steps < 2:
        raise InputError(
            f"{len(experiment.dataset.train)} images in batches of {experiment.config.batch_size} make {steps} step in "
            "all, and one cycle needs at least 2; lower --batch-size or raise --epochs"
        )


def _new_folder(experiment: Experiment, purpose: str, place: Path | None) -> RunFolder:
    dataset = experiment.dataset
    folder = RunFolder.create(place or new_folder(experiment.config.out, f"{purpose}-{dataset.name}"))
    # What "auto" came to, so that a resume or an evaluation does not come to something else.
    data = dataset.name if experiment.config.data == "auto" else experiment.config.data
    folder.write_json(folder.config, replace(experiment.config, data=data).to_json())
    described = environment.describe(hardware.detect(), experiment.acceleration)
    measured = [asdict(round) for round in experiment.choice.rounds] if experiment.choice else []
    about_data = {"name": dataset.name, "fingerprint": dataset.fingerprint, "notes": dataset.notes}
    folder.write_json(folder.environment, {**described, "autotune": measured, "dataset": about_data})
    originals, augmented = experiment.train.preview(AUGMENTATIONS_SHOWN)
    folder.write_arrays(folder.augmentations, originals=originals, augmented=augmented)
    return folder


def _sweep(experiment: Experiment, folder: RunFolder, progress: RunProgress) -> LRCurve:
    progress.start_sweep(SWEEP_STEPS)
    try:
        curve = find_lr(
            experiment.model,
            experiment.optimizer,
            experiment.train.at_last_size(),  # where the size changes, the loss jumps, and not for the rate
            acceleration=experiment.acceleration,
            steps=SWEEP_STEPS,
            after_step=progress.sweep_step,
        )
    finally:
        progress.end_sweep()
    folder.write_json(folder.lr_finder, curve.to_json())
    others = ", ".join(f"{name} {lr:.2e}" for name, lr in curve.suggestions.items())
    progress.say(f"LR finder: LR min {curve.lr_min:.2e}, LR max {curve.lr_max:.2e} (others: {others})")
    return curve


def _rates(experiment: Experiment, folder: RunFolder, progress: RunProgress) -> tuple[float, float]:
    """The pair (lr_min, lr_max): what was asked for, else what the LR finder found or finds."""
    lr_min, lr_max = experiment.config.lr_min, experiment.config.lr_max
    if lr_min is None or lr_max is None:
        curve = folder.read_lr_curve() or _sweep(experiment, folder, progress)
        lr_min = curve.lr_min if lr_min is None else lr_min
        lr_max = curve.lr_max if lr_max is None else lr_max
    if lr_min > lr_max:
        raise InputError(f"LR min {lr_min:.2e} is above LR max {lr_max:.2e}; give both --lr-min and --lr-max")
    return lr_min, lr_max


def _train(
    experiment: Experiment,
    folder: RunFolder,
    progress: RunProgress,
    *,
    rates: tuple[float, float],
    history: History,
    started: float,
) -> RunFolder:
    config = experiment.config
    lr_min, lr_max = rates
    last: Evaluation | None = None

    def after_epoch(record: EpochRecord, evaluation: Evaluation) -> None:
        nonlocal last
        last = evaluation
        if not math.isfinite(record.train_loss):
            raise InputError(
                f"the training loss of epoch {record.epoch} is not finite, with a learning rate up to {lr_max:.2e}; "
                "give a lower --lr-max"
            )
        history.append(record)
        so_far = {"history": [asdict(record) for record in history], "seconds": time.perf_counter() - started}
        save_state(folder.checkpoint, experiment.model, experiment.optimizer, so_far)
        folder.write_history(history)
        progress.epoch(record)

    progress.start_training(config.epochs, len(experiment.train), experiment.dataset.evaluated_on)
    fit(
        experiment.model,
        experiment.optimizer,
        experiment.train,
        experiment.evaluation,
        epochs=config.epochs,
        lr_min=lr_min,
        lr_max=lr_max,
        peak_fraction=config.peak_fraction,
        acceleration=experiment.acceleration,
        first_epoch=len(history),
        after_step=progress.step,
        after_epoch=after_epoch,
    )
    # A run that was interrupted between its last epoch and its result has no evaluation at hand.
    evaluation = last or evaluate(experiment.model, experiment.evaluation, acceleration=experiment.acceleration)
    views = None
    if config.test_time_augmentation:
        began = time.perf_counter()
        averaged = evaluate(Averaged(experiment.model), experiment.evaluation, acceleration=experiment.acceleration)
        views = averaged.accuracy, time.perf_counter() - began
    seconds = time.perf_counter() - started
    outcome.write(experiment, folder, evaluation, history, rates=rates, views=views, seconds=seconds)
    _draw(folder)
    folder.checkpoint.unlink(missing_ok=True)  # last: a run that has none and has a result is complete
    return folder
