"""Time compute plans on random images, and compare their gradients with the gradients of eager float32."""

import copy
import math
import statistics
import time
from dataclasses import replace

import torch
from torch import nn

from onecycle.compute.kernels.convolution import FastConv2d
from onecycle.compute.plan import ChannelPairs, ComputePlan
from onecycle.models import Batch, ModelComposite

PASSES = 6  # timed passes after a warm-up; the fastest counts, because disturbances only slow a pass down
PASSES_SECONDS = 0.2  # no further pass starts after this time
HOPELESS = 3.0  # a plan gets no second pass if its first pass takes this many times as long as the first plan's
IMAGES_COMPARED = 16  # of 32×32 pixels, as all numbers of images here; `images_at_size` reduces them for larger images
FEWEST_IMAGES = 4
# If `MOST_IMAGES` allows, a convolution is timed on at least this many pixels: 128 tiles of Winograd's algorithm.
FEWEST_PIXELS = 128 * 4 * 4
MOST_IMAGES = 256  # on small maps, the number of images is raised to reach `FEWEST_PIXELS`, but to at most this number
IMAGES_ON_GPU = 512  # a pass on a GPU has this many images: with fewer, kernel launches would dominate the time
# The limit of the median relative error. In bfloat16, the gradients of an untrained network have an error of about 0.3,
# because rounding makes max-pooling select other pixels and switches ReLUs off. Unrelated gradients have an error of 1
# or more.
LARGEST_ERROR = 0.5
# Gradients below this fraction of the largest gradient are rounding noise, for example those of a bias before a norm.
SMALLEST_GRADIENT = 1e-3


