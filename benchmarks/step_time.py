"""Compare the duration of a training step with that of common alternatives.

Every contender trains the custom ResNet on one fixed batch with Adam, in its own process. The contenders take turns, so
that other load on the machine slows all of them alike. The script compares the medians of the turns:

  usual          eager PyTorch: float32, default memory layout
  channels_last  the same in channels-last memory
  lightning      Lightning's Trainer with precision="bf16-mixed" (pip install lightning)
  lightning_32   the same with precision="32-true"
  jax            plain JAX in float32, compiled (pip install jax)
  keras_jax      Keras 3 on JAX, float32 (pip install keras jax)
  keras_tf       Keras 3 on TensorFlow, float32 (pip install keras tensorflow)
  onecycle       this project, with the compute plan that it chose for this machine

With --cpu, all contenders are limited to the instructions of an older class of CPU.

Two more processes measure the limits of the machine: its best rate in a convolution with a shape of the network, and in
a matrix product, both in bfloat16 where the CPU has instructions for it. A ratio divides the seconds of a contender by
those of onecycle in the same round. The script reports the median ratio.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from itertools import repeat
from pathlib import Path
from typing import Any

import cpu_classes
import torch
from contenders import Contender, Turns
from other_frameworks import keras_on, train_with_jax
from studies import rounded, write
from torch.optim import Adam
from torch.utils.flop_counter import FlopCounterMode

from onecycle.compute import autotune, hardware
from onecycle.compute.plan import EAGER, ComputePlan
from onecycle.models import Batch, CustomResNet
from onecycle.run import environment
from onecycle.train.loop import training_steps

NEEDED = {
    "usual": (),
    "channels_last": (),
    "lightning": ("lightning",),
    "lightning_32": ("lightning",),
    "jax": ("jax",),
    "keras_jax": ("keras", "jax"),
    "keras_tf": ("keras", "tensorflow"),
    "onecycle": (),
}  # the packages that each contender needs
CONTENDERS = tuple(NEEDED)
PEAKS = ("convolution", "product")
WARM_UP = 2  # steps before the first turn
TRIES = 5  # how often a turn repeats every convolution or matrix product; the best rate counts
LR = 1e-3
OTHER_FRAMEWORKS = {"jax": train_with_jax, "keras_jax": keras_on("jax"), "keras_tf": keras_on("tensorflow")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7, help="turns of every contender; the median counts")
    parser.add_argument("--steps", type=int, default=2, help="training steps in a turn")
    parser.add_argument(
        "--contenders", nargs="+", default=["usual", "channels_last", "lightning"], choices=CONTENDERS, metavar="NAME"
    )
    parser.add_argument("--cpu", default=cpu_classes.THIS_CPU, choices=cpu_classes.ENVIRONMENT, metavar="CLASS")
    parser.add_argument("--out", type=Path, default=Path("results/step_time.json"))
    parser.add_argument("--serve", choices=(*CONTENDERS, *PEAKS), help=argparse.SUPPRESS)  # used in child processes
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.batch_size, options.cpu)
        return 0
    for name in options.contenders:
        for package in NEEDED[name]:
            if find_spec(package) is None:
                message = f"{package} is not installed; pip install {package}, or use --contenders without {name}"
                print(f"step_time: {message}", file=sys.stderr)
                return 2
    names = [*dict.fromkeys([*options.contenders, "onecycle"]), *PEAKS]
    script = [__file__, "--batch-size", str(options.batch_size), "--cpu", options.cpu, "--serve"]
    limits = {**os.environ, **cpu_classes.ENVIRONMENT[options.cpu]}
    processes = {name: Contender([*script, name], limits) for name in names}
    for contender in processes.values():
        contender.take_turn(WARM_UP)
    turns: dict[str, list[float]] = {name: [] for name in names}
    for round in range(options.rounds):
        for name, contender in processes.items():
            turns[name].append(statistics.fmean(contender.take_turn(options.steps)))
        print(f"round {round + 1}/{options.rounds}:", {name: rounded(turns[name][-1]) for name in names}, flush=True)
    endings = {name: contender.end() for name, contender in processes.items()}
    record = {"cpu": options.cpu, **report(turns, endings, options.batch_size)}
    write(options.out, record)
    show(record)
    return 0


def report(turns: dict[str, list[float]], endings: dict[str, dict[str, Any]], batch_size: int) -> dict[str, Any]:
    """The record to save: times, ratios, rates and memory of the contenders, and a description of the environment."""
    with FlopCounterMode(display=False) as counter:
        CustomResNet().training_step(
            Batch(torch.zeros(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64))
        ).loss.backward()
    step_flop = counter.get_total_flops() / 2 * batch_size
    contenders = [name for name in turns if name in CONTENDERS]
    seconds = {name: statistics.median(turns[name]) for name in contenders}
    ratios = {
        name: statistics.median(theirs / ours for theirs, ours in zip(turns[name], turns["onecycle"], strict=True))
        for name in contenders
        if name != "onecycle"
    }
    plan = ComputePlan.from_json(endings["onecycle"]["compute_plan"])
    return {
        "seconds": {name: rounded(value) for name, value in seconds.items()},
        "ratios": {name: rounded(value) for name, value in ratios.items()},
        "images_per_second": {name: rounded(batch_size / value) for name, value in seconds.items()},
        "tflop_in_a_step": rounded(step_flop / 1e12),
        "tflop_per_second": {name: rounded(step_flop / value / 1e12) for name, value in seconds.items()},
        "best_tflop_per_second": {name: rounded(1 / min(turns[name])) for name in PEAKS},
        "peak_memory_gib": {name: endings[name]["peak_memory_gib"] for name in contenders},
        "turns": {name: [rounded(value) for value in values] for name, values in turns.items() if name in contenders},
        "batch_size": batch_size,
        "frameworks": versions_of(package for name in contenders for package in NEEDED[name]),
        "environment": environment.describe(hardware.detect(), plan),
    }


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """The version of each of `packages`. The distribution of a package may have another name, as tensorflow-cpu."""
    distributions = packages_distributions()
    return {package: version(distributions[package][0]) for package in packages}


def show(record: dict[str, Any]) -> None:
    print(f"\n{'':<14}{'seconds':>9}{'ratio':>8}{'images/s':>10}{'TFLOP/s':>9}{'GiB':>7}")
    for name, seconds in record["seconds"].items():
        ratio = f"{record['ratios'][name]:.2f}×" if name in record["ratios"] else ""
        print(
            f"{name:<14}{seconds:>9.3f}{ratio:>8}{record['images_per_second'][name]:>10.0f}"
            f"{record['tflop_per_second'][name]:>9.2f}{record['peak_memory_gib'][name]:>7.2f}"
        )
    best = record["best_tflop_per_second"]
    print(f"best rates here: convolution {best['convolution']:.2f}, product {best['product']:.2f} TFLOP/s")


def serve(name: str, batch_size: int, cpu: str) -> None:
    """Compute steps as the contender or limit called `name`, until the parent process requests the end."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # stdout is for answers, so send what a trainer prints to stderr
    torch.set_num_threads(hardware.usable_cores())
    torch.manual_seed(0)
    model = CustomResNet()
    images, labels = torch.randn(batch_size, 3, 32, 32), torch.randint(0, 10, (batch_size,))
    if train := OTHER_FRAMEWORKS.get(name):
        train(Turns(answers), images.permute(0, 2, 3, 1).contiguous().numpy(), labels.numpy())
        return
    {
        "usual": train_usually,
        "channels_last": train_channels_last,
        "lightning": partial(train_with_lightning, precision="bf16-mixed"),
        "lightning_32": partial(train_with_lightning, precision="32-true"),
        "onecycle": partial(train_with_onecycle, cpu=cpu),
        "convolution": partial(convolve, dtype=fast_dtype(cpu)),
        "product": partial(multiply, dtype=fast_dtype(cpu)),
    }[name](Turns(answers), model, Batch(images, labels))


