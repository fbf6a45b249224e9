"""Ways to run a model, tried on noise: how long they take, and whether they compute the same."""

import copy
import math
import time
from dataclasses import replace

import torch

from onecycle.acceleration import Acceleration
from onecycle.models import Batch, ModelComposite

HOPELESS = 3.0  # a challenger whose first pass takes so many times as long as the best is not timed further
REPEATS = 3
IMAGES_COMPARED = 16
IMAGES_ON_GPU = 512  # fewer would only show how long it takes to start a kernel


class Trial:
    """Times ways to run a model on noise, and compares their gradients with that of plain float32."""

    def __init__(self, model: ModelComposite, input_size: int, start: Acceleration) -> None:
        self._model = model
        self._input_size = input_size
        self._plain = replace(start, precision="float32")
        self._plain_gradients: list[torch.Tensor] | None = None

    def seconds(self, how: Acceleration, images: int, *, to_beat: float = math.inf) -> float:
        """The least seconds of a forward and backward pass.

        A way that does not beat `to_beat` gets as many passes again, since whatever disturbs one makes it
        slower; a hopeless one gets no second.
        """
        running, batch = self._prepared(how), self._batch(images, how.device)
        if how.device != "cpu":
            self._pass(running, how, batch)  # compiles, or searches for algorithms
        least = self._pass(running, how, batch)
        if least > HOPELESS * to_beat:
            return least
        for repeat in range(2 * REPEATS):
            if repeat >= REPEATS and least < to_beat:
                break
            least = min(least, self._pass(running, how, batch))
        return least

    def error(self, how: Acceleration) -> float:
        """How far the parameters' gradients are from those of plain float32, relative to their lengths, on average."""
        if self._plain_gradients is None:
            self._plain_gradients = self._gradients(self._plain)
        pairs = zip(self._gradients(how), self._plain_gradients, strict=True)
        errors = [float((ours - plain).norm() / plain.norm()) for ours, plain in pairs if plain.norm() > 0]
        return math.fsum(errors) / len(errors)

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
