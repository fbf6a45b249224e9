"""The commands that train: `onecycle train | find-lr | study | calibrate`."""

import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from onecycle.cli.app import app
from onecycle.cli.options import (
    DEFAULT_ENGINE,
    MORE_OPTIONS,
    TRAIN_OPTIONS,
    EngineSettings,
    OwnNetwork,
    RunOptions,
    Settings,
)
from onecycle.core.console import OutputConsole
from onecycle.core.errors import InputError
from onecycle.core.formatting import percent
from onecycle.core.own_network import option_of
from onecycle.distributed import job

SavedConfig = Annotated[Path | None, Parameter(name="--config")]
_DEFAULTS = RunOptions()


@app.command(help_epilogue=MORE_OPTIONS)
def train(
    *,
    settings: Settings = _DEFAULTS,
    config: SavedConfig = None,
    resume: Path | None = None,
    allow_code_changes: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    processes: int = 1,
) -> int:
    """Find the learning rates, train, evaluate, and write a run folder.

    Parameters
    ----------
    config
        Start from a config.json; other options override it.
    resume
        Resume the interrupted run in this folder.
    allow_code_changes
        Resume although onecycle's code has changed.
    processes
        Processes on this machine; they share the --shards.
    """
    if processes != 1 and not job.is_part_of_launch():
        if job.is_part():
            raise InputError(
                f"--processes is {processes}, but RANK and WORLD_SIZE are set, so another launcher has started this "
                "process; remove --processes, or unset these variables"
            )
        from onecycle.distributed.launch import launch

        return launch(processes, settings.config().shards)
    if allow_code_changes and not resume:
        raise InputError("--allow-code-changes is for resuming a run; add --resume RUN, or remove --allow-code-changes")
    from onecycle.run import experiment

    console = OutputConsole()
    if resume:
        # If the run folder is on another machine, that machine provides the configuration.
        given = settings.config() if resume.exists() else None
        network = settings.network.network  # for the user's own network, `cli.defaults` has checked this name
        folder = experiment.resume(resume, console, given, network=network, allow_code_changes=allow_code_changes)
    else:
        folder = experiment.run(settings.config(), console, repeated=config and config.parent)
    if not folder.is_complete:
        return 0  # only the main process prints the result
    result = folder.read_result()
    if not result.calibration:
        command = f"onecycle calibrate --run {shlex.quote(str(folder.path))}{option_of(folder.read_config().network)}"
        print(f"The probabilities are not calibrated; `{command}` calibrates them")
    tta = "" if result.tta_accuracy is None else f"{percent(result.tta_accuracy)} with test-time augmentation, "
    validation = "" if result.validation_accuracy is None else f"validation {percent(result.validation_accuracy)}, "
    print(  # not by `console`: the run is complete, so it is no interruption if nobody reads this
        f"\n{result.evaluated_on} accuracy {percent(result.eval_accuracy)} at the last epoch "
        f"({validation}best {percent(result.best_eval_accuracy)}, epoch {result.best_epoch}), "
        f"{tta}train {percent(result.train_accuracy)}, {result.seconds / 60:.1f} minutes, in {folder.path}"
    )
    return 0


@app.command(name="find-lr", help_epilogue=TRAIN_OPTIONS)
def find_lr(*, settings: Settings = _DEFAULTS, config: SavedConfig = None) -> int:
    """Run only the LR finder, and write its curve and plot.

    Parameters
    ----------
    config
        Start from a config.json; other options override it.
    """
    from onecycle.run import experiment

    folder = experiment.find_rates(settings.config(), OutputConsole())
    if not folder.lr_finder.exists():
        return 0  # only the main process prints the result
    print(f"{folder.lr_finder}\n{folder.plots / 'lr_finder.png'}")
    return 0


@app.command(help_epilogue=TRAIN_OPTIONS)
def study(
    *,
    settings: Settings = _DEFAULTS,
    config: SavedConfig = None,
    seeds: int = 5,
    grid: tuple[str, ...] = (),
    vary: tuple[str, ...] = (),
    threshold: float = 0.9,
    cores: int | None = None,
    resume: Path | None = None,
    engine: EngineSettings = DEFAULT_ENGINE,
) -> int:
    """Train with several seeds and variants; print means, intervals and differences.

    Parameters
    ----------
    config
        Start from a config.json; other options override it.
    seeds
        The number of runs of each variant. Their seeds count up from --seed.
    grid
        field=value,value: run all combinations of all --grid values. Write sizes and widths as 24-28-32.
    vary
        field=value,value: run the recipe unchanged, and one variant for each value of each --vary.
    threshold
        Count the runs that reach this accuracy (a fraction), with test-time augmentation if configured.
    cores
        CPU cores for each run; by default all cores of this machine.
    resume
        Resume the study in this folder. Add only --engine, --address or --network.
    """
    from onecycle.study import study as studies
    from onecycle.study.ray import RayStudyEngine
    from onecycle.study.run import LOCAL_STUDY_ENGINE

    chosen = RayStudyEngine(engine.address) if engine.engine == "ray" else LOCAL_STUDY_ENGINE
    if resume:
        studies.resume(resume, OutputConsole(), chosen, network=settings.network.network)
    else:
        planned = studies.plan(settings.config(), seeds=seeds, grid=grid, vary=vary, threshold=threshold, cores=cores)
        studies.start(planned, OutputConsole(), chosen)
    return 0


@app.command
def calibrate(
    *,
    run: Path,
    network: OwnNetwork = None,
    data: str | None = None,
    labels: str | None = None,
    init: str | None = None,
) -> int:
    """Calibrate the probabilities of a finished run. Its predictions stay the same.

    Trains a second network on nine tenths of the training images, and fits a temperature to the other tenth.
    This takes about as long as the run. Repeat the command to resume after an interruption.
    A run with validation images has a temperature already.

    Parameters
    ----------
    run
        The run folder.
    data
        The data set, if it has moved since the run.
    labels
        The file with the labels, if it has moved since the run.
    init
        The initial weights of the run, if they have moved since the run.
    """
    from onecycle.run.calibrate import calibrate_run

    fitted = calibrate_run(run, OutputConsole(), data, labels=labels, init=init, network=network)
    print(f"The temperature is {fitted.temperature:.3f}, fitted on {fitted.fitted_on}; it is saved in {run}")
    return 0
