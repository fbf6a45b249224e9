"""Estimate how long each recipe takes on CIFAR-10, on this CPU and on older CPUs, which are simulated.

For each class of CPU and each recipe, a process chooses a compute plan as a run does. It measures how long a training
step takes at each image size, and how long the evaluation of an image takes. It multiplies these times by the number of
steps in the training and in the sweep of the LR finder, and by the number of images in the evaluations after each
epoch. The estimate leaves out loading the data, the plots and the report, which take some seconds. With
--without-kernels, the compute plan is PyTorch in float32 and channels-last.
cpu_classes.py says how an older CPU is simulated.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cpu_classes
from studies import FROM_SCRATCH, rounded, write

from onecycle.compute import autotune, hardware
from onecycle.compute.hardware import Hardware
from onecycle.compute.plan import EAGER
from onecycle.core.recipes import RECIPES
from onecycle.data.batches import Batches
from onecycle.run import environment
from onecycle.run.build import assemble
from onecycle.run.experiment import SWEEP_STEPS
from onecycle.train.loop import evaluate, make_train_step, training_steps

TRAIN_IMAGES, EVAL_IMAGES = 50_000, 10_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="as in `onecycle train`")
    parser.add_argument("--steps", type=int, default=5, help="steps to time for each image size")
    parser.add_argument("--classes", nargs="*", choices=cpu_classes.ENVIRONMENT, default=list(cpu_classes.ENVIRONMENT))
    parser.add_argument("--recipes", nargs="*", choices=FROM_SCRATCH, default=FROM_SCRATCH)
    parser.add_argument("--without-kernels", action="store_true", help="use PyTorch's own kernels, in float32")
    parser.add_argument("--out", type=Path, default=Path("results/recipe_time.json"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.recipes[0], cpu_classes.detect(options.child), options)))
        return 0
    minutes: dict[str, dict[str, Any]] = {}
    for name in options.classes:
        for recipe in options.recipes:
            minutes.setdefault(name, {})[recipe] = found = in_a_process(name, recipe, options)
            print(f"{name}, {recipe}: {found['minutes']} minutes", flush=True)
    described = environment.describe(hardware.detect(), EAGER)
    del described["compute_plan"]  # each recipe has its own plan
    record = {"classes": minutes, "steps": options.steps, "environment": described}
    write(options.out, record)
    return 0


def in_a_process(name: str, recipe: str, options: argparse.Namespace) -> dict[str, Any]:
    """The result of `measure` in a new process that is limited to the instructions of the CPU class `name`."""
    command = [sys.executable, __file__, "--child", name, "--recipes", recipe, "--data", options.data]
    command += ["--steps", str(options.steps), *(["--without-kernels"] if options.without_kernels else [])]
    done = subprocess.run(
        command, env={**os.environ, **cpu_classes.ENVIRONMENT[name]}, stdout=subprocess.PIPE, text=True, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(recipe: str, machine: Hardware, options: argparse.Namespace) -> dict[str, Any]:
    """The seconds per step of each image size, the time per evaluated image, and the estimated minutes of a recipe."""
    config = replace(RECIPES[recipe], data=options.data)
    if options.without_kernels:
        plan = replace(EAGER, channels_last=True)
    else:
        plan = autotune.choose(assemble(config, EAGER).model, config.size, machine, device="cpu").plan
    parts = assemble(config, plan)
    sizes = config.sizes or (config.size,)
    steps_per_epoch = -(-TRAIN_IMAGES // config.batch_size)
    prepared = plan.prepare(parts.model)
    seconds = {}
    for number, size in enumerate(sizes):
        # Each image size has an equal share of the run's steps. These batches begin where the share of `size` begins.
        first = number * len(parts.train) * config.epochs // len(sizes)
        epoch, offset = divmod(first, len(parts.train))
        batches = parts.train.epoch(epoch, first=offset)
        step = make_train_step(parts.train, plan)
        steps = training_steps(prepared, parts.optimizer, batches, lambda step: 1e-6, plan=plan, train_step=step)
        times = []
        for _ in range(options.steps + 1):
            started = time.perf_counter()
            next(steps)
            times.append(time.perf_counter() - started)
        batches.close()
        seconds[size] = statistics.median(times[1:])
    count = min(len(parts.dataset.evaluation), 2 * config.batch_size)
    images = parts.dataset.evaluation.subset(list(range(count)))  # type: ignore[arg-type]
    evaluation = Batches(images, parts.preprocessing, batch_size=config.batch_size)
    started = time.perf_counter()
    evaluate(parts.model, evaluation, plan=plan)
    evaluating = (time.perf_counter() - started) / count
    finder = SWEEP_STEPS * seconds[sizes[-1]] if config.lr_max is None else 0.0
    training = config.epochs * steps_per_epoch * statistics.fmean(seconds.values())
    total = training + finder + config.epochs * EVAL_IMAGES * evaluating
    return {
        "minutes": rounded(total / 60),
        "computed": str(plan),
        "seconds_per_step": {str(size): rounded(value) for size, value in seconds.items()},
        "milliseconds_per_evaluated_image": rounded(1000 * evaluating),
    }


if __name__ == "__main__":
    sys.exit(main())
