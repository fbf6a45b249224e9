"""Batch norm statistics for evaluation, computed from training images instead of averaged over training steps."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from onecycle.compute.plan import EAGER, ComputePlan
from onecycle.data.batches import Batches
from onecycle.models import as_composite

_RUNNING = ("running_mean", "running_var")
IMAGES = 2000  # at least this many images are used, in full batches, if the training set has them


@torch.no_grad()
def set_batch_norm_statistics(
    model: nn.Module, batches: Batches, *, plan: ComputePlan = EAGER, images: int = IMAGES
) -> None:
    """Set the running mean and variance of every batch norm in `model` to those of training images.

    Averages over training steps trail behind the weights. After a short run they still contain their initial values,
    and the last batch of an epoch counts as much as the others, even if it has few images. This function replaces them
    by the mean and variance over at least `images` images: the first full batches of the first epoch, at the last of
    the sizes. The draw is the same in every call. Several processes share the work. Their number does not change the
    result.

    Source: Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3, where this is called PreciseBN.
    """
    prepared = replace(plan, torch_compile=False).prepare(as_composite(model)).eval()
    norms = [module for module in prepared.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return
    for norm in norms:
        norm.train().momentum = 1.0  # a forward pass replaces the running statistics by those of its batch
    counters = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    counts = [counter.clone() for counter in counters]
    group, full_batches = batches.group, max(1, len(batches.images) // batches.batch_size)
    mine = group.shard_range(min(-(-images // batches.batch_size), full_batches))
    statistics = [torch.empty(0, 2, sum(norm.num_features for norm in norms), dtype=torch.float64)]
    for batch in batches.unsharded().at_last_size().epoch(0, first=mine.start, stop=mine.stop):
        with plan.autocast():
            prepared(batch.images)
        of_batch = [torch.cat([getattr(norm, name).cpu() for norm in norms]) for name in _RUNNING]
        statistics.append(torch.stack(of_batch).double()[None])
    means, variances = group.all_gather(torch.cat(statistics)).unbind(1)  # float64 [batches, channels]
    mean = means.mean(dim=0)
    variance = variances.mean(dim=0) + means.var(dim=0, correction=0)  # the law of total variance
    for name, values in zip(_RUNNING, (mean, variance), strict=True):
        for norm, of_norm in zip(norms, torch.split(values, [norm.num_features for norm in norms]), strict=True):
            getattr(norm, name).copy_(of_norm)
    for counter, count in zip(counters, counts, strict=True):
        counter.copy_(count)
