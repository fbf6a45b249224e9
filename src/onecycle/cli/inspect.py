"""The commands that inspect runs, data and networks: `onecycle evaluate | report | compare | check | summary`."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from onecycle.cli.app import app
from onecycle.cli.options import OwnNetwork, Run
from onecycle.core.errors import InputError
from onecycle.core.option_groups import RecipeName
from onecycle.core.recipes import RECIPES

MOST_CLASSES = 1_000_000  # of a network in `onecycle summary`; more would need many GiB


@app.command
def evaluate(*, run: Run = None, network: OwnNetwork = None, data: str | None = None, labels: str | None = None) -> int:
    """Evaluate a network again, and compare the result with the recorded one.

    The exit code is 1 if the result of a run differs from its record in any digit.
    The accuracy of the network that comes with onecycle depends slightly on the CPU.
    For this network, the exit code is 1 if the accuracy differs by more than 0.1 points.

    Parameters
    ----------
    data
        The data set, if it has moved since the run.
    labels
        The file with the labels, if it has moved since the run.
    """
    from onecycle.run.finished import evaluate_run, evaluate_shipped

    if run is None and labels is not None:
        raise InputError("--labels is for a run; add --run, or leave out --labels")
    if run is None:
        recorded, now, agrees = evaluate_shipped(data, network=network)
    else:
        recorded, now, agrees = evaluate_run(run, data, labels=labels, network=network)
    print(now)
    if agrees:
        print("agrees with the recorded result")
        return 0
    print(f"differs from the recorded result: {recorded}", file=sys.stderr)
    return 1


@app.command
def report(*, run: Path, network: OwnNetwork = None, data: str | None = None, labels: str | None = None) -> int:
    """Write the HTML report of a run again.

    Parameters
    ----------
    run
        The run folder.
    data
        The data set, if it has moved since the run. It is needed only if the run has no interpretation yet.
    labels
        The file with the labels, if it has moved since the run.
    """
    from onecycle.run.finished import report_run

    print(report_run(run, data, labels=labels, network=network))
    return 0


@app.command
def compare(*, run: tuple[Path, ...], out: Path = Path("compare.html")) -> int:
    """Write an HTML report that compares several runs: curves, differences and disagreements.

    Parameters
    ----------
    run
        The run folders, 2 to 6. All further runs are compared with the first run.
    out
        The HTML file to write.
    """
    from onecycle import report

    print(report.compare(run, out))
    return 0


@app.command
def check(data: str = "cifar10", /, *, labels: str | None = None, size: int = 32, coarse: bool = False) -> int:
    """Validate a data set before training on it. The exit code is 1 if the data set is not safe to train on.

    Parameters
    ----------
    data
        The name of a data set or a path, as for --data of `onecycle train`.
    labels
        A CSV file with the file and the label of each image, as for --labels of `onecycle train`.
    size
        Height and width of the images in training.
    coarse
        Use the 20 coarse classes of CIFAR-100, not the 100 fine ones.
    """
    from onecycle.data.check import check

    found = check(data, labels=labels, input_size=size, coarse=coarse)
    print("\n".join(found.lines()))
    return 1 if found.dangers() else 0


@app.command
def summary(
    *,
    recipe: RecipeName = "baseline",
    classes: int = 10,
    size: int = 32,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Print the network of a recipe, layer by layer.

    Parameters
    ----------
    recipe
        The recipe.
    classes
        Number of classes.
    size
        Height and width of the images.
    as_json
        Print JSON instead of a table.
    """
    from onecycle.models import Architecture, WhitenedConvNet

    if classes > MOST_CLASSES:
        raise InputError(f"--classes is {classes}; it must be at most {MOST_CLASSES:,}")
    config = replace(RECIPES[recipe], size=size, sizes=())
    model = Architecture.of(config).build(classes, size)
    if isinstance(model, WhitenedConvNet) and config.whitening:
        model.freeze_filters()
    network = model.summary((3, size, size))
    if as_json:
        print(json.dumps(network.to_json(), indent=2))
        return 0
    table = Table(box=None, header_style="bold")
    table.add_column("Layer")
    table.add_column("Output shape")
    table.add_column("Parameters", justify="right")
    for layer in network.layers:
        table.add_row(layer.layer, str(list(layer.output_shape)), f"{layer.parameters:,}")
    console = Console()
    with console.capture() as captured:
        console.print(table, highlight=False)
    print(captured.get(), end="")  # as in all commands that only print, it is no error if the reader ends early
    print(f"\nTotal params: {network.parameters:,}")
    print(f"Trainable params: {network.trainable_parameters:,}")
    print(f"Non-trainable params: {network.parameters - network.trainable_parameters:,}\n")
    print(f"Input size (MB): {network.input_mb:.2f}")
    print(f"Forward/backward pass size (MB): {network.forward_backward_mb:.2f}")
    print(f"Params size (MB): {network.parameters_mb:.2f}")
    print(f"Estimated total size (MB): {network.total_mb:.2f}")
    return 0
