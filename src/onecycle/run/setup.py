"""What a run prints, checks and writes before it computes."""

from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from onecycle.compute import hardware
from onecycle.compute.kernels import native
from onecycle.core.config import Config
from onecycle.core.errors import OnecycleError
from onecycle.core.recipes import BASELINE, explained
from onecycle.data import Dataset
from onecycle.data.readers.loading import is_path
from onecycle.run import environment
from onecycle.run.build import Experiment
from onecycle.run.progress import RunProgress
from onecycle.storage.run_folder import RunFolder, interrupted, new_folder

AUGMENTATIONS_SHOWN = 8
CLASSES_NAMED = 10
FEW_IMAGES = 100  # if classes have at most this many images on average, other recipes are suggested
IMBALANCE = 2  # classes are imbalanced if the largest is at least this many times the smallest


def announce(experiment: Experiment, progress: RunProgress) -> None:
    """Print the data, notes on the data, the settings that were fitted to the data, and the compute plan."""
    dataset, plan = experiment.dataset, experiment.plan
    for note in dataset.notes:
        progress.warn(note)
    validation = "" if dataset.validation is None else f"{len(dataset.validation):,} validation images, "
    progress.say(
        f"Data: {dataset.source}: {len(dataset.train):,} training images, {validation}"
        f"{len(dataset.evaluation):,} {dataset.evaluated_on} images, fingerprint {dataset.fingerprint[:12]}"
    )
    classes = dataset.train.classes
    more = ", …" if len(classes) > CLASSES_NAMED else ""
    progress.say(f"Classes: {len(classes)} ({', '.join(classes[:CLASSES_NAMED])}{more})")
    if line := explained(experiment.asked, experiment.config, len(dataset.train)):
        progress.say(line)
    smallest, *_, largest = sorted(np.bincount(dataset.train.labels, minlength=len(dataset.train.classes)).tolist())
    if largest >= IMBALANCE * smallest and not experiment.config.class_weights:
        progress.say(
            f"The classes are imbalanced ({smallest:,} to {largest:,} training images each): use --class-weights to "
            "weight them equally"
        )
    if line := _suggestion(experiment.config, dataset):
        progress.say(line)
    threads = f"{plan.threads} thread{'' if plan.threads == 1 else 's'}"
    progress.say(f"Computing on {plan.device} with {threads}: {experiment.choice or plan}")
    if plan.device == "cpu" and native.compiled() is None:
        progress.say(f"The kernels in C are missing, so training takes longer. The reason: {native.why_missing()}")


def _suggestion(config: Config, dataset: Dataset) -> str | None:
    """A line that suggests other recipes, or None.

    The suggestion is for a run that uses the default recipe on data from a path, with few images per class on average.
    """
    average = len(dataset.train) / len(dataset.train.classes)
    if config.recipe != BASELINE.recipe or not is_path(config.data) or average > FEW_IMAGES:
        return None
    return (
        f"There are few images to learn from ({average:.0f} for each class on average): try --recipe quick, and "
        "--recipe transfer, whose network is pretrained on ImageNet"
    )


def mention_interrupted(experiment: Experiment, progress: RunProgress) -> None:
    """Mention the newest interrupted run with the same configuration and data, if there is one."""
    for folder in interrupted(experiment.config.out):
        with suppress(OnecycleError):
            same_configuration = folder.read_config().defining_values() == experiment.config.defining_values()
            if same_configuration and environment.recorded_fingerprint(folder) == experiment.dataset.fingerprint:
                command = folder.resume_command(experiment.config)
                progress.say(f"An identical run was interrupted earlier; `{command}` continues it. This is a new run")
                return


def create_folder(experiment: Experiment, name: str, path: Path | None) -> RunFolder:
    """Create the run folder at `path`, or a new one in `config.out`, and write its first files.

    Raises:
        InputError: when no folder can be created in `config.out`.
        StorageError: when the run folder cannot be written. The run folder is then removed.
    """
    dataset = experiment.dataset
    folder = RunFolder.create(path or new_folder(experiment.config.out, f"{name}-{dataset.name}"))
    try:
        _describe(experiment, folder)
    except BaseException:
        folder.discard()
        raise
    return folder


def _describe(experiment: Experiment, folder: RunFolder) -> None:
    dataset = experiment.dataset
    described = environment.describe(hardware.detect(), experiment.plan, experiment.group)
    measured = [asdict(round) for round in experiment.choice.rounds] if experiment.choice else []
    about_data = {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "evaluation_fingerprint": dataset.evaluation.fingerprint,
        "evaluated_on": dataset.evaluated_on,
        "epoch_evaluated_on": dataset.epoch_evaluated_on,
        "notes": dataset.notes,
    }
    folder.write_json(folder.environment, {**described, "autotune": measured, "dataset": about_data})
    if dataset.drawn is not None:
        folder.write_json(folder.drawn_test_images, {"test": dataset.drawn})
    originals, augmented = experiment.train.preview(AUGMENTATIONS_SHOWN)
    folder.write_arrays(folder.augmentations, originals=originals, augmented=augmented)
    size = experiment.preprocessing.input_size
    folder.write_json(folder.network, experiment.model.summary((3, size, size)).to_json())
    # Record the data set that "auto" chose, so that a resume or an evaluation uses the same data.
    data = dataset.name if experiment.config.data == "auto" else experiment.config.data
    # Write this file last: a folder with this file is a run folder, and can be resumed.
    folder.write_json(folder.config, replace(experiment.config, data=data).to_json())
