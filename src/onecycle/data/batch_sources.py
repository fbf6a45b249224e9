"""Where batches come from before they are normalized: from memory on the device, or from worker processes."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from onecycle.data import ImageSet

Augment = Callable[[NDArray[np.uint8], Sequence[int]], NDArray[np.uint8]]

WORKER_GRACE_SECONDS = 60  # to live on when told to stop: longer than a step and a saving take
WORKER_NICENESS = 15  # of what a step gets on a core it leaves a thirtieth, which is enough for 512 images

# Keeps the draws for order apart from those for images, which are keyed by (seed, epoch, position).
_ORDER = 2**32


class AugmentBatch(Protocol):
    """Augments whole batches: `draw` says what happens in an epoch to the images with the indices `order`."""

    def draw(self, seed: int, epoch: int, order: NDArray[np.int64]) -> NDArray[np.int16]: ...

    def __call__(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor: ...


class Order:
    """The images' indices `[N]` by position in an epoch; in their own order where there is no seed."""

    def __init__(self, count: int, *, seed: int | None) -> None:
        self.count = count
        self.seed = seed
        self._last: tuple[int, NDArray[np.int64]] | None = None

    def of(self, epoch: int) -> NDArray[np.int64]:
        if self._last is None or self._last[0] != epoch:
            order = np.arange(self.count)
            if self.seed is not None:
                np.random.default_rng((self.seed, epoch, _ORDER)).shuffle(order)
            self._last = epoch, order
        return self._last[1]


class Source(Protocol):
    """Where batches come from before normalization: uint8 `[B,H,W,3]` and int64 `[B]`, on the device."""

    def epoch(self, epoch: int, parts: Sequence[range]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """A batch of the images at each of these positions in the order of `epoch`."""
        ...

    def first(self, count: int) -> NDArray[np.uint8]:
        """The first `count` images of the first epoch."""
        ...


class ResidentSource:
    """All images on the device; an epoch needs nothing of the host but its order and draws, sent as it begins."""

    def __init__(
        self,
        images: ImageSet,
        order: Order,
        augment_batch: AugmentBatch | None,
        *,
        seed: int,
        device: str,
    ) -> None:
        self._images = images
        self._order = order
        self._augment_batch = augment_batch
        self._seed = seed
        self._device = device
        # On the CPU the images stay where they are, which may be a file that is mapped into memory.
        self._pixels = None if device == "cpu" else torch.from_numpy(images.images).to(device)

    def epoch(self, epoch: int, parts: Sequence[range]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = self._order.of(epoch)
        indices = torch.from_numpy(order).to(self._device)
        labels = torch.from_numpy(self._images.labels[order]).to(self._device)
        draws = None
        if self._augment_batch:
            draws = torch.from_numpy(self._augment_batch.draw(self._seed, epoch, order)).to(self._device)
        for part in parts:
            batch = slice(part.start, part.stop)
            if self._pixels is None:
                images = torch.from_numpy(self._images.images[order[batch]])
            else:
                images = self._pixels[indices[batch]]
            if self._augment_batch and draws is not None:
                images = self._augment_batch(images, draws[batch])
            yield images, labels[batch]

    def first(self, count: int) -> NDArray[np.uint8]:
        images = torch.from_numpy(self._images.images[self._order.of(0)[:count]])
        if self._augment_batch:
            draws = self._augment_batch.draw(self._seed, 0, self._order.of(0)[:count])
            images = self._augment_batch(images, torch.from_numpy(draws))
        return images.numpy()


class WorkerSource:
    """Batches augmented image by image, in other processes."""

    def __init__(self, batches: "AugmentedBatches", *, workers: int, device: str) -> None:
        self._batches = batches
        self._sampler = _EpochSampler()
        self._device = device
        self._loader = DataLoader(
            batches,
            batch_size=None,  # an item is a whole batch already
            sampler=self._sampler,
            num_workers=workers,
            # Workers that live on hold what memory the process had before its first step. Started anew for every
            # epoch, each would keep a copy of all that the network has filled since.
            persistent_workers=workers > 0,
            pin_memory=device == "cuda",
            worker_init_fn=_begin_worker,
            # A forked worker shares the images' memory, and notices when this process is killed. One that came from a
            # server of forks, as Python 3.14 would have it, copies them and lives on for good.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            # Without one of its own the loader draws from the global generator, which belongs to the model.
            generator=torch.Generator(),
        )

    def epoch(self, epoch: int, parts: Sequence[range]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self._sampler.epoch, self._sampler.parts = epoch, parts
        for images, labels in self._loader:
            yield images.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True)

    def first(self, count: int) -> NDArray[np.uint8]:
        return self._batches.augmented(0, range(count))


def _begin_worker(worker: int) -> None:
    # A step's threads wait for each other: one core lent to a worker would hold up all. Batches are drawn ahead, so
    # that it can use what is left over.
    if hasattr(os, "nice"):
        os.nice(WORKER_NICENESS)
    # A terminal and a batch system tell all processes of a run to stop, and the run then still ends its step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_GRACE_SECONDS))


class _EpochSampler(Sampler[tuple[int, range]]):
    """The `epoch`, with the positions in its order, of every batch."""

    def __init__(self) -> None:
        self.epoch = 0
        self.parts: Sequence[range] = ()

    def __iter__(self) -> Iterator[tuple[int, range]]:
        return iter([(self.epoch, part) for part in self.parts])


class AugmentedBatches(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Whole batches by their epoch and their positions in its order, augmented image by image; what the workers run."""

    def __init__(self, images: ImageSet, order: Order, augment: Augment, *, seed: int) -> None:
        self.images = images
        self.order = order
        self.augment = augment
        self.seed = seed

    def __getitem__(self, place: tuple[int, range]) -> tuple[torch.Tensor, torch.Tensor]:
        epoch, positions = place
        labels = self.images.labels[self.order.of(epoch)[positions]]
        return torch.from_numpy(self.augmented(epoch, positions)), torch.from_numpy(labels)

    def augmented(self, epoch: int, positions: range) -> NDArray[np.uint8]:
        """The images at `positions` of `epoch`, uint8 `[len(positions),H,W,3]`."""
        images = self.images.images[self.order.of(epoch)[positions]]
        if not len(images):
            return images
        keys = ((self.seed, epoch, position) for position in positions)
        return np.stack([self.augment(image, key) for image, key in zip(images, keys, strict=True)])
