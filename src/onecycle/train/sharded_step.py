"""A training step whose batch is split into shards, each with its own batch norm statistics.

The result depends on the number of shards, but not on the number of processes that compute them. Each process computes
its shards exactly as a single process would. Every sum over the shards is computed along the same binary tree.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise

import torch
from torch import nn

from onecycle.compute.plan import ComputePlan
from onecycle.data.batches import Batches
from onecycle.distributed.deterministic_reduce import DeterministicSum
from onecycle.distributed.process_group import ProcessGroup
from onecycle.models import Batch, ModelComposite
from onecycle.train.train_step import StepResult, margins_of

BUCKET = 2**20  # gradient values that fill a bucket; a full bucket is sent while the backward pass continues


class ShardedStep:
    """A `TrainStep` in which this process computes its shards of the batch. The other processes compute the rest."""

    def __init__(self, batches: Batches, plan: ComputePlan) -> None:
        self._batches = batches
        self._plan = plan

    def __call__(self, prepared: ModelComposite, batch: Batch, step: int) -> StepResult:
        number = step % len(self._batches)
        shards, images, group = self._batches.shards, self._batches.size(number), self._batches.group
        mine = self._batches.local_shards(number)
        offset = mine[0].start  # `batch` begins with this process's first image
        parameters = [parameter for parameter in prepared.parameters() if parameter.requires_grad]
        gradients = _GradientSums(parameters, shards, group)
        statistics = _BatchStatistics(prepared, images, shards, group)
        for shard in mine:
            with statistics.of(shard.number), gradients.of(shard.number):
                if shard.start == shard.stop:  # the last batch of an epoch may have fewer images than shards
                    continue
                part = Batch(*(values[shard.start - offset : shard.stop - offset] for values in batch))
                with self._plan.autocast():
                    loss, logits = prepared.training_step(part)
                (loss * ((shard.stop - shard.start) / images)).backward()  # type: ignore[no-untyped-call]
                statistics.record(loss.detach(), logits.detach(), part.labels, shard.start)
        gradients.assign()
        return statistics.result()


class _GradientSums:
    """The gradients of `parameters`, summed over all shards. They are sent in buckets during the backward pass."""

    def __init__(self, parameters: Sequence[nn.Parameter], shards: int, group: ProcessGroup) -> None:
        self._parameters = parameters
        self._places: dict[nn.Parameter, tuple[int, int]] = {}  # values: index of the bucket, offset in the bucket
        lengths: list[int] = []
        for parameter in reversed(parameters):  # roughly the order in which gradients become ready
            if not lengths or lengths[-1] >= BUCKET:
                lengths.append(0)
            self._places[parameter] = len(lengths) - 1, lengths[-1]
            lengths[-1] += parameter.numel()
        self._sums = [DeterministicSum(length, shards, parameters[0].device, group) for length in lengths]

    @contextmanager
    def of(self, shard: int) -> Iterator[None]:
        """Treat gradients computed in the block as those of `shard`. A missing gradient counts as zero."""
        values = [each.zeros() for each in self._sums]
        missing = [0] * len(self._sums)
        for bucket, _ in self._places.values():
            missing[bucket] += 1
        added = 0

        def take(parameter: torch.Tensor) -> None:
            nonlocal added
            assert isinstance(parameter, nn.Parameter)
            bucket, offset = self._places[parameter]
            _view_like(parameter, values[bucket], offset).copy_(parameter.grad)  # type: ignore[arg-type]
            parameter.grad = None
            missing[bucket] -= 1
            while added < len(missing) and not missing[added]:  # all processes add the buckets in the same order
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

    def assign(self) -> None:
        """Give every parameter its gradient for the whole batch."""
        for each in self._sums:
            each.gather()
        results = [each.result() for each in self._sums]
        for parameter, (bucket, offset) in self._places.items():
            parameter.grad = _view_like(parameter, results[bucket], offset)


def _view_like(parameter: nn.Parameter, values: torch.Tensor, start: int) -> torch.Tensor:
    """A view of `values` `[N]` from `start` on, with the shape and memory layout of `parameter`."""
    part = values[start : start + parameter.numel()]
    if parameter.dim() == 4 and parameter.is_contiguous(memory_format=torch.channels_last):
        outputs, inputs, height, width = parameter.shape
        return part.view(outputs, height, width, inputs).permute(0, 3, 1, 2)
    return part.view(parameter.shape)


class _BatchStatistics:
    """All results of a batch except gradients: loss, correct predictions, margins, and buffers like running means."""

    def __init__(self, prepared: nn.Module, images: int, shards: int, group: ProcessGroup) -> None:
        self._buffers = list(prepared.buffers())
        self._before = [buffer.clone() for buffer in self._buffers]
        self._images = images
        self._ends = list(accumulate((buffer.numel() for buffer in self._buffers), initial=0))
        device = next(prepared.parameters()).device
        self._sum = DeterministicSum(self._ends[-1] + images + 2, shards, device, group)
        self._values = self._sum.zeros()

    @contextmanager
    def of(self, shard: int) -> Iterator[None]:
        """Collect the results of `shard` inside the block. Buffers start with their values from before the batch."""
        self._restore()
        self._values = self._sum.zeros()
        yield
        self._sum.add(shard, self._values)

    def record(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, start: int) -> None:
        """Record a shard: its mean loss, logits `[B,C]` and labels `[B]`. `start` is the index of its first image."""
        share = len(labels) / self._images
        buffer_changes, margins, counts = self._split(self._values)
        for buffer, before, part in zip(self._buffers, self._before, buffer_changes, strict=True):
            # Sum each buffer's changes over the shards, not its values. A constant buffer then stays exactly the same.
            part.copy_((buffer - before) * share)
        margins[start : start + len(labels)] = margins_of(logits, labels)
        counts[0] = loss * share
        counts[1] = (logits.argmax(dim=1) == labels).sum()

    def result(self) -> StepResult:
        """The result of the whole batch. Also sets the model's buffers to their values after the batch."""
        buffer_changes, margins, counts = self._split(self._sum.result())
        self._restore()
        for buffer, change in zip(self._buffers, buffer_changes, strict=True):
            buffer.add_(change if buffer.is_floating_point() else change.round().to(buffer.dtype))
        return StepResult(counts[0], counts[1].long(), self._images, margins)

    def _restore(self) -> None:
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(before)

    def _split(self, values: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        """Views of `values` `[N]`: the change of each buffer, the margins, and the pair (loss, correct predictions)."""
        pairs = zip(self._buffers, pairwise(self._ends), strict=True)
        buffer_changes = [values[start:stop].view(buffer.shape) for buffer, (start, stop) in pairs]
        start = self._ends[-1]
        return buffer_changes, values[start : start + self._images], values[start + self._images :]
