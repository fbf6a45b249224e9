"""The commands that look at something: `onecycle evaluate | report | compare | check | summary`."""

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from onecycle.cli.app import app
from onecycle.core.config import RECIPES, Recipe


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
    from onecycle.run.existing import evaluate_run
    from onecycle.storage.run_folder import RunFolder

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
    from onecycle.run.existing import report_run

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
def check(data: str = "cifar10", /, *, size: int = 32) -> int:
    """Look a data set through before training on it; exit code 1 if that would be unsafe.

    Parameters
    ----------
    data
        cifar10, digits, or a path, as --data of `onecycle train`.
    size
        Height and width of the images in training, at which they are compared.
    """
    from onecycle.data.check import check

    found = check(data, input_size=size)
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
