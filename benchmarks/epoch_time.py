"""Measure what loading and augmenting data adds to a training epoch.

Three kinds of epochs take turns in one process: an epoch with albumentations in a worker process, an epoch with the
batched augmentation, and an epoch with as many steps on one fixed batch. In each round, the seconds of an epoch are
divided by the seconds with the fixed batch. The result is the median of these ratios. No epoch includes evaluation.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice, repeat
from pathlib import Path

from studies import rounded, write

from onecycle.compute import hardware
from onecycle.core.errors import InputError
from onecycle.core.recipes import BASELINE
from onecycle.models import Batch
from onecycle.run import environment
from onecycle.run.build import assemble
from onecycle.train.loop import training_steps

LR = 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="as in `onecycle train`")
    parser.add_argument("--images", type=int, default=12_800, help="images of an epoch")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("results/epoch_time.json"))
    options = parser.parse_args()
    config = replace(BASELINE, data=options.data, limit=options.images, batch_size=options.batch_size)
    try:
        experiment = assemble(config)
        batched = assemble(replace(config, augmentation="batched"), experiment.plan).train
    except InputError as error:
        print(f"epoch_time: {error}", file=sys.stderr)
        return 2
    prepared = experiment.plan.prepare(experiment.model)
    fixed = next(experiment.evaluation.epoch(0))
    steps = len(experiment.train)

    def seconds(batches: Iterable[Batch]) -> float:
        started = time.perf_counter()
        steps = training_steps(prepared, experiment.optimizer, batches, lambda step: LR, plan=experiment.plan)
        for _, result in steps:
            float(result.loss)  # read the loss after every step, as a progress bar does
        return time.perf_counter() - started

    seconds(islice(experiment.train.epoch(0), 3))  # warm up and start the worker process
    times: dict[str, list[float]] = {"fixed_batch": [], "albumentations": [], "batched": []}
    for round in range(options.rounds):
        times["fixed_batch"].append(seconds(repeat(fixed, steps)))
        times["albumentations"].append(seconds(experiment.train.epoch(round)))
        times["batched"].append(seconds(batched.epoch(round)))
        print({name: f"{values[-1]:.2f} s" for name, values in times.items()}, flush=True)
    ratios = {
        name: rounded(statistics.median(a / b for a, b in zip(values, times["fixed_batch"], strict=True)))
        for name, values in times.items()
        if name != "fixed_batch"
    }
    record = {
        "ratios": ratios,
        "seconds": {name: [rounded(value) for value in values] for name, values in times.items()},
        "steps": steps,
        "batch_size": options.batch_size,
        "environment": environment.describe(hardware.detect(), experiment.plan),
    }
    write(options.out, record)
    print("relative to the fixed batch:", ratios)
    return 0


if __name__ == "__main__":
    sys.exit(main())
