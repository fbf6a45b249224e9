"""The commands that train: `onecycle train | find-lr | study`, generated from `Config`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from onecycle.cli.app import app
from onecycle.cli.engine_options import HERE, Where
from onecycle.core.config import BASELINE, Config
from onecycle.distributed import job

Settings = Annotated[Config, Parameter(name="*")]
Saved = Annotated[Path | None, Parameter(name="--config")]


@app.command
def train(
    *, settings: Settings = BASELINE, config: Saved = None, resume: Path | None = None, processes: int = 1
) -> int:
    """Find the learning rates, train, evaluate, and write a run folder.

    Parameters
    ----------
    config
        Start from the config.json of a run; other options change it.
    resume
        Go on with the interrupted run in this folder, as it was configured, from where it was saved.
    processes
        How many processes on this machine share out the --shards of each batch.
    """
    if processes != 1 and not job.is_part():
        from onecycle.distributed.launching import launch

        return launch(processes, settings.shards)
    from onecycle.run import experiment

    console = Console()
    if resume:
        # Where another machine has the folder, the run is as that one says.
        folder = experiment.resume(resume, console, settings if resume.exists() else None)
    else:
        folder = experiment.run(settings, console)
    if not folder.complete:
        return 0  # another process led, and tells
    result = folder.read_result()
    averaged = "" if result.tta_accuracy is None else f"{result.tta_accuracy:.2%} with test-time augmentation, "
    console.print(
        f"\n{result.evaluated_on} accuracy {result.test_accuracy:.2%} at the last epoch "
        f"(best {result.best_test_accuracy:.2%}, epoch {result.best_epoch}), "
        f"{averaged}train {result.train_accuracy:.2%}, {result.seconds / 60:.1f} minutes, in {folder.path}",
        highlight=False,
        soft_wrap=True,
    )
    return 0


@app.command(name="find-lr")
def find_lr(*, settings: Settings = BASELINE, config: Saved = None) -> int:
    """Run the LR finder alone, and write its curve and picture.

    Parameters
    ----------
    config
        Start from the config.json of a run; other options change it.
    """
    from onecycle.run import experiment

    folder = experiment.find_rates(settings, Console())
    if not folder.lr_finder.exists():
        return 0  # another process led, and tells
    print(f"{folder.lr_finder}\n{folder.pictures / 'lr_finder.png'}")
    return 0


@app.command
def study(
    *,
    settings: Settings = BASELINE,
    config: Saved = None,
    seeds: int = 5,
    grid: tuple[str, ...] = (),
    vary: tuple[str, ...] = (),
    threshold: float = 0.9,
    cores: int | None = None,
    resume: Path | None = None,
    where: Annotated[Where, Parameter(name="*")] = HERE,
) -> int:
    """Train with several seeds, and say what all runs come to together: means, intervals, differences.

    Parameters
    ----------
    config
        Start from the config.json of a run; other options change it.
    seeds
        Runs of each variant, with --seed and the seeds that follow it.
    grid
        field=value,value: run all combinations of the values of every --grid. Sizes and widths are written 24-28-32.
    vary
        field=value,value: run the recipe itself, and with each of the values of every --vary alone.
    threshold
        Count the runs that reach this accuracy, a fraction; with test-time augmentation if the recipe has it.
    cores
        CPU cores that each run computes with; all of this machine's when left out.
    resume
        Go on with the study in this folder; takes no other option but --engine and --address.
    """
    from onecycle.study.ray import RunsOnRay
    from onecycle.study.run import LOCAL
    from onecycle.study.study import begin, go_on, plan

    engine = RunsOnRay(where.address) if where.engine == "ray" else LOCAL
    if resume:
        go_on(resume, Console(), engine)
    else:
        planned = plan(settings, seeds=seeds, grid=grid, vary=vary, threshold=threshold, cores=cores)
        begin(planned, Console(), engine)
    return 0
