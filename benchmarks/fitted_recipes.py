"""Train recipes on small data sets with the values that `recipes.fitted` chooses, or with --values.

The learning curve is CIFAR-10 with 500, 2,000 and 10,000 of its training images, and two of its classes with 120 images
each. They are evaluated on other training images (those among 2,000), so the test set chooses nothing. The other sets
are the embedded digits and, with --sign-digits, photographs of hand signs. A run in the output is not repeated.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from studies import rounded, train, write

import onecycle
from onecycle.compute import hardware
from onecycle.compute.plan import ComputePlan
from onecycle.core.config import Config
from onecycle.core.recipes import RECIPES, fitted
from onecycle.data.batches import Batches
from onecycle.run import environment
from onecycle.run.build import assemble, load_data
from onecycle.train.loop import evaluate
from onecycle.train.lr_finder import find_lr

HELD_OUT = 2000  # images of CIFAR-10's training set on which the learning curve is evaluated
CURVE = {"cifar10-500": 500, "cifar10-2000": 2000, "cifar10-10000": 10_000}
PAIR, PAIR_IMAGES = ("automobile", "horse"), 120  # the set of two classes, and its images of each


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="*", choices=RECIPES, default=["quick"])
    parser.add_argument("--sets", nargs="*", help="use only these sets")
    parser.add_argument("--values", nargs="*", default=["fitted"], help="fitted, own, or a batch size and epochs: 62x4")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--sign-digits", help="an archive with the photographs of hand signs, in class folders")
    parser.add_argument("--minutes", type=float, default=40, help="start no further run after this time")
    parser.add_argument("--out", type=Path, default=Path("results/fitted_recipes.json"))
    options = parser.parse_args()
    record: dict[str, Any] = {"environments": [], "cells": []}
    if options.out.exists():
        record = json.loads(options.out.read_text())
    end = time.monotonic() + 60 * options.minutes
    plans: dict[str, ComputePlan] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed, (name, data), recipe, values in product(
            range(options.seeds),
            sets(Path(folder), options.sign_digits, options.sets),
            options.recipes,
            options.values,
        ):
            config = replace(RECIPES[recipe], data=str(data), seed=seed, workers=0)
            images = len(load_data(config).train)
            config = with_values(config, values, images)
            cell = {
                **{"set": name, "recipe": recipe, "seed": seed, "images": images},
                **{"batch_size": config.batch_size, "epochs": config.epochs},
            }
            if any(cell.items() <= other.items() for other in record["cells"]) or time.monotonic() > end:
                continue
            result, plans[recipe] = measured(config, plans.get(recipe))
            described = environment.describe(hardware.detect(), plans[recipe])
            command = f"fitted_recipes.py --recipes {recipe} --sets {name} --values {values}"  # without local paths
            record["environments"].append({**described, "command": command})
            # A later call may have other code or another plan, so each cell has its own environment.
            record["cells"].append({**cell, **result, "environment": len(record["environments"]) - 1})
            print(json.dumps(record["cells"][-1]), flush=True)
            write(options.out, record)
    return 0


def sets(folder: Path, sign_digits: str | None, wanted: list[str] | None) -> Iterator[tuple[str, str | Path]]:
    """The name and the data of each set. Those of CIFAR-10 are written into `folder` as PNG files."""
    for name, images in {f"cifar10-{'-'.join(PAIR)}": PAIR_IMAGES, **CURVE}.items():
        if not wanted or name in wanted:
            yield name, write_part(folder / name, images // (1 if images == PAIR_IMAGES else 10))
    for name, data in {"digits": "digits", **({"sign-digits": sign_digits} if sign_digits else {})}.items():
        if not wanted or name in wanted:
            yield name, data


def write_part(folder: Path, each: int) -> Path:
    """Write `each` training images of each class, and `HELD_OUT` other training images of CIFAR-10 as the test set."""
    if folder.exists():
        return folder
    images = onecycle.load_dataset("cifar10").train
    order = np.random.default_rng(0).permutation(len(images))
    for label, name in enumerate(images.classes):
        if folder.name in CURVE or name in PAIR:
            rows = order[images.labels[order] == label]
            held_out = order[:HELD_OUT][images.labels[order[:HELD_OUT]] == label]
            for split, chosen in {"train": rows[len(held_out) :][:each], "test": held_out}.items():
                (folder / split / name).mkdir(parents=True)
                for row in chosen:
                    Image.fromarray(images.images[row]).save(folder / split / name / f"{row:05}.png")
    return folder


def with_values(config: Config, values: str, images: int) -> Config:
    """`config` with the batch size and the epochs that `values` says, for `images` training images."""
    if values == "fitted":
        return fitted(replace(config, from_data=("batch_size", "epochs", "sizes")), images)
    if values == "own":
        return replace(config, batch_size=min(config.batch_size, images))
    batch_size, epochs = map(int, values.split("x"))
    return replace(config, batch_size=batch_size, epochs=epochs)


def measured(config: Config, plan: ComputePlan | None) -> tuple[dict[str, Any], ComputePlan]:
    """The result of one run, and its compute plan."""
    experiment = assemble(config, plan)
    plan = experiment.plan
    # Each epoch is evaluated on a few images only. The whole set is evaluated once, at the end.
    few = experiment.dataset.evaluation.subset(np.arange(50))
    few_batches = Batches(few, experiment.preprocessing, batch_size=50, device=plan.device)
    started = time.perf_counter()
    rates = config.lr_min, config.lr_max
    if rates[1] is None:
        curve = find_lr(experiment.model, experiment.optimizer, experiment.train.at_last_size(), plan=plan)
        rates = curve.lr_min, curve.lr_max
    found = time.perf_counter()
    train(replace(experiment, evaluation=few_batches), lr_min=rates[0], lr_max=rates[1])
    seconds = time.perf_counter() - started
    evaluation = evaluate(experiment.model, experiment.evaluation, evaluated_on="test", plan=plan)
    return {
        "steps": config.epochs * len(experiment.train),
        "lr_max": rates[1],
        "accuracy": rounded(evaluation.accuracy),
        "loss": rounded(evaluation.loss),
        "finder_seconds": rounded(found - started) if config.lr_max is None else 0,
        "seconds": rounded(seconds),
    }, plan


if __name__ == "__main__":
    sys.exit(main())
