"""What can be done with a run that is complete: compute its result again, look into it, write its page again."""

from dataclasses import replace
from pathlib import Path

from onecycle.compute import hardware
from onecycle.compute.plan import Acceleration
from onecycle.core.config import Config
from onecycle.core.errors import InputError
from onecycle.core.files import locked
from onecycle.data import Dataset
from onecycle.data.batches import Batches
from onecycle.models.test_time_augmentation import Averaged
from onecycle.predict.predictor import Predictor
from onecycle.run import environment
from onecycle.run.build import load_data
from onecycle.storage.run_folder import RunFolder
from onecycle.train.loop import Evaluation, evaluate


def evaluate_run(path: Path, data: str | None = None) -> tuple[Evaluation, float | None]:
    """Compute a finished run's result again from its weights, on the data it was trained on, from `data` if given.

    The second is the accuracy with test-time augmentation, where the run was asked for it.

    Raises:
        InputError: when there is no such run, or the data are not those of the run.
    """
    folder = RunFolder.open(path)
    config = folder.read_config()
    how = _recorded_way(folder)
    predictor = Predictor.load(folder.weights, how)
    dataset = _recorded_data(folder, config, data)
    batches = Batches(dataset.evaluation, predictor.preprocessing, batch_size=config.batch_size, device=how.device)
    evaluation = evaluate(predictor.model, batches, acceleration=how)
    if not config.test_time_augmentation:
        return evaluation, None
    return evaluation, evaluate(Averaged(predictor.model), batches, acceleration=how).accuracy


def report_run(path: Path, data: str | None = None) -> Path:
    """Write a run's page again from its folder, and return the page.

    Where a complete run was not interpreted yet, that is done first, from its weights and its data, from `data` if
    given. The page of a run that is at work tells how far it is.

    Raises:
        InputError: when there is no such run; or when the data are not those of the run, or it was computed on a device
            that this machine lacks: its page is then written without what needs these.
    """
    folder = RunFolder.open(path)
    missing = [path for path in (folder.weights, folder.training_margins) if not path.exists()]
    if folder.complete and not missing and not folder.interpretation.exists():
        try:
            with locked(folder.path):
                predictor = Predictor.load(folder.weights, _recorded_way(folder))
                interpret_run(folder, predictor, _recorded_data(folder, folder.read_config(), data))
        except InputError as error:
            raise InputError(f"{write_page(folder)} lacks what needs the network and the data: {error}") from error
    return write_page(folder)


def interpret_run(folder: RunFolder, predictor: Predictor, dataset: Dataset) -> None:
    """Look into the network and the data of the complete run in `folder`, and write down what is seen."""
    from onecycle.predict.explain import interpret

    logits = folder.read_arrays(folder.predictions)["logits"]
    margins = folder.read_arrays(folder.training_margins)["margins"]
    folder.write_arrays(folder.interpretation, **interpret(predictor, dataset, logits, margins).to_arrays())


def write_page(folder: RunFolder) -> Path:
    """Write the page about the run in `folder`, as far as it got."""
    from onecycle import report  # only now: it loads matplotlib, for which the first step need not wait

    return report.write(folder)


def _recorded_way(folder: RunFolder) -> Acceleration:
    """The way the run computed, as far as evaluation needs it; this process is set up for it."""
    how = environment.recorded_acceleration(folder).for_evaluation()
    how.require(hardware.detect())
    how.apply()
    return how


def _recorded_data(folder: RunFolder, config: Config, data: str | None) -> Dataset:
    dataset = load_data(config if data is None else replace(config, data=data))
    environment.require_same_data(folder, dataset)
    return dataset
