"""A batch in parts, each with batch norm statistics of its own, whose gradients are summed in an order that is fixed.

What comes of a batch is a function of the number of its shards, and never of how many processes they are shared out to:
each computes its own in the same way as one process would, and sums follow one binary tree over all shards.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from signal import SIGINT, SIGTERM
from typing import NamedTuple

import torch
from torch import nn

from onecycle.compute.plan import Acceleration
from onecycle.core import signals
from onecycle.data.batches import Batches
from onecycle.distributed import ranks
from onecycle.distributed.ordered_sum import OrderedSum
from onecycle.models import Batch, ModelComposite

BUCKET = 2**20  # numbers after which a part of the gradient is sent, while the backward pass goes on
_SIGNALS = (SIGINT, SIGTERM)


class Learned(NamedTuple):
    """What a batch came to: its mean loss and its correct answers, scalars, and its images.

    `margins` float32 `[B]` are how far the logit of each image's label is above the largest other one. The gradient is
    in the parameters. All are on the device: it may not be done before they are read.
    """

    loss: torch.Tensor
    correct: torch.Tensor
    images: int
    margins: torch.Tensor


Learn = Callable[[ModelComposite, Batch, int], Learned]
"""From a prepared model, a batch and the step (0-based, global) to what the batch came to."""


def learning(batches: Batches, acceleration: Acceleration) -> Learn:
    """How the batches of a training set are learned from: whole, or in as many shards as they are cut into."""
    if batches.shards > 1:
        return _Sharded(batches, acceleration)
    return whole(acceleration)


def whole(acceleration: Acceleration) -> Learn:
    """Each batch at once."""

    def learn(running: ModelComposite, batch: Batch, step: int) -> Learned:
        with acceleration.autocast():
            loss, logits = running.training_step(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        logits = logits.detach()
        correct = (logits.argmax(dim=1) == batch.labels).sum()
        return Learned(loss.detach(), correct, len(batch.labels), _margins(logits, batch.labels))

    return learn


class _Sharded:
    """Each batch in shards, of which this process computes some, and others the rest."""

    def __init__(self, batches: Batches, acceleration: Acceleration) -> None:
        self._batches = batches
        self._acceleration = acceleration

    def __call__(self, running: ModelComposite, batch: Batch, step: int) -> Learned:
        shards, images = self._batches.shards, self._batches.size(step % len(self._batches))
        mine = ranks.current().block(shards)
        first = images * mine.start // shards  # of the batch's images, of those in this process
        gradients = _Gradients([parameter for parameter in running.parameters() if parameter.requires_grad], shards)
        outcome = _Outcome(running, images, shards)
        for shard in mine:
            start, stop = images * shard // shards, images * (shard + 1) // shards
            with outcome.of(shard), gradients.of(shard):
                if start == stop:  # the last batch of an epoch may have fewer images than there are shards
                    continue
                part = Batch(*(values[start - first : stop - first] for values in batch))
                with self._acceleration.autocast():
                    loss, logits = running.training_step(part)
                (loss * ((stop - start) / images)).backward()  # type: ignore[no-untyped-call]
                outcome.note(loss.detach(), logits.detach(), part.labels, start)
        gradients.fill()
        learned = outcome.learned()
        ranks.current().expect_soon(True)  # the next batch
        return learned


class _Gradients:
    """The gradients of `parameters`, summed over all shards, and sent while the backward pass goes on."""

    def __init__(self, parameters: Sequence[nn.Parameter], shards: int) -> None:
        self._parameters = parameters
        self._places: dict[nn.Parameter, tuple[int, int]] = {}  # the bucket, and where in it
        lengths: list[int] = []
        for parameter in reversed(parameters):  # about the order in which their gradients come
            if not lengths or lengths[-1] >= BUCKET:
                lengths.append(0)
            self._places[parameter] = len(lengths) - 1, lengths[-1]
            lengths[-1] += parameter.numel()
        self._sums = [OrderedSum(length, shards, parameters[0].device) for length in lengths]

    @contextmanager
    def of(self, shard: int) -> Iterator[None]:
        """Inside, the gradients are those of `shard`; those that do not come are zero."""
        values = [each.zeros() for each in self._sums]
        missing = [0] * len(self._sums)
        for bucket, _ in self._places.values():
            missing[bucket] += 1
        added = 0

        def take(parameter: torch.Tensor) -> None:
            nonlocal added
            assert isinstance(parameter, nn.Parameter)
            bucket, place = self._places[parameter]
            _part(values[bucket], place, parameter).copy_(parameter.grad)  # type: ignore[arg-type]
            parameter.grad = None
            missing[bucket] -= 1
            while added < len(missing) and not missing[added]:  # in their order, which is the same in all processes
                self._sums[added].add(shard, values[added])
                added += 1
            for each in self._sums[:added]:
                if not each.advance():
                    break

        hooks = [each.register_post_accumulate_grad_hook(take) for each in self._parameters]  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        for each, of_shard in list(zip(self._sums, values, strict=True))[added:]:
            each.add(shard, of_shard)

    def fill(self) -> None:
        """Give the parameters the gradient of the whole batch."""
        for each in self._sums:
            each.gather()
        results = [each.result() for each in self._sums]
        for parameter, (bucket, place) in self._places.items():
            parameter.grad = _part(results[bucket], place, parameter)


def _part(values: torch.Tensor, start: int, parameter: nn.Parameter) -> torch.Tensor:
    """What is in `values` `[N]` from `start` on, in the shape of `parameter` and as it lies in memory."""
    part = values[start : start + parameter.numel()]
    if parameter.dim() == 4 and parameter.is_contiguous(memory_format=torch.channels_last):
        outputs, inputs, height, width = parameter.shape
        return part.view(outputs, height, width, inputs).permute(0, 3, 1, 2)
    return part.view(parameter.shape)


class _Outcome:
    """All but the gradients that comes of a batch: running statistics, loss, answers, and whether it is to stop."""

    def __init__(self, running: nn.Module, images: int, shards: int) -> None:
        self._buffers = list(running.buffers())
        self._before = [buffer.clone() for buffer in self._buffers]
        self._images = images
        self._ends = list(accumulate((buffer.numel() for buffer in self._buffers), initial=0))
        self._sum = OrderedSum(self._ends[-1] + images + 2 + len(_SIGNALS), shards, next(running.parameters()).device)
        self._values = self._sum.zeros()

    @contextmanager
    def of(self, shard: int) -> Iterator[None]:
        """Inside, `shard` is computed, from the buffers that were there before the batch."""
        self._restore()
        self._values = self._sum.zeros()
        yield
        *_, counts = self._split(self._values)
        for place, number in enumerate(_SIGNALS, start=2):
            counts[place] = signals.received() == number
        self._sum.add(shard, self._values)

    def note(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, start: int) -> None:
        """The shard's mean loss, and the `logits` `[B,C]` for its `labels` `[B]`, from `start` on in the batch."""
        share = len(labels) / self._images
        about_buffers, margins, counts = self._split(self._values)
        for buffer, before, part in zip(self._buffers, self._before, about_buffers, strict=True):
            part.copy_((buffer - before) * share)  # changes: what does not change stays as it is
        margins[start : start + len(labels)] = _margins(logits, labels)
        counts[0] = loss * share
        counts[1] = (logits.argmax(dim=1) == labels).sum()

    def learned(self) -> Learned:
        """What the whole batch came to; the buffers are then as it leaves them."""
        about_buffers, margins, counts = self._split(self._sum.result())
        self._restore()
        for buffer, change in zip(self._buffers, about_buffers, strict=True):
            buffer.add_(change if buffer.is_floating_point() else change.round().to(buffer.dtype))
        if ranks.several():  # else it would make a GPU wait
            for place, number in enumerate(_SIGNALS, start=2):
                if counts[place]:
                    signals.agree(number)
        return Learned(counts[0], counts[1].long(), self._images, margins)

    def _restore(self) -> None:
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(before)

    def _split(self, values: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        """The parts of `values` `[N]`: about each buffer, in its shape, each image, and all."""
        pairs = zip(self._buffers, pairwise(self._ends), strict=True)
        about_buffers = [values[start:stop].view(buffer.shape) for buffer, (start, stop) in pairs]
        start = self._ends[-1]
        return about_buffers, values[start : start + self._images], values[start + self._images :]


def _margins(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The logit `[B]` of each label less the largest of the others, of logits `[B,C]`."""
    logits, labels = logits.float(), labels.unsqueeze(1)
    others = logits.scatter(1, labels, -torch.inf)
    return logits.gather(1, labels).squeeze(1) - others.amax(dim=1)
