"""Ways to run a model, tried on noise: how long they take, and whether they compute the same."""

import copy
import math
import statistics
import time
from dataclasses import replace

import torch

from onecycle.compute.plan import Acceleration
from onecycle.models import Batch, ModelComposite

PASSES = 6  # that are timed, after one to warm up; the least counts, since whatever disturbs a pass makes it slower
PASSES_SECONDS = 0.2  # no further pass begins after so long
HOPELESS = 3.0  # a way whose first pass takes so many times as long as what it is to beat is not timed further
IMAGES_COMPARED = 16
IMAGES_ON_GPU = 512  # fewer would only show how long it takes to start a kernel
# A rounding to bfloat16 turns the gradient of a new network by 0.3, because pools take other pixels and ReLUs close; a
# gradient that is nothing like it is off by 1 and more.
LARGEST_ERROR = 0.5
SMALLEST_GRADIENT = 1e-3  # of the largest; what is below is rounding, as that of a bias before a norm


class Trial:
    """Times ways to run a model on noise, and compares their gradients with those of plain PyTorch."""

    def __init__(self, model: ModelComposite, input_size: int, start: Acceleration) -> None:
        self._model = model
        self._input_size = input_size
        self._plain = replace(start, precision="float32")
        self._plain_gradients: list[torch.Tensor] = []
        self._usual_errors: dict[str, list[float]] = {}  # by precision

    def seconds(self, how: Acceleration, images: int, *, to_beat: float = math.inf) -> float:
        """The least seconds of a forward and backward pass of so many images."""
        running, batch = self._prepared(how), self._batch(images, how.device)
        least = self._pass(running, how, batch)
        if how.device != "cpu":
            least = math.inf  # it was compiled, or algorithms were searched for
        elif least > HOPELESS * to_beat:
            return least
        began = time.perf_counter()
        for _ in range(PASSES):
            least = min(least, self._pass(running, how, batch))
            if time.perf_counter() - began > PASSES_SECONDS:
                break
        return least

    def agrees(self, how: Acceleration) -> bool:
        """Whether `how` computes the gradient of plain float32 as nearly as plain PyTorch does in its precision.

        That is asked of every parameter: a kernel may serve a single layer.
        """
        if how.precision not in self._usual_errors:
            self._usual_errors[how.precision] = self._errors(replace(self._plain, precision=how.precision))
        usual = self._usual_errors[how.precision]
        near = all(ours <= 1.5 * theirs + 0.1 for ours, theirs in zip(self._errors(how), usual, strict=True))
        return near and statistics.median(usual) < LARGEST_ERROR

    def _errors(self, how: Acceleration) -> list[float]:
        """How far each parameter's gradient is from that of plain float32, relative to its length."""
        self._plain_gradients = self._plain_gradients or self._gradients(self._plain)
        lengths = [float(gradient.norm()) for gradient in self._plain_gradients]
        least = SMALLEST_GRADIENT * max(lengths)
        pairs = zip(self._gradients(how), self._plain_gradients, lengths, strict=True)
        return [float((ours - plain).norm()) / (max(length, least) or 1) for ours, plain, length in pairs]

    def _gradients(self, how: Acceleration) -> list[torch.Tensor]:
        running = self._prepared(how)
        images = IMAGES_COMPARED if how.device == "cpu" else IMAGES_ON_GPU  # what was compiled is for that number
        self._pass(running, how, self._batch(images, how.device))
        return [p.grad.double().cpu() for p in running.parameters() if p.grad is not None]

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
