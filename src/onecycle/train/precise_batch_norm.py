"""Batch norm statistics for evaluation, computed from training images instead of averaged over training steps."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from onecycle.compute.plan import EAGER, ComputePlan
from onecycle.data.batches import Batches
from onecycle.models import as_composite

IMAGES = 2000  # images for the statistics after the last epoch
_FEWEST_IMAGES = 256  # after each epoch but the last, use at least this many images
_SHARE = 0.05  # after each epoch but the last, use this fraction of the training images, within the two limits above


def images_after_epoch(epoch: int, epochs: int, images: int) -> int:
    """How many of the `images` training images to use for the statistics after `epoch` (0-based) of `epochs`.

    The last epoch gives the result of the run, so it gets `IMAGES`. Earlier epochs get fewer if the training set is
    small, because `IMAGES` would take up to a third of the time of an epoch.
    """
    return IMAGES if epoch + 1 == epochs else min(IMAGES, max(_FEWEST_IMAGES, int(_SHARE * images)))


def drawn_batches(batches: Batches, images: int) -> range:
    """The indices (0-based) of an epoch's first batches: as many batches as it takes to get `images` images.

    Only full batches count. If all full batches together have fewer images, the result is all full batches. If no batch
    is full, the epoch has a single batch, and the result is that batch.
    """
    full = max(1, len(batches.images) // batches.batch_size)
    return range(min(-(-images // batches.batch_size), full))


@torch.no_grad()
def set_batch_norm_statistics(
    model: nn.Module, batches: Batches, *, plan: ComputePlan = EAGER, images: int = IMAGES
) -> None:
    """Set the running mean and variance of every batch norm in `model` to those of training images.

    Averages over training steps lag behind the weights. After a short run they still contain their initial values. In
    these averages, the last batch of an epoch counts as much as the others, even if it has few images. This function
    replaces the averages with the exact mean and variance over the images of `drawn_batches`, resized to the last
    training size. Every call uses the same images, augmented in the same way. Several processes share the work. The
    number of processes does not change the result. A batch norm that `model.train()` leaves in evaluation mode keeps
    its statistics.

    Source: Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3, where this is called PreciseBN.
    """
    prepared = replace(plan, torch_compile=False).prepare(as_composite(model)).train()
    norms = [norm for norm in prepared.modules() if isinstance(norm, _BatchNorm) and norm.training]
    norms = [norm for norm in norms if norm.running_mean is not None]
    if not norms:
        return
    prepared.eval()
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    sums = [torch.zeros(3, norm.num_features, dtype=torch.float64) for norm in norms]
    for norm, of_norm in zip(norms, sums, strict=True):
        norm.train()
        norm.momentum = 1.0  # a forward pass replaces the running statistics by those of its input
        norm.reset_running_stats()  # otherwise infinity or NaN would remain: 0 × NaN is NaN
        norm.register_forward_hook(_adding_to(of_norm))
    of_batches = [torch.empty(0, 3, sum(norm.num_features for norm in norms), dtype=torch.float64)]
    mine = batches.group.shard_range(len(drawn_batches(batches, images)))
    for batch in batches.unsharded().at_last_size().epoch(0, first=mine.start, stop=mine.stop):
        with plan.autocast():
            prepared(batch.images)
        of_batches.append(torch.cat(sums, dim=1)[None])
        for of_norm in sums:
            of_norm.zero_()
    totals = batches.group.all_gather(torch.cat(of_batches)).sum(dim=0)  # float64 [3, channels of all norms]
    features = [norm.num_features for norm in norms]
    for norm, buffers, (count, mean, square) in zip(norms, before, torch.split(totals, features, dim=1), strict=True):
        if count.any():  # a layer that the network does not use keeps its statistics
            buffers["running_mean"].copy_(mean / count)
            buffers["running_var"].copy_(square / count - (mean / count) ** 2)
        for name, buffer in norm.named_buffers():
            buffer.copy_(buffers[name])


def _adding_to(sums: torch.Tensor) -> Callable[[_BatchNorm, tuple[torch.Tensor, ...], torch.Tensor], None]:
    """A hook that adds the count, sum and sum of squares of each channel to `sums`, float64 `[3,C]`."""

    def add(norm: _BatchNorm, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        count = inputs[0].numel() // norm.num_features
        mean, variance = norm.running_mean.cpu().double(), norm.running_var.cpu().double()
        biased = variance * (count - 1) / count
        sums.add_(torch.stack([torch.full_like(mean, count), count * mean, count * (biased + mean**2)]))

    return add
