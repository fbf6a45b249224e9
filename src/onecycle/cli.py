"""The command line: `onecycle train | find-lr | study | check | evaluate | …`, generated from `Config`."""

import io
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.table import Table

from onecycle.config import BASELINE, RECIPES, Config, Recipe
from onecycle.defaults import fill_in
from onecycle.errors import InputError
from onecycle.interruption import Interrupted, watched

app = App(
    name="onecycle",
    help="Train a small, strong image classifier with one cycle of the learning rate. With --debug, an error shows its "
    "traceback.",
    version=version("onecycle"),
    default_parameter=Parameter(negative_iterable=(), negative_none=(), consume_multiple=True),
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)
Settings = Annotated[Config, Parameter(name="*")]
Saved = Annotated[Path | None, Parameter(name="--config")]


@app.command
def train(*, settings: Settings = BASELINE, config: Saved = None, resume: Path | None = None) -> int:
    """Find the learning rates, train, evaluate, and write a run folder.

    Parameters
    ----------
    config
        Start from the config.json of a run; other options change it.
    resume
        Go on with the interrupted run in this folder, as it was configured, from where it was saved.
    """
    from onecycle import experiment

    console = Console()
    folder = experiment.resume(resume, console, settings) if resume else experiment.run(settings, console)
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
    from onecycle import experiment

    folder = experiment.find_rates(settings, Console())
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
    resume: Path | None = None,
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
    resume
        Go on with the study in this folder; takes no other option.
    """
    from onecycle.study import begin, go_on, plan

    if resume:
        go_on(resume, Console())
    else:
        begin(plan(settings, seeds=seeds, grid=grid, vary=vary, threshold=threshold), Console())
    return 0


@app.command
def evaluate(run: Path, /, *, data: str | None = None) -> int:
    """Compute a run's result again from its weights; exit code 1 if it is not what was recorded.

    Parameters
    ----------
    run
        The run's folder.
    data
        Where the run's data are now, if they moved.
    """
    from onecycle.finished import evaluate_run
    from onecycle.run_folder import RunFolder

    recorded = RunFolder.open(run).read_result()
    evaluation, averaged = evaluate_run(run, data)
    now = evaluation.accuracy, evaluation.loss, averaged
    then = recorded.test_accuracy, recorded.test_loss, recorded.tta_accuracy

    def told(accuracy: float, loss: float, averaged: float | None) -> str:
        views = "" if averaged is None else f", accuracy with test-time augmentation {averaged}"
        return f"{recorded.evaluated_on} accuracy {accuracy}, loss {loss}{views}"

    print(told(*now))
    if now == then:
        print("as recorded in result.json, to the last digit")
        return 0
    print(f"result.json has {told(*then)}: these differ", file=sys.stderr)
    return 1


@app.command
def report(run: Path, /, *, data: str | None = None) -> int:
    """Write the page about a run again, from what is in its folder.

    Parameters
    ----------
    run
        The run's folder.
    data
        Where the run's data are now, if they moved and the run was not interpreted yet.
    """
    from onecycle.finished import report_run

    print(report_run(run, data))
    return 0


@app.command
def compare(*runs: Path, out: Path = Path("compare.html")) -> int:
    """Write a page about several runs side by side: curves, differences, and the images on which they disagree.

    Parameters
    ----------
    runs
        The folders of 2 to 6 complete runs; the others are compared with the first.
    out
        The page.
    """
    from onecycle import report

    print(report.compare(runs, out))
    return 0


@app.command
def check(data: str = "cifar10", /) -> int:
    """Look a data set through before training on it; exit code 1 if that would be unsafe.

    Parameters
    ----------
    data
        cifar10, digits, or a path, as --data of `onecycle train`.
    """
    from onecycle.dataset.check import check

    found = check(data)
    print("\n".join(found.lines()))
    return 1 if found.dangers() else 0


@app.command
def summary(
    *,
    recipe: Recipe = "baseline",
    classes: int = 10,
    input_size: int = 32,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Print the network layer by layer.

    Parameters
    ----------
    recipe
        The recipe whose network it is.
    classes
        Number of classes.
    input_size
        Height and width of the images.
    as_json
        Print JSON instead of a table.
    """
    from onecycle.models import Architecture, WhitenedConvNet

    chosen = RECIPES[recipe]
    model = Architecture.of(chosen).build(classes, input_size)
    if isinstance(model, WhitenedConvNet) and chosen.whitening:
        model.fix_filters()
    network = model.summary((3, input_size, input_size))
    if as_json:
        print(json.dumps(network.to_json(), indent=2))
        return 0
    table = Table(box=None, header_style="bold")
    table.add_column("Layer")
    table.add_column("Output shape")
    table.add_column("Parameters", justify="right")
    for layer in network.layers:
        table.add_row(layer.layer, str(list(layer.output_shape)), f"{layer.parameters:,}")
    Console().print(table, highlight=False)
    print(f"\nTotal params: {network.parameters:,}")
    print(f"Trainable params: {network.trainable_parameters:,}")
    print(f"Non-trainable params: {network.parameters - network.trainable_parameters:,}\n")
    print(f"Input size (MB): {network.input_mb:.2f}")
    print(f"Forward/backward pass size (MB): {network.forward_backward_mb:.2f}")
    print(f"Params size (MB): {network.parameters_mb:.2f}")
    print(f"Estimated total size (MB): {network.total_mb:.2f}")
    return 0


@app.command
def predict(*files: Path, run: Path | None = None) -> int:
    """Name what is in pictures: a line each with file, class and probability.

    Parameters
    ----------
    files
        Pictures of any size.
    run
        The run whose network to use; the newest complete one in runs/ when left out.
    """
    from onecycle.predictor import Predictor, read_picture
    from onecycle.run_folder import RunFolder, newest_complete

    if not files:
        raise InputError("no picture is given; name one or more files")
    folder = RunFolder.open(run) if run else newest_complete(BASELINE.out)
    predictor = Predictor.load(folder.weights)
    failed = 0
    for file in files:
        try:
            (prediction,) = predictor.predict([read_picture(file)])
        except InputError as error:
            print(f"onecycle: {error}", file=sys.stderr)
            failed += 1
        else:
            print(f"{file}\t{prediction.label}\t{prediction.probability:.2%}")
    return 2 if failed else 0


app.config = (fill_in,)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 2 for bad input, with one line that says what is wrong."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in tokens
    if debug:
        tokens.remove("--debug")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be no text
    try:
        with watched():
            return _run(tokens, debug)
    except Interrupted as stopped:
        print("; ".join(["onecycle: interrupted", *filter(None, [str(stopped)])]), file=sys.stderr)
        return stopped.exit_code


def _run(tokens: list[str], debug: bool) -> int:
    try:
        result = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        return result if isinstance(result, int) else 0
    except (InputError, CycloptsError) as error:
        if debug:
            raise
        print(f"onecycle: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output, `head` say, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if debug:
            raise
        print(f"onecycle: {error.filename or 'the output'}: {error.strerror}; look there", file=sys.stderr)
        return 2
