"""The fastest way to run a model on this machine: measured on the model itself, and remembered."""

import copy
import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from onecycle.acceleration import Acceleration, release_memory, require_device
from onecycle.config import Device, Precision
from onecycle.hardware import Hardware
from onecycle.kernels import native
from onecycle.models import Batch, ModelComposite
from onecycle.run_folder import replacing
from onecycle.user_cache import cache_folder

BUDGET_SECONDS = 5.0  # for everything that is timed; torch.compile's own work is not
ADVANTAGE = 1.1  # a challenger must be so many times as fast
HOPELESS = 3.0  # a challenger whose first pass takes so many times as long as the best is not timed further
REPEATS = 2
# Of a challenger's gradient, relative to that of plain float32. Rounding to bfloat16 alone turns that of a new network
# by 0.2 to 0.3, because pools take other pixels and ReLUs close; one that is wrong has an error of 1 and more.
LARGEST_ERROR = 0.5
IMAGES_COMPARED = 16

Round = tuple[int, list[dict[str, Any]]]

IMAGES_ON_GPU = 512  # fewer would only show how long it takes to start a kernel

# How many images to time on, on a CPU, and what to try on top of the best so far. On fewer, kernels have no chance.
ROUNDS: tuple[Round, ...] = (
    (16, [{"channels_last": True, "precision": "bfloat16"}, {"channels_last": True}]),
    (64, [{"small_map_products": True}, {"native_kernels": True}, {"torch_compile": True}]),
)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A way to run, and what it was chosen by: milliseconds an image, forward and backward, by the ways' names."""

    acceleration: Acceleration
    milliseconds: dict[str, float]
    remembered: bool = False  # measured by an earlier run

    def __str__(self) -> str:
        threads = torch.get_num_threads()
        line = f"{self.acceleration}, {threads} thread{'s' if threads > 1 else ''}"
        first, *others = self.milliseconds
        if not others:
            return line
        ratio = self.milliseconds[first] / self.milliseconds[str(self.acceleration)]
        return f"{line}; {ratio:.1f} times as fast as {first}, measured {'before' if self.remembered else 'now'}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Choice":
        return cls(**{**values, "acceleration": Acceleration.from_json(values["acceleration"])})


def choose(
    model: ModelComposite,
    input_size: int,
    hardware: Hardware,
    *,
    device: Device = "auto",
    precision: Precision = "auto",
) -> Choice:
    """The fastest way to train `model` on images of `input_size`, within what the user asked for.

    Plain PyTorch begins. Each challenger changes the best so far in one thing, and takes its place when it is faster by
    `ADVANTAGE` and its gradient is that of plain float32 up to `LARGEST_ERROR`. The choice is remembered for the same
    model, processor, threads and versions. Model and random states are afterwards as before; the process has
    the threads and the allocator of the choice.

    Raises:
        InputError: when the machine does not have the device.
    """
    on = (hardware.gpu_kind or "cpu") if device == "auto" else device
    require_device(hardware, on)
    start = Acceleration(device=on, precision="float32" if precision == "auto" else precision, threads=hardware.cores)
    start.apply()
    rounds = [
        (
            images if on == "cpu" else IMAGES_ON_GPU,
            [change for change in changes if _possible(change, on, hardware, free=precision == "auto")],
        )
        for images, changes in ROUNDS
    ]
    place = _place(model, input_size, hardware, start, rounds)
    choice = _remembered(place)
    if choice is None:
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if on == "cuda" else []):
            choice = _measure(model, input_size, start, rounds)
        release_memory()
        _remember(place, choice)
    return choice


def _possible(change: dict[str, Any], device: str, hardware: Hardware, *, free: bool) -> bool:
    if "precision" in change:
        # A CPU that has to emulate bfloat16 may take minutes for a pass: too long to find out by trying.
        return free and (device != "cpu" or hardware.fast_bfloat16)
    if "small_map_products" in change:
        return device == "cpu"
    if "native_kernels" in change:
        return device == "cpu" and native.library() is not None
    if "torch_compile" in change:
        return device == "cuda" and find_spec("triton") is not None
    return True


