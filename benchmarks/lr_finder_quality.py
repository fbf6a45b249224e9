"""Compare the learning rates of the LR finder with a grid of LR max × LR min, on a small budget.

Every cell of the grid is one run of the baseline recipe. It starts from the same weights, trains on a stratified subset
of the training set, and is evaluated on a validation split; the test set is never read. LR max is the finder's value,
or a multiple of it. LR min is the finder's value, a tenth of LR max, or a hundredth. Every cell is recorded when it
ends, so the same command continues an interrupted study.
"""

import argparse
import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from studies import load_or_start, train, write

from onecycle.core.config import Config
from onecycle.core.errors import InputError
from onecycle.core.recipes import BASELINE
from onecycle.report.visualizations import save_png
from onecycle.report.visualizations.style import BLUE, GREY, INK, VERMILLION, chart, styled
from onecycle.run.build import Experiment, assemble
from onecycle.train.lr_finder import find_lr

MULTIPLES = (1 / 3, 1, 3)  # LR max of a cell, as a multiple of the finder's LR max
RULES = ("finder", "max/10", "max/100")  # LR min of a cell: the finder's value, or a fraction of LR max


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="as in `onecycle train`")
    parser.add_argument("--images", type=int, default=10_240, help="training images per cell")
    parser.add_argument("--validation", type=int, default=5000, help="validation images")
    parser.add_argument("--epochs", type=int, default=5, help="epochs per cell")
    parser.add_argument(
        "--seed", type=int, default=1, help="the default differs from the seed of the recorded run, so images differ"
    )
    parser.add_argument("--out", type=Path, default=Path("results/lr_finder_quality"), help="folder for JSON and PNG")
    options = parser.parse_args()
    try:
        config = replace(
            BASELINE,
            data=options.data,
            validation=options.validation,
            limit=options.images,
            epochs=options.epochs,
            seed=options.seed,
        )
        study = load_or_start(options.out / "study.json", config, sweep)
    except InputError as error:
        print(f"lr_finder_quality: {error}", file=sys.stderr)
        return 2
    for multiple in sorted(MULTIPLES, key=lambda multiple: abs(math.log(multiple))):
        for rule in RULES:
            if not any((cell["multiple"], cell["rule"]) == (multiple, rule) for cell in study["cells"]):
                study["cells"].append(train_cell(config, study["curve"], multiple, rule))
                write(options.out / "study.json", study)
                print(json.dumps(study["cells"][-1]), flush=True)
    study["verdict"] = verdict(study["cells"])
    write(options.out / "study.json", study)
    save_png(draw(study), options.out / "study.png")
    print(json.dumps(study["verdict"], indent=2))
    return 0


def sweep(experiment: Experiment) -> dict[str, Any]:
    """Run the LR finder. Returns its curve as the field "curve" of a new study."""
    curve = find_lr(experiment.model, experiment.optimizer, experiment.train, plan=experiment.plan)
    return {"curve": curve.to_json()}


def train_cell(config: Config, curve: dict[str, Any], multiple: float, rule: str) -> dict[str, Any]:
    """Train with one pair of learning rates. Returns accuracy (0 to 1) and loss on the validation images."""
    lr_max = curve["lr_max"] * multiple
    lr_min = {"finder": curve["lr_min"], "max/10": lr_max / 10, "max/100": lr_max / 100}[rule]
    experiment = assemble(config)
    started = time.perf_counter()
    history = train(experiment, lr_min=lr_min, lr_max=lr_max)
    return {
        "multiple": multiple,
        "rule": rule,
        "lr_max": lr_max,
        "lr_min": lr_min,
        "accuracy": history[-1].eval_accuracy,
        "loss": history[-1].eval_loss,
        "seconds": round(time.perf_counter() - started, 1),
    }


def verdict(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare the run with the finder's learning rates with the best run of the grid."""
    best = max(cells, key=lambda cell: float(cell["accuracy"]))
    found = next(cell for cell in cells if (cell["multiple"], cell["rule"]) == (1, "finder"))
    return {
        "finder": found,
        "best": best,
        "points_below_best": round(100 * (best["accuracy"] - found["accuracy"]), 2),
        "cells_above_finder": sum(cell["accuracy"] > found["accuracy"] for cell in cells),
        "cells": len(cells),
    }


@styled
def draw(study: dict[str, Any]) -> Figure:
    """Plot validation accuracy over LR max, with a line for each rule for LR min. The finder's values are marked."""
    figure, axes = chart(top=0.75)
    labels = (f"LR min {study['curve']['lr_min']:.1e}, the finder's", "LR min = LR max / 10", "LR min = LR max / 100")
    for rule, label, color, marker in zip(RULES, labels, (BLUE, VERMILLION, GREY), "os^", strict=True):
        cells = sorted((cell for cell in study["cells"] if cell["rule"] == rule), key=lambda cell: cell["lr_max"])
        rates = [cell["lr_max"] for cell in cells]
        axes.plot(rates, [100 * cell["accuracy"] for cell in cells], color=color, marker=marker, label=label)
    found = study["verdict"]["finder"]
    place = (found["lr_max"], 100 * found["accuracy"])
    axes.plot(*place, "o", markersize=15, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.5)
    axes.annotate(
        f"the finder's pair: {place[1]:.1f} %",
        place,
        xytext=(30, 36),
        textcoords="offset points",
        arrowprops={"arrowstyle": "-", "color": GREY, "shrinkB": 8},
        color=INK,
        weight="bold",
    )
    axes.set_xscale("log")
    axes.set_xticks(rates, [f"{rate:.1e}" for rate in rates])
    axes.minorticks_off()
    axes.margins(y=0.2)
    axes.set_xlabel("LR max, log scale")
    axes.set_ylabel("validation accuracy (%)")
    axes.legend(loc="lower center")
    below, cells = study["verdict"]["points_below_best"], len(study["cells"])
    axes.set_title(f"Learning rate grid: the finder's pair is {below:.1f} points below the best of {cells}", pad=18)
    return figure


if __name__ == "__main__":
    sys.exit(main())
