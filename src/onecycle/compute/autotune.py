"""Choose the fastest compute plan for a model on this machine. Only this module decides precision and kernels."""

import hashlib
import inspect
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from onecycle.compute.hardware import Hardware
from onecycle.compute.kernels import amx, native
from onecycle.compute.microbenchmark import IMAGES_ON_GPU, Microbenchmark
from onecycle.compute.plan import ChannelPairs, ComputePlan, release_memory, require_device
from onecycle.core.cache import cache_folder, create_folder
from onecycle.core.errors import StorageError
from onecycle.core.files import InUseError, locked, replacing
from onecycle.core.option_groups import Device, Precision
from onecycle.models import ModelComposite

# The time limit for all measurements on a CPU. If one pass over `MOST_IMAGES` takes longer, its time is the limit.
BUDGET_SECONDS = 5.0
# A timed pass on a CPU has at most this many images of 32×32 pixels, or as many larger images as need the same memory.
MOST_IMAGES = 512
# A timed pass of a slow model on a CPU is not cut below this many images of 32×32 pixels. With fewer images, fixed
# costs such as transforming filters would dominate.
FEWEST_IMAGES = 32
PASS_SECONDS = 0.3  # target time of a pass on a CPU; a slower model is timed on fewer images
ADVANTAGE = 1.05  # a new plan must be more than this many times as fast as the best plan so far
# If the new plan adds the native kernels, `ADVANTAGE` is multiplied by this factor, so a plan that is timed 5 % slower
# still wins. Native kernels need less memory, and they gain more on the batches of training than on the few images of a
# timed pass.
LENIENCY = 0.9
# Measurements are disturbed if the median pass of a plan takes more than this many times as long as its fastest pass.
# On an otherwise idle machine, this ratio is usually below 1.1. Beside several busy processes, the ratio is 1.5 or
# more, and one slow pass may make a good plan seem hopeless.
DISTURBED = 1.25
# A choice from disturbed measurements is reused for this long, so that runs that start together use the same plan.
DISTURBED_SECONDS = 600
# A function that returns a changed plan. The first argument is the best plan so far. The second argument is a function:
# given a plan, it returns the convolutions that Winograd's algorithm should compute instead.
Change = Callable[[ComputePlan, Callable[[ComputePlan], ChannelPairs]], ComputePlan]


def _with_winograd(best: ComputePlan, faster_by_winograd: Callable[[ComputePlan], ChannelPairs]) -> ComputePlan:
    """`best`, but with Winograd's algorithm for the convolutions that gain by it.

    The changed plan is channels-last, because the kernels of Winograd's algorithm need channels-last maps.
    """
    channels_last = replace(best, channels_last=True)
    winograd = faster_by_winograd(channels_last)
    return replace(channels_last, winograd=winograd) if winograd else best


