"""The fastest way to run a model on this machine: measured on the model itself, and remembered."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from onecycle.compute.hardware import Hardware
from onecycle.compute.kernels import native, tiles
from onecycle.compute.microbenchmark import IMAGES_ON_GPU, Trial
from onecycle.compute.plan import Acceleration, release_memory, require_device
from onecycle.core.cache import cache_folder
from onecycle.core.config import Device, Precision
from onecycle.core.errors import InputError
from onecycle.core.files import InUseError, NotWrittenError, locked, replacing
from onecycle.models import ModelComposite

BUDGET_SECONDS = 5.0  # for all that is timed on a CPU
MOST_IMAGES = 512  # more would not tell more
PASS_SECONDS = 0.4  # on a CPU, where a pass takes longer, it gets fewer images
ADVANTAGE = 1.05  # a challenger must be so many times as fast
Change = Callable[[Acceleration], Acceleration]

# How many images a thread to time on, on a CPU, and what to try one after another, each on top of the best so far.
# Kernels need more images than precisions do to show what they gain.
ROUNDS: tuple[tuple[int, tuple[Change, ...]], ...] = (
    (
        8,
        (
            lambda best: replace(best, channels_last=True, precision="bfloat16"),
            lambda best: replace(best, channels_last=True),
        ),
    ),
    (
        64,
        (
            lambda best: replace(best, small_map_products=True),
            lambda best: replace(best, native_kernels=True),
            lambda best: replace(best, matrix_unit=True),
            lambda best: replace(best, torch_compile=True),
        ),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Round:
    """Milliseconds of a forward and backward pass of so many images, by the names of the ways, in their order."""

    images: int
    milliseconds: dict[str, float]
    best: str  # of the ways
    failed: dict[str, str]  # the ways that this device, this version or this model cannot go, with the kind of error

    @property
    def gain(self) -> float:
        """How many times as fast the best is as the way that the round began with."""
        return list(self.milliseconds.values())[0] / self.milliseconds[self.best]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A way to run, and what it was chosen by."""

    acceleration: Acceleration
    rounds: tuple[Round, ...]
    remembered: bool = False  # measured by an earlier run

    def __str__(self) -> str:
        first = list(self.rounds[0].milliseconds)[0]
        if first == str(self.acceleration):
            return first
        when = "before" if self.remembered else "now"
        return f"{self.acceleration}; {self.speedup:.1f} times as fast as {first}, measured {when}"

    @property
    def speedup(self) -> float:
        """How many times as fast it is as the way that the measuring began with."""
        return math.prod(round.gain for round in self.rounds)  # what won a round began the next

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Choice":
        rounds = tuple(Round(**round) for round in values["rounds"])
        return cls(**{**values, "acceleration": Acceleration.from_json(values["acceleration"]), "rounds": rounds})