class Microbenchmark:
    """Times compute plans for one model, and compares their gradients with the gradients of eager PyTorch."""

    def __init__(self, model: ModelComposite, input_size: int, start: ComputePlan) -> None:
        self._model = model
        self._input_size = input_size
        self._eager = replace(start, precision="float32")
        self._eager_gradients: list[torch.Tensor] = []
        self._errors_by_precision: dict[str, list[float]] = {}
        self._passes: dict[tuple[ComputePlan, int], list[float]] = {}

    def images_at_size(self, count: int) -> int:
        """How many images of the model's size need about as much time and memory as `count` images of 32×32 pixels.

        The result is at most `count`, and at least the smaller of `count` and `FEWEST_IMAGES`.
        """
        of_size = min(count, count * 32**2 // self._input_size**2)
        return max(min(count, FEWEST_IMAGES), of_size)

    @property
    def spread(self) -> float:
        """The largest ratio of a plan's median pass to its fastest pass, at least 1.

        A plan has one ratio for each number of images that it was timed on.
        """
        return max((statistics.median(passes) / min(passes) for passes in self._passes.values()), default=1.0)

    def seconds(self, images: int, *plans: ComputePlan) -> list[float]:
        """Time forward and backward passes over `images` images. Returns the seconds of the fastest pass of each plan.

        The plans take turns, so that other load on the machine slows each of them as much. On a CPU, a plan gets no
        second pass if its first pass takes more than `HOPELESS` times as long as the first pass of the first plan.
        """
        prepared = [self._prepare(plan) for plan in plans]
        batch = self._batch(images, plans[0].device)
        least = [self._pass(model, plan, batch) for model, plan in zip(prepared, plans, strict=True)]
        if plans[0].device != "cpu":
            least = [math.inf] * len(plans)  # ignore the first pass: it includes compiling or searching for algorithms
        hopeless = [seconds > HOPELESS * least[0] for seconds in least]
        started = time.perf_counter()
        for _ in range(PASSES):
            for place, plan in enumerate(plans):
                if not hopeless[place]:
                    seconds = self._pass(prepared[place], plan, batch)
                    self._passes.setdefault((plan, images), []).append(seconds)
                    least[place] = min(least[place], seconds)
            if time.perf_counter() - started > PASSES_SECONDS * len(plans):
                break
        return least

    def faster_by_winograd(self, plan: ComputePlan, images: int, *, advantage: float) -> ChannelPairs:
        """The 3×3 convolutions that are more than `advantage` times as fast by Winograd's algorithm as by `plan`.

        The result is empty if Winograd's algorithm for them would not make all 3×3 convolutions together more than
        `advantage` times as fast.

        Each convolution is timed by itself, forward and backward, on `images` images. If its maps are small, it is
        timed on more images, because transforming the filters would otherwise take most of the time. Of equal
        convolutions with equal inputs, only the first is timed. The times of convolutions with the same channels are
        added up.
        """
        seconds: dict[tuple[object, ...], list[float]] = {}
        totals: dict[tuple[int, int], list[float]] = {}
        for layer, example in self._inputs(plan):
            is_trained = example.requires_grad, layer.weight.requires_grad
            key = layer.out_channels, example.shape, example.dtype, is_trained
            if key not in seconds:
                by_winograd = FastConv2d.sharing(layer, winograd=True, im2col_gemm=False, amx=False)
                height, width = example.shape[2:]
                enough = min(MOST_IMAGES, FEWEST_PIXELS // (height * width))
                batch = torch.randn(max(images, enough), *example.shape[1:], dtype=example.dtype)
                batch = batch.contiguous(memory_format=torch.channels_last).requires_grad_(example.requires_grad)
                both = (layer, by_winograd)
                seconds[key] = [min(self._pass_of(each, plan, batch) for _ in range(2)) for each in both]
            total = totals.setdefault((layer.in_channels, layer.out_channels), [0.0, 0.0])
            for place, value in enumerate(seconds[key]):
                total[place] += value
        faster = [pair for pair, (theirs, ours) in totals.items() if ours * advantage < theirs]
        before = sum(theirs for theirs, _ in totals.values())
        after = before - sum(totals[pair][0] - totals[pair][1] for pair in faster)
        return tuple(faster) if after * advantage < before else ()

    def _inputs(self, plan: ComputePlan) -> list[tuple[nn.Conv2d, torch.Tensor]]:
        """Prepare the model with `plan`, and return its 3×3 convolutions. Each comes with its input for two images."""
        prepared, inputs, hooks = self._prepare(plan), [], []
        for layer in prepared.modules():
            if isinstance(layer, FastConv2d) or FastConv2d.replaces(layer):
                hooks.append(layer.register_forward_pre_hook(lambda layer, args: inputs.append((layer, args[0]))))
        self._pass(prepared, plan, self._batch(2, plan.device))
        for hook in hooks:
            hook.remove()
        return inputs

    def _pass_of(self, layer: nn.Module, plan: ComputePlan, images: torch.Tensor) -> float:
        started = time.perf_counter()
        with plan.autocast():
            output: torch.Tensor = layer(images)
        if output.requires_grad:  # False if the convolution is the first layer and frozen
            # The product makes the gradient dense, as in training. `output.backward(gradient)` would do so, too, but
            # PyTorch would then import its compiler, which takes seconds.
            (output * torch.ones_like(output)).sum().backward()  # type: ignore[no-untyped-call]
        return time.perf_counter() - started

    def agrees(self, plan: ComputePlan) -> bool:
        """Whether the gradients of `plan` are accurate enough.

        The reference is eager float32. The gradients of `plan` must be about as close to the reference as the gradients
        of eager PyTorch in the plan's precision. Every parameter must pass, because a kernel may affect only one layer.
        """
        if plan.precision not in self._errors_by_precision:
            self._errors_by_precision[plan.precision] = self._errors(replace(self._eager, precision=plan.precision))
        accepted = self._errors_by_precision[plan.precision]
        near = all(ours <= 1.5 * theirs + 0.1 for ours, theirs in zip(self._errors(plan), accepted, strict=True))
        return near and statistics.median(accepted) < LARGEST_ERROR

    def _errors(self, plan: ComputePlan) -> list[float]:
        """For each parameter, the relative distance between the gradient of `plan` and the eager float32 gradient."""
        self._eager_gradients = self._eager_gradients or self._gradients(self._eager)
        lengths = [float(gradient.norm()) for gradient in self._eager_gradients]
        least = SMALLEST_GRADIENT * max(lengths)
        pairs = zip(self._gradients(plan), self._eager_gradients, lengths, strict=True)
        return [float((ours - eager).norm()) / (max(length, least) or 1) for ours, eager, length in pairs]

    def _gradients(self, plan: ComputePlan) -> list[torch.Tensor]:
        prepared = self._prepare(plan)
        # On a GPU, use as many images as when timing, because compiled code is specialized for the batch size.
        images = self.images_at_size(IMAGES_COMPARED if plan.device == "cpu" else IMAGES_ON_GPU)
        self._pass(prepared, plan, self._batch(images, plan.device))
        return [p.grad.double().cpu() for p in prepared.parameters() if p.grad is not None]

    def _prepare(self, plan: ComputePlan) -> ModelComposite:
        # Prepare a copy: otherwise the memory layout of the model's weights would change.
        return plan.prepare(copy.deepcopy(self._model).to(plan.device)).train()

    def _batch(self, count: int, device: str) -> Batch:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(count, 3, self._input_size, self._input_size, generator=generator)
        images = images.contiguous(memory_format=torch.channels_last)  # as in training
        return Batch(images.to(device), torch.arange(count, device=device) % 2)

    def _pass(self, prepared: ModelComposite, plan: ComputePlan, batch: Batch) -> float:
        prepared.zero_grad()
        torch.manual_seed(0)  # the same dropout mask each time
        _synchronize(plan.device)
        started = time.perf_counter()
        with plan.autocast():
            loss = prepared.training_step(batch).loss
        loss.backward()  # type: ignore[no-untyped-call]
        _synchronize(plan.device)
        return time.perf_counter() - started


def _synchronize(device: str) -> None:
    if device != "cpu":
        getattr(torch, device).synchronize()