def train_usually(turns: Turns, model: CustomResNet, batch: Batch) -> None:
    optimizer = Adam(model.parameters(), lr=LR)
    while True:
        optimizer.zero_grad()
        model.training_step(batch).loss.backward()
        optimizer.step()
        turns.step_done()


def train_channels_last(turns: Turns, model: CustomResNet, batch: Batch) -> None:
    images = batch.images.contiguous(memory_format=torch.channels_last)
    train_usually(turns, model.to(memory_format=torch.channels_last), Batch(images, batch.labels))  # type: ignore[call-overload]


def train_with_lightning(turns: Turns, model: CustomResNet, batch: Batch, *, precision: Any) -> None:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
            return self.model.training_step(Batch(*batch)).loss

        def configure_optimizers(self) -> Adam:
            return Adam(self.parameters(), lr=LR)

        def on_train_batch_end(self, *_: Any) -> None:
            turns.step_done()

    trainer = lightning.Trainer(
        accelerator="cpu",
        precision=precision,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), repeat(tuple(batch)))


def train_with_onecycle(turns: Turns, model: CustomResNet, batch: Batch, *, cpu: str) -> None:
    plan = autotune.choose(model, 32, cpu_classes.detect(cpu), device="cpu").plan
    plan.apply()
    turns.plan = plan
    prepared, optimizer = plan.prepare(model), Adam(model.parameters())
    batch = Batch(batch.images.contiguous(memory_format=torch.channels_last), batch.labels)  # the layout of `Batches`
    for _ in training_steps(prepared, optimizer, repeat(batch), lambda step: LR, plan=plan):
        turns.step_done()


def fast_dtype(cpu: str) -> torch.dtype:
    return torch.bfloat16 if cpu_classes.detect(cpu).fast_bfloat16 else torch.float32


def convolve(turns: Turns, model: CustomResNet, batch: Batch, *, dtype: torch.dtype) -> None:
    """Report the seconds per TFLOP of the fastest convolution with a shape of the network, forward only."""
    EAGER.apply()  # makes the allocator keep freed memory, as in a run of onecycle
    works = []
    for inputs, outputs, size in [(64, 128, 32), (128, 128, 16), (128, 256, 16), (256, 512, 8)]:
        images = torch.randn(len(batch.images), inputs, size, size, dtype=dtype)
        weight = torch.randn(outputs, inputs, 3, 3, dtype=dtype)
        images, weight = (t.contiguous(memory_format=torch.channels_last) for t in (images, weight))
        work = partial(torch.conv2d, images, weight, padding=1)
        works.append((work, 2 * 9 * inputs * outputs * size**2 * len(images) / 1e12))
    find_best_rate(turns, works)


def multiply(turns: Turns, model: CustomResNet, batch: Batch, *, dtype: torch.dtype) -> None:
    """Report the seconds per TFLOP of a large matrix product."""
    EAGER.apply()
    side = 4096
    left, right = (torch.randn(side, side, dtype=dtype) for _ in range(2))
    find_best_rate(turns, [(partial(torch.mm, left, right), 2 * side**3 / 1e12)])


def find_best_rate(turns: Turns, works: list[tuple[Callable[[], object], float]]) -> None:
    while True:
        seconds_per_tflop = []
        for work, tflop in works * TRIES:
            started = time.perf_counter()
            work()
            seconds_per_tflop.append((time.perf_counter() - started) / tflop)
        turns.step_done(min(seconds_per_tflop))


if __name__ == "__main__":
    sys.exit(main())
