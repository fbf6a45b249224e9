"""What do the data cost an epoch? Whole training epochs against the same number of steps on one batch that is at hand.

The kinds take turns in one process: steps on a fixed batch, an epoch with albumentations in a worker process, an epoch
with the batched augmentation. Ratios are those of seconds to the steps on the fixed batch in the same round; their
median counts. Evaluation is not in an epoch.
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
from onecycle.core.config import BASELINE
from onecycle.core.errors import InputError
from onecycle.models import Batch
from onecycle.run import environment
from onecycle.run.build import assemble
from onecycle.train.loop import training_steps

LR = 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="as in `onecycle train`")
    parser.add_argument("--images", type=int, default=12_800, help="in an epoch")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("results/epoch_time.json"))
    options = parser.parse_args()
    config = replace(BASELINE, data=options.data, limit=options.images, batch_size=options.batch_size)
    try:
        parts = assemble(config)
        batched = assemble(replace(config, augmentation="batched"), parts.acceleration).train
    except InputError as error:
        print(f"epoch_time: {error}", file=sys.stderr)
        return 2
    running = parts.acceleration.prepare(parts.model)
    fixed = next(parts.evaluation.epoch(0))
    steps = len(parts.train)

    def seconds(batches: Iterable[Batch]) -> float:
        began = time.perf_counter()
        trained = training_steps(running, parts.optimizer, batches, lambda step: LR, acceleration=parts.acceleration)
        for outcome in trained:
            float(outcome.loss)  # as a progress bar does
        return time.perf_counter() - began

    seconds(islice(parts.train.epoch(0), 3))  # starts the worker, too
    times: dict[str, list[float]] = {"fixed_batch": [], "albumentations": [], "batched": []}
    for round in range(options.rounds):
        times["fixed_batch"].append(seconds(repeat(fixed, steps)))
        times["albumentations"].append(seconds(parts.train.epoch(round)))
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
        "environment": environment.describe(hardware.detect(), parts.acceleration),
    }
    write(options.out, record)
    print("against the fixed batch:", ratios)
    return 0


if __name__ == "__main__":
    sys.exit(main())