def choose(
    model: ModelComposite,
    input_size: int,
    hardware: Hardware,
    *,
    device: Device = "auto",
    precision: Precision = "auto",
) -> Choice:
    """The fastest way to train `model` on images of `input_size`, within what the user asked for.

    Plain PyTorch begins. Each challenger changes the best so far, and takes its place when it is faster by `ADVANTAGE`
    and its gradient agrees with that of plain float32 as well as plain PyTorch's does in its precision. The choice is
    remembered, for models that print alike on the same processor with the same threads and versions, in the folder
    `autotune` of the user's cache; remove it to measure again. Model and random states are afterwards as before; the
    process has the threads and the allocator of the choice.

    Raises:
        InputError: when the machine does not have the device.
    """
    on = (hardware.gpu_kind or "cpu") if device == "auto" else device
    require_device(hardware, on)
    start = Acceleration(device=on, precision="float32" if precision == "auto" else precision, threads=hardware.cores)
    start.apply()

    # A CPU that has to emulate bfloat16 may take minutes for a pass: too long to find out by trying.
    emulated = on == "cpu" and not hardware.fast_bfloat16
    precisions = (start.precision,) if emulated or precision != "auto" else (start.precision, "bfloat16")
    memory = _memory_file(model, input_size, hardware, start, precisions)
    choice = _remembered(memory)
    if choice is None:
        with _alone_in(memory.parent), torch.random.fork_rng(devices=range(torch.accelerator.device_count())):
            choice = _remembered(memory)
            if choice is None:
                choice = _measure(Trial(model, input_size, start), start, precisions)
                release_memory()
                _remember(memory, choice)
    return choice


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Inside, no other process measures: of runs that begin together all take what the first one finds.

    Where the cache cannot be written, each measures for itself.
    """
    with ExitStack() as stack:
        with suppress(OSError, NotWrittenError):
            folder.mkdir(parents=True, exist_ok=True)
            while True:
                try:
                    stack.enter_context(locked(folder))
                    break
                except InUseError:
                    time.sleep(0.1)
        yield


def _possible(way: Acceleration, precisions: Sequence[str]) -> bool:
    on_cpu = way.device == "cpu"
    kernels = on_cpu and way.precision == "bfloat16" and native.compiled() is not None  # they compute in nothing else
    return (
        way.precision in precisions
        and (not way.small_map_products or on_cpu)
        and (not way.native_kernels or kernels)
        and (not way.matrix_unit or (kernels and tiles.can_be_used()))
        and (not way.torch_compile or (way.device == "cuda" and find_spec("triton") is not None))
    )


def _measure(trial: Trial, best: Acceleration, precisions: Sequence[str]) -> Choice:
    deadline = time.perf_counter() + BUDGET_SECONDS if best.device == "cpu" else math.inf
    an_image = trial.seconds(best, 2) / 2
    rounds: list[Round] = []
    for each, changes in ROUNDS:
        wanted = min(each * (best.threads or 1), MOST_IMAGES)
        images = max(2, min(wanted, int(PASS_SECONDS / an_image))) if best.device == "cpu" else IMAGES_ON_GPU
        if rounds and time.perf_counter() + 3 * images * an_image > deadline:
            break
        best_seconds = trial.seconds(best, images)
        measured, failed = {str(best): best_seconds}, {}
        for challenger in (change(best) for change in changes):
            if challenger == best or not _possible(challenger, precisions):
                continue
            if time.perf_counter() + 3 * best_seconds > deadline:
                break
            try:
                to_beat = best_seconds / ADVANTAGE
                seconds = trial.seconds(challenger, images, to_beat=to_beat)
                wins = seconds < to_beat and trial.agrees(challenger)
            except Exception as error:
                failed[str(challenger)] = type(error).__name__
                continue
            measured[str(challenger)] = seconds
            if wins:
                best, best_seconds = challenger, seconds
        an_image = best_seconds / images
        milliseconds = {name: round(1000 * seconds, 3) for name, seconds in measured.items()}
        rounds.append(Round(images=images, milliseconds=milliseconds, best=str(best), failed=failed))
    return Choice(acceleration=best, rounds=tuple(rounds))


def _memory_file(
    model: ModelComposite, input_size: int, hardware: Hardware, start: Acceleration, precisions: Sequence[str]
) -> Path:
    """The file that remembers the choice: its name holds all that the choice depends on."""
    processor = [hardware.cpu_features, hardware.fast_bfloat16] if start.device == "cpu" else hardware.gpu
    kernels = native.identity() if start.device == "cpu" else None
    versions = [torch.__version__, version("onecycle"), kernels, tiles.can_be_used()]
    identity = [
        hardware.cpu,
        processor,
        versions,
        type(model).__module__,
        str(model),
        input_size,
        start.to_json(),
        precisions,
    ]
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    return cache_folder() / "autotune" / f"{name}.json"


def _remembered(memory: Path) -> Choice | None:
    try:
        choice = replace(Choice.from_json(json.loads(memory.read_text())), remembered=True)
        return choice if choice.rounds and choice.speedup > 0 else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, ZeroDivisionError):
        return None  # none yet, or a damaged one: measure again


def _remember(memory: Path, choice: Choice) -> None:
    with suppress(OSError, InputError):  # then it is measured again next time
        memory.parent.mkdir(parents=True, exist_ok=True)
        with replacing(memory) as temporary:
            temporary.write_text(json.dumps(choice.to_json(), indent=2) + "\n")
