"""Estimate how long each recipe takes on CIFAR-10, on this CPU and on older CPUs, which are simulated.

For each class of CPU and each recipe, a process measures how long a training step takes at each image size, and how
long the evaluation of an image takes. It multiplies these times by the number of steps in the training and in the sweep
of the LR finder, and by the number of images in the evaluations after each epoch. The estimate leaves out loading the
data, the plots and the report, which take some seconds.
An older CPU is simulated by limiting oneDNN (for AVX2, also ATen and MKL) to its instructions. The clock and the caches
are still those of this CPU.
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

from studies import rounded, write

from onecycle.compute import hardware
from onecycle.compute.plan import ComputePlan
from onecycle.core.recipes import RECIPES
from onecycle.data.batches import Batches
from onecycle.run import environment
from onecycle.run.build import assemble
from onecycle.run.experiment import SWEEP_STEPS
from onecycle.train.loop import evaluate, make_train_step, training_steps

_BFLOAT16 = ComputePlan(precision="bfloat16", channels_last=True, im2col_gemm=True, native_kernels=True)
CLASSES: dict[str, tuple[dict[str, str], ComputePlan]] = {
    "AMX bfloat16": ({}, replace(_BFLOAT16, amx=True)),
    "AVX-512 bfloat16": ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, _BFLOAT16),
    "AVX2": (
        {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
        ComputePlan(channels_last=True),
    ),
}
TRAIN_IMAGES, EVAL_IMAGES = 50_000, 10_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="as in `onecycle train`")
    parser.add_argument("--steps", type=int, default=5, help="steps to time for each image size")
    parser.add_argument("--classes", nargs="*", choices=CLASSES, default=list(CLASSES), help="classes of CPU")
    parser.add_argument("--recipes", nargs="*", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--out", type=Path, default=Path("results/recipe_time.json"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.recipes[0], CLASSES[options.child][1], options)))
        return 0
    minutes: dict[str, dict[str, Any]] = {}
    for name in options.classes:
        for recipe in options.recipes:
            minutes.setdefault(name, {})[recipe] = found = in_a_process(name, recipe, options)
            print(f"{name}, {recipe}: {found['minutes']} minutes", flush=True)
    machine = hardware.detect()
    record = {
        "classes": minutes,
        "steps": options.steps,
        "environment": environment.describe(machine, replace(_BFLOAT16, threads=machine.cores)),
    }
    write(options.out, record)
    return 0


def in_a_process(name: str, recipe: str, options: argparse.Namespace) -> dict[str, Any]:
    """The result of `measure` in a new process that is limited to the instructions of the CPU class `name`."""
    command = [sys.executable, __file__, "--child", name, "--recipes", recipe, "--data", options.data]
    command += ["--steps", str(options.steps)]
    done = subprocess.run(
        command, env={**os.environ, **CLASSES[name][0]}, stdout=subprocess.PIPE, text=True, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(recipe: str, plan: ComputePlan, options: argparse.Namespace) -> dict[str, Any]:
    """The seconds per step of each image size, the time per evaluated image, and the estimated minutes of a recipe."""
    config = replace(RECIPES[recipe], data=options.data)
    plan = replace(plan, threads=hardware.usable_cores())
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
        "seconds_per_step": {str(size): rounded(value) for size, value in seconds.items()},
        "milliseconds_per_evaluated_image": rounded(1000 * evaluating),
    }


if __name__ == "__main__":
    sys.exit(main())
