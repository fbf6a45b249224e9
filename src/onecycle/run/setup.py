"""What a run says and writes before it computes anything."""

from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from onecycle.compute import hardware
from onecycle.core.errors import InputError
from onecycle.run import environment
from onecycle.run.build import Experiment
from onecycle.run.progress import RunProgress
from onecycle.storage.run_folder import RunFolder, interrupted, new_folder

AUGMENTATIONS_SHOWN = 8
STEPS_WISHED = 4  # in an epoch, where a batch size is proposed
UNEVEN = 2  # times as many images in the largest class as in the smallest


def announce(experiment: Experiment, progress: RunProgress) -> None:
    """Say what it is trained on and how it computes."""
    dataset, how = experiment.dataset, experiment.acceleration
    for note in dataset.notes:
        progress.warn(note)
    progress.say(
        f"Data: {dataset.source}: {len(dataset.train):,} training images, "
        f"{len(dataset.evaluation):,} {dataset.evaluated_on} images, fingerprint {dataset.fingerprint[:12]}"
    )
    smallest, *_, largest = sorted(np.bincount(dataset.train.labels, minlength=len(dataset.train.classes)).tolist())
    if largest >= UNEVEN * smallest and not experiment.config.class_weights:
        progress.say(
            f"The classes are uneven, of {smallest:,} to {largest:,} training images: --class-weights lets each count "
            "alike"
        )
    threads = f"{how.threads} thread{'' if how.threads == 1 else 's'}"
    progress.say(f"Computing on {how.device} with {threads}: {experiment.choice or how}")


def require_cycle(experiment: Experiment) -> None:
    """Refuse a run of less than a batch of images, or of a single step.

    Raises:
        InputError: then.
    """
    images, batch_size = len(experiment.dataset.train), experiment.config.batch_size
    if images < batch_size:
        enough = 2 ** max(0, (images // STEPS_WISHED).bit_length() - 1)
        raise InputError(
            f"{images:,} training images are too few for batches of {batch_size}; give --batch-size {enough}, or add "
            "images"
        )
    steps = experiment.config.epochs * len(experiment.train)
    if steps < 2:
        raise InputError(
            f"{len(experiment.dataset.train)} images in batches of {experiment.config.batch_size} make {steps} step in "
            "all, and one cycle needs at least 2; lower --batch-size or raise --epochs"
        )


def tell_of_interrupted(experiment: Experiment, progress: RunProgress) -> None:
    """Tell of the newest run that was interrupted and is the same as the one to begin."""
    for folder in interrupted(experiment.config.out):
        with suppress(InputError):
            same_configuration = folder.read_config().defining_values() == experiment.config.defining_values()
            if same_configuration and environment.recorded_fingerprint(folder) == experiment.dataset.fingerprint:
                progress.say(
                    f"The same run was begun before and interrupted: `onecycle train --resume {folder.path}` goes on "
                    "with it. This is a new one"
                )
                return


def make_folder(experiment: Experiment, purpose: str, place: Path | None) -> RunFolder:
    """The run's folder, with its configuration, environment and augmentations: `place`, or a new one in `config.out`.

    Raises:
        InputError: when it cannot be made; nothing of it is left.
    """
    dataset = experiment.dataset
    folder = RunFolder.create(place or new_folder(experiment.config.out, f"{purpose}-{dataset.name}"))
    try:
        _describe(experiment, folder)
    except BaseException:
        folder.discard()
        raise
    return folder


def _describe(experiment: Experiment, folder: RunFolder) -> None:
    dataset = experiment.dataset
    described = environment.describe(hardware.detect(), experiment.acceleration)
    measured = [asdict(round) for round in experiment.choice.rounds] if experiment.choice else []
    about_data = {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "evaluation_fingerprint": dataset.evaluation.fingerprint,
        "notes": dataset.notes,
    }
    folder.write_json(folder.environment, {**described, "autotune": measured, "dataset": about_data})
    if dataset.drawn is not None:
        folder.write_json(folder.drawn_test_images, {"test": dataset.drawn})
    originals, augmented = experiment.train.preview(AUGMENTATIONS_SHOWN)
    folder.write_arrays(folder.augmentations, originals=originals, augmented=augmented)
    size = experiment.preprocessing.input_size
    folder.write_json(folder.network, experiment.model.summary((3, size, size)).to_json())
    # What "auto" came to, so that a resume or an evaluation does not come to something else.
    data = dataset.name if experiment.config.data == "auto" else experiment.config.data
    # Last: a folder that has it is a run's, and can be gone on with.
    folder.write_json(folder.config, replace(experiment.config, data=data).to_json())
