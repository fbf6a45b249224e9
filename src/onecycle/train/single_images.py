"""Check before training that the network can be trained on batches and shards that have only one image."""

import copy

import torch
from torch import nn

from onecycle.compute.plan import EAGER
from onecycle.core.errors import InputError
from onecycle.data.batches import Batches
from onecycle.models import Batch, as_composite
from onecycle.train.random_states import keep_random_states
from onecycle.train.train_step import whole_batch_step


def require_trainable(model: nn.Module, batches: Batches) -> None:
    """Check that `model` can be trained on each batch or shard of `batches` that has only one image.

    Batch norm cannot be trained on a single image whose feature map is one pixel, because one value per channel has no
    variance. The check trains a copy of `model` on one image. If that fails, it trains a copy on two images. If both
    fail, the cause is not the single image: the check passes, and the run fails later with the network's own error. The
    model and all random states stay unchanged.

    Raises:
        InputError: when `model` cannot be trained on a single image. The message says how to avoid such batches, for
            example with another batch size.
    """
    for size in sorted(batches.sizes_of_single_images()):
        problem = _problem(model, size, images=1)
        if problem and not _problem(model, size, images=2):
            shards, part = (f" and {batches.shards} shards", "shard") if batches.shards > 1 else ("", "batch")
            raise InputError(
                f"{len(batches.images):,} training images in batches of {batches.batch_size}{shards} leave a {part} "
                f"with a single image of {size}×{size} pixels, on which this network cannot be trained ({problem}); "
                f"{_advice(batches)}"
            )


def _problem(model: nn.Module, size: int, *, images: int) -> str | None:
    """Try a training step with a copy of `model` on zeros of `size`×`size` pixels. Returns why it failed, or None."""
    trial = as_composite(copy.deepcopy(model)).train()
    device = next(trial.parameters()).device
    pixels = torch.zeros(images, 3, size, size, device=device)
    batch = Batch(pixels, torch.zeros(images, dtype=torch.int64, device=device))
    try:
        with keep_random_states():
            whole_batch_step(EAGER)(trial, batch, 0)
    except Exception as error:
        return str(error).partition("\n")[0]
    return None


def _advice(batches: Batches) -> str:
    """How to change the run so that each batch and each shard has at least two images."""
    images, shards, fewest = len(batches.images), batches.shards, 2 * batches.shards

    def last(size: int) -> int:
        return images % size or size

    def makes_a_cycle(size: int) -> bool:
        return batches.epochs * -(-images // size) >= 2  # a cycle has at least two steps

    possible = [size for size in range(fewest, images + 1) if last(size) >= fewest and makes_a_cycle(size)]
    if not possible:
        return "add images, or use fewer --shards" if shards > 1 else "add images"
    # A last batch of few images is noisy, so prefer a batch size whose last batch is at least half full.
    nearest = min(possible, key=lambda size: (2 * last(size) < size, abs(size - batches.batch_size)))
    return f"use --batch-size {nearest}"
