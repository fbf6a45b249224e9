"""Compare the cost of a training step on a data set of a million images with the cost on ten thousand images.

For each size, a file of random images is generated. A new process maps this file into memory. The process trains the
custom ResNet, with one worker that augments the images. Then it measures how long it takes to draw batches without a
worker, once with albumentations and once with the batched augmentation.

The record has the time per image, the time to the first step, and the peak memory of the process and its worker. Their
private memory and the pages of the file are listed separately, because the system may reclaim these pages at any time.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from studies import write
from torch.optim import Adam

from onecycle.compute import autotune, hardware
from onecycle.compute.plan import ComputePlan
from onecycle.data import ImageSet
from onecycle.data.augment.albumentations import Augmentation
from onecycle.data.augment.batched import BatchedAugmentation
from onecycle.data.batches import Batches
from onecycle.data.preprocessing import Preprocessing
from onecycle.models import Batch, CustomResNet
from onecycle.run import environment
from onecycle.train.loop import training_steps

SIDE = 32
CLASSES = tuple(f"class {number}" for number in range(10))
CHUNK = 10_000  # images generated at once


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], metavar="N")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=200, help="training steps at the smallest and the largest size")
    parser.add_argument(
        "--drawn", type=int, default=100_000, help="images drawn to measure the time per image, in whole epochs"
    )
    parser.add_argument(
        "--folder", type=Path, help="for the generated files (3 KiB per image); by default a temporary one"
    )
    parser.add_argument("--out", type=Path, default=Path("results/scale.json"))
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # used in child processes
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.batch_size, options.steps, options.drawn)))
        return 0
    sizes = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for count in sorted(options.sizes):
            path = Path(folder) / f"{count}.npy"
            generate(path, count)
            at_an_end = count in (min(options.sizes), max(options.sizes))
            arguments = {
                "--measure": path,
                "--batch-size": options.batch_size,
                "--drawn": options.drawn,
                "--steps": options.steps if at_an_end else 0,
            }
            command = [sys.executable, __file__, *(str(part) for pair in arguments.items() for part in pair)]
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            sizes[str(count)] = json.loads(output)
            path.unlink()
            print(f"{count:>9,} images: {sizes[str(count)]}", flush=True)
    first, last = sizes[str(min(options.sizes))], sizes[str(max(options.sizes))]
    ratios = {name: round(last[name] / first[name], 3) for name in first if "microseconds" in name or name == "own_gib"}
    record = {
        "sizes": sizes,
        "ratios": ratios,
        "batch_size": options.batch_size,
        "steps": options.steps,
        "environment": environment.describe(hardware.detect(), autotuned(CustomResNet())),
    }
    write(options.out, record)
    print("largest relative to smallest:", ratios)
    return 0


def generate(path: Path, count: int) -> None:
    """Write `count` random images to `path`, in chunks."""
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, SIDE, SIDE, 3))
    generator = np.random.default_rng(0)
    for start in range(0, count, CHUNK):
        part = images[start : start + CHUNK]
        part[...] = generator.integers(256, size=part.shape, dtype=np.uint8)
    images.flush()


def autotuned(model: CustomResNet) -> ComputePlan:
    return autotune.choose(model, SIDE, hardware.detect(), device="cpu").plan


def measure(path: Path, batch_size: int, steps: int, drawn: int) -> dict[str, Any]:
    """Measure the images in `path`: microseconds per image, seconds to the first step, and GiB of memory."""
    started = time.perf_counter()
    images = np.load(path, mmap_mode="r")
    labels = np.random.default_rng(1).integers(len(CLASSES), size=len(images))
    data = ImageSet(images, labels, CLASSES)
    preprocessing = Preprocessing.of(images)
    fill = [255 * value for value in preprocessing.mean]

    def batches(**options: Any) -> Batches:
        return Batches(data, preprocessing, batch_size=batch_size, shuffle=True, **options)

    torch.manual_seed(0)
    model = CustomResNet()
    plan = autotuned(model)
    plan.apply()
    prepared, optimizer = plan.prepare(model), Adam(model.parameters())
    with_worker = batches(augment=Augmentation(SIDE, fill), workers=1)
    measured: dict[str, Any] = {}
    steps_done = training_steps(prepared, optimizer, endless(with_worker), lambda step: 1e-3, plan=plan)
    next(steps_done)
    measured["seconds_to_first_step"] = round(time.perf_counter() - started, 2)
    samples = [memory()]
    if steps:
        started = time.perf_counter()
        done = sum(1 for _ in islice(steps_done, steps))
        measured["step_microseconds_an_image"] = round((time.perf_counter() - started) / done / batch_size * 1e6, 1)
        samples.append(memory())
    measured["albumentations_microseconds_an_image"] = cost(batches(augment=Augmentation(SIDE, fill)), drawn)
    measured["batched_microseconds_an_image"] = cost(batches(augment_batch=BatchedAugmentation(SIDE, fill)), drawn)
    samples.append(memory())
    return measured | {name: max(sample[name] for sample in samples) for name in samples[0]}


def endless(batches: Batches) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1


def cost(batches: Batches, count: int) -> float:
    """Microseconds to draw an image, measured over about `count` images: whole epochs, and at least one."""
    epochs = max(1, count // len(batches.images))
    started = time.perf_counter()
    images = sum(len(batch.labels) for epoch in range(epochs) for batch in batches.epoch(epoch))
    return round((time.perf_counter() - started) / images * 1e6, 2)


def memory() -> dict[str, float]:
    """The memory of this process and its workers in GiB: private memory, and pages of mapped files."""
    totals = {"own_gib": 0, "mapped_gib": 0}
    for process in ("self", *(child.pid for child in multiprocessing.active_children())):
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
        kib = {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines)}
        totals["own_gib"] += kib["Pss_Anon"] + kib["Pss_Shmem"]  # Pss divides a shared page among its processes
        totals["mapped_gib"] += kib["Pss_File"]
    return {name: round(value / 2**20, 2) for name, value in totals.items()}


if __name__ == "__main__":
    sys.exit(main())