def _measure(model: ModelComposite, input_size: int, start: Acceleration, rounds: list[Round]) -> Choice:
    deadline = time.perf_counter() + BUDGET_SECONDS
    trial = _Trial(model, input_size, start)
    best = start
    milliseconds: dict[str, float] = {}
    for images, changes in rounds:
        best_seconds = trial.seconds(best, images, limit=BUDGET_SECONDS)
        milliseconds[str(best)] = _for_each(images, best_seconds)
        for change in changes:
            challenger = replace(best, **change)
            if challenger == best or (challenger.native_kernels and challenger.precision != "bfloat16"):
                continue  # the kernels compute in nothing else
            if time.perf_counter() + (1 + REPEATS) * best_seconds > deadline:
                break
            try:
                seconds = trial.seconds(challenger, images, limit=HOPELESS * best_seconds)
                wins = seconds * ADVANTAGE < best_seconds and trial.error(challenger) < LARGEST_ERROR
            except Exception:  # this device cannot, or not with this version, or not this model
                continue
            milliseconds[str(challenger)] = _for_each(images, seconds)
            if wins:
                best, best_seconds = challenger, seconds
    return Choice(acceleration=best, milliseconds=milliseconds)


def _for_each(images: int, seconds: float) -> float:
    return round(1000 * seconds / images, 4)


class _Trial:
    """Batches of noise, on which ways to run are timed and compared."""

    def __init__(self, model: ModelComposite, input_size: int, start: Acceleration) -> None:
        self._model = model
        self._input_size = input_size
        self._plain = replace(start, precision="float32")
        self._plain_gradient: torch.Tensor | None = None

    def seconds(self, how: Acceleration, images: int, *, limit: float) -> float:
        """The least seconds of a forward and backward pass; those of the first when it takes longer than `limit`."""
        running, batch = self._prepared(how), self._batch(images, how.device)
        if how.torch_compile:
            self._pass(running, how, batch)  # compiles
        first = self._pass(running, how, batch)
        return first if first > limit else min(self._pass(running, how, batch) for _ in range(REPEATS))

    def error(self, how: Acceleration) -> float:
        """How far the gradient of `how` is from that of plain float32, relative to its length."""
        if self._plain_gradient is None:
            self._plain_gradient = self._gradient(self._plain)
        return float((self._gradient(how) - self._plain_gradient).norm() / self._plain_gradient.norm())

    def _gradient(self, how: Acceleration) -> torch.Tensor:
        running = self._prepared(how)
        self._pass(running, how, self._batch(IMAGES_COMPARED, how.device))
        gradients = [parameter.grad.flatten() for parameter in running.parameters() if parameter.grad is not None]
        return torch.cat(gradients).double().cpu()

    def _prepared(self, how: Acceleration) -> ModelComposite:
        # Of a copy: preparing the model itself would change the memory layout of its weights.
        return how.prepare(copy.deepcopy(self._model).to(how.device)).train()

    def _batch(self, count: int, device: str) -> Batch:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(count, 3, self._input_size, self._input_size, generator=generator)
        images = images.contiguous(memory_format=torch.channels_last)  # as batches come
        return Batch(images.to(device), torch.arange(count, device=device) % 2)

    def _pass(self, running: ModelComposite, how: Acceleration, batch: Batch) -> float:
        running.zero_grad()
        torch.manual_seed(0)  # dropout, if there is any, drops the same each time
        _wait_for(how.device)
        began = time.perf_counter()
        with how.autocast():
            loss = running.training_step(batch).loss
        loss.backward()  # type: ignore[no-untyped-call]
        _wait_for(how.device)
        return time.perf_counter() - began


def _wait_for(device: str) -> None:
    if device != "cpu":
        getattr(torch, device).synchronize()


def _place(
    model: ModelComposite,
    input_size: int,
    hardware: Hardware,
    start: Acceleration,
    rounds: list[Round],
) -> Path:
    """The file that remembers the choice: its name holds all that the choice depends on."""
    processor = hardware.cpu if start.device == "cpu" else hardware.gpu
    versions = [torch.__version__, version("onecycle")]
    identity = [processor, versions, type(model).__module__, str(model), input_size, start.to_json(), rounds]
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    return cache_folder() / "autotune" / f"{name}.json"


def _remembered(place: Path) -> Choice | None:
    try:
        choice = Choice.from_json(json.loads(place.read_text()))
        known = min(choice.milliseconds.values()) > 0 and str(choice.acceleration) in choice.milliseconds
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # none yet, or a damaged one: measure again
        return None
    return replace(choice, remembered=True) if known else None


def _remember(place: Path, choice: Choice) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place) as temporary:
            temporary.write_text(json.dumps(choice.to_json(), indent=2) + "\n")
    except OSError:
        pass  # then it is measured again next time