# Each round is (images per CPU thread, changes). The changes are tried in order, each on the best plan so far. Round 1
# tries precisions and memory layouts. Round 2 tries kernels. It uses larger batches, because kernels show no
# gain on small ones.
ROUNDS: tuple[tuple[int, tuple[Change, ...]], ...] = (
    (
        8,
        (
            lambda best, _: replace(best, channels_last=True, precision="bfloat16"),
            lambda best, _: replace(best, channels_last=True),
        ),
    ),
    (
        64,
        (
            _with_winograd,
            lambda best, _: replace(best, amx=True),
            lambda best, _: replace(best, native_kernels=True),
            lambda best, _: replace(best, im2col_gemm=True),
            lambda best, _: replace(best, torch_compile=True),
        ),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round of measurements.

    `milliseconds` maps each plan to the time of its forward and backward pass over `images` images. The plans are in
    the order in which they were timed.
    """

    images: int
    milliseconds: dict[str, float]
    best: str  # the plan that the next round starts with
    failed: dict[str, str]  # plans that raised an error, with the error's type

    @property
    def gain(self) -> float:
        """The speedup of the round's best plan over the round's first plan."""
        return list(self.milliseconds.values())[0] / self.milliseconds[self.best]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A compute plan and the measurements behind it."""

    plan: ComputePlan
    rounds: tuple[Round, ...]
    remembered: bool = False  # whether an earlier run measured the plan
    disturbed: bool = False  # whether other load on the machine disturbed the measurements

    def __str__(self) -> str:
        first = list(self.rounds[0].milliseconds)[0]
        if first == str(self.plan):
            return first
        when = ("before" if self.remembered else "now") + (" on a busy machine" if self.disturbed else "")
        return f"{self.plan}; {self.speedup:.1f} times as fast as {first}, measured {when}"

    @property
    def speedup(self) -> float:
        """The speedup of the chosen plan over the plan that was measured first."""
        return math.prod(round.gain for round in self.rounds)  # a round starts with the best plan of the round before

    @property
    def seconds_per_image(self) -> float:
        """The time per image of the chosen plan's forward and backward pass, as measured in the last round."""
        last = self.rounds[-1]
        return last.milliseconds[last.best] / 1000 / last.images

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Choice":
        rounds = tuple(Round(**round) for round in values["rounds"])
        return cls(**{**values, "plan": ComputePlan.from_json(values["plan"]), "rounds": rounds})


def choose(
    model: ModelComposite,
    input_size: int,
    hardware: Hardware,
    *,
    device: Device = "auto",
    precision: Precision = "auto",
) -> Choice:
    """The fastest plan to train `model` on images of `input_size`, with the requested `device` and `precision`.

    The search starts with eager PyTorch, and tries changes to the best plan so far. A changed plan becomes the best
    plan if it is more than `ADVANTAGE` times as fast, and its gradients are about as accurate as those of eager PyTorch
    in the same precision. For a plan that adds the native kernels, `ADVANTAGE` is multiplied by `LENIENCY`.

    The result is cached in the folder `autotune` of the user's cache. It is reused for the same arguments, with the
    same number of threads and the same versions. Two models count as the same if they have the same printed structure,
    the same trainable parameters, and classes from the same source files. If other load on the machine disturbed the
    measurements, they are reused for ten minutes only. Remove the folder to measure again.

    The model and all random states stay unchanged. The plan's number of threads and allocator settings are applied to
    this process.

    Raises:
        InputError: when the machine does not have the device.
    """
    start, precisions = _start(hardware, device, precision)
    start.apply()
    file = _cache_file(model, input_size, hardware, start, precisions)
    choice = _cached(file)
    if choice is None:
        with _measuring_alone(file.parent), torch.random.fork_rng(devices=range(torch.accelerator.device_count())):
            choice = _cached(file)
            if choice is None:
                choice = _measure(Microbenchmark(model, input_size, start), start, precisions)
                release_memory()
                _cache(file, choice)
    return choice


def forget(model: ModelComposite, input_size: int, hardware: Hardware, *, device: Device, precision: Precision) -> None:
    """Let the next `choose` with these arguments measure again."""
    with suppress(OSError):
        _cache_file(model, input_size, hardware, *_start(hardware, device, precision)).unlink(missing_ok=True)


def prediction_plan(hardware: Hardware) -> ComputePlan:
    """The plan for prediction on the CPU, chosen without measuring: bfloat16 if the CPU has instructions for it."""
    return ComputePlan(precision="bfloat16" if hardware.fast_bfloat16 else "float32", channels_last=True)


def _start(hardware: Hardware, device: Device, precision: Precision) -> tuple[ComputePlan, tuple[str, ...]]:
    """The plan that the search starts with, and the precisions that it tries.

    Raises:
        InputError: when the machine does not have the device.
    """
    on = (hardware.gpu_kind or "cpu") if device == "auto" else device
    require_device(hardware, on)
    start = ComputePlan(device=on, precision="float32" if precision == "auto" else precision, threads=hardware.cores)
    # On a CPU that emulates bfloat16, one pass may take minutes. Do not time bfloat16 there.
    emulated = on == "cpu" and not hardware.fast_bfloat16
    return start, (start.precision,) if emulated or precision != "auto" else (start.precision, "bfloat16")


@contextmanager
def _measuring_alone(folder: Path) -> Iterator[None]:
    """Inside the block, no other process measures. If several runs start together, one measures for all of them.

    If the cache cannot be written, each process measures for itself.
    """
    with ExitStack() as stack:
        with suppress(OSError, StorageError):
            create_folder(folder)
            while True:
                try:
                    stack.enter_context(locked(folder))
                    break
                except InUseError:
                    time.sleep(0.1)
        yield


def _is_possible(plan: ComputePlan, precisions: Sequence[str]) -> bool:
    on_cpu = plan.device == "cpu"
    kernels = on_cpu and plan.channels_last and native.compiled() is not None
    bfloat16 = plan.precision == "bfloat16"
    return (
        plan.precision in precisions
        and (not plan.im2col_gemm or on_cpu)
        and (not plan.native_kernels or kernels)
        and (not plan.amx or (kernels and bfloat16 and amx.is_available()))
        and (not plan.torch_compile or (plan.device == "cuda" and find_spec("triton") is not None))
    )


def _faster_by_winograd(benchmark: Microbenchmark, plan: ComputePlan, *, images: int) -> ChannelPairs:
    """The convolutions that Winograd's algorithm computes faster than `plan`.

    The result is empty if all 3×3 convolutions together would not become `ADVANTAGE` times as fast. It is also empty if
    `plan` can use AMX, because AMX is faster than Winograd's algorithm.
    """
    with_amx = plan.precision == "bfloat16" and amx.is_available()
    if plan.device != "cpu" or not plan.channels_last or with_amx or native.compiled() is None:
        return ()
    try:
        return benchmark.faster_by_winograd(plan, images, advantage=ADVANTAGE)
    except Exception:  # the model cannot compute channels-last maps
        return ()


def _measure(benchmark: Microbenchmark, best: ComputePlan, precisions: Sequence[str]) -> Choice:
    started = time.perf_counter()
    seconds_per_image = benchmark.seconds(2, best)[0] / 2
    budget = max(BUDGET_SECONDS, MOST_IMAGES * seconds_per_image) if best.device == "cpu" else math.inf
    deadline = started + budget
    rounds: list[Round] = []
    for each, changes in ROUNDS:
        if best.device == "cpu":
            wanted = benchmark.images_at_size(min(each * (best.threads or 1), MOST_IMAGES))
            fitting = max(benchmark.images_at_size(FEWEST_IMAGES), int(PASS_SECONDS / seconds_per_image))
            images = min(wanted, fitting)
        else:
            images = benchmark.images_at_size(IMAGES_ON_GPU)
        if rounds and time.perf_counter() + 3 * images * seconds_per_image > deadline:
            break
        # An estimate, until the round's first challenger is timed in turns with the best plan.
        best_seconds = images * seconds_per_image
        measured: dict[str, float] = {}
        failed: dict[str, str] = {}
        for change in changes:
            if time.perf_counter() + 3 * best_seconds > deadline:
                break
            challenger = change(best, partial(_faster_by_winograd, benchmark, images=images))
            if challenger == best or not _is_possible(challenger, precisions):
                continue
            try:
                at_the_same_time, seconds = benchmark.seconds(images, best, challenger)
                advantage = ADVANTAGE * LENIENCY if challenger.native_kernels > best.native_kernels else ADVANTAGE
                wins = seconds * advantage < at_the_same_time and benchmark.agrees(challenger)
            except Exception as error:
                failed[str(challenger)] = type(error).__name__
                continue
            if not measured:
                best_seconds = measured[str(best)] = at_the_same_time
            # Correct the time for changes in the machine's speed since the round's first plan was measured.
            measured[str(challenger)] = seconds * best_seconds / at_the_same_time
            if wins:
                best, best_seconds = challenger, measured[str(challenger)]
        if not measured:
            best_seconds = measured[str(best)] = benchmark.seconds(images, best)[0]
        seconds_per_image = best_seconds / images
        milliseconds = {name: round(1000 * seconds, 3) for name, seconds in measured.items()}
        rounds.append(Round(images=images, milliseconds=milliseconds, best=str(best), failed=failed))
    return Choice(plan=best, rounds=tuple(rounds), disturbed=benchmark.spread > DISTURBED)


def _code_of(model: ModelComposite) -> list[str]:
    """The SHA-256 digests of the source files of the classes in `model`, without those of torch.

    The code may compute with the outputs of layers in a way that the printed structure does not show.
    """
    digests = set()
    for module in {type(module) for module in model.modules()}:
        if not module.__module__.startswith("torch."):
            with suppress(OSError, TypeError):  # the class has no source file, for example in an interactive session
                digests.add(_sha256(Path(inspect.getfile(module))))
    return sorted(digests)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _cache_file(
    model: ModelComposite, input_size: int, hardware: Hardware, start: ComputePlan, precisions: Sequence[str]
) -> Path:
    """The file that caches the chosen compute plan. Its name is a hash of everything that the choice depends on."""
    processor = [hardware.cpu_features, hardware.fast_bfloat16] if start.device == "cpu" else hardware.gpu
    kernels = native.build_id() if start.device == "cpu" else None
    code = [_sha256(source) for source in sorted(Path(__file__).parent.rglob("*.py"))]
    versions = [torch.__version__, version("onecycle"), code, kernels, amx.is_available()]
    key = [
        hardware.cpu,
        processor,
        versions,
        _code_of(model),
        str(model),
        [name for name, parameter in model.named_parameters() if parameter.requires_grad],
        input_size,
        start.to_json(),
        precisions,
    ]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    return cache_folder() / "autotune" / f"{name}.json"


def _cached(file: Path) -> Choice | None:
    try:
        choice = replace(Choice.from_json(json.loads(file.read_text())), remembered=True)
        is_too_old = choice.disturbed and time.time() - file.stat().st_mtime > DISTURBED_SECONDS
        return choice if choice.rounds and choice.speedup > 0 and not is_too_old else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, ZeroDivisionError):
        return None  # the file is missing or damaged, so the plans are timed again


def _cache(file: Path, choice: Choice) -> None:
    with suppress(OSError, StorageError):  # without a cache file, the next run times the plans again
        create_folder(file.parent)
        with replacing(file) as temporary:
            temporary.write_text(json.dumps(choice.to_json(), indent=2) + "\n")
