"""Sources of batches before normalization: images that are all on the device, or worker processes."""

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

WORKER_GRACE_SECONDS = 60  # from SIGTERM to a worker's exit: longer than a step and a checkpoint take
WORKER_NICENESS = 15  # gives a worker 1/30 of a busy core, enough for batches of 512 images

# Last element of the shuffle's seed. It is larger than any position, so the seed never equals an image's key
# (seed, epoch, position).
_ORDER = 2**32


class AugmentBatch(Protocol):
    """Augments whole batches. `draw` draws the random parameters of an epoch: one row for each index in `order`."""

    def draw(self, seed: int, epoch: int, order: NDArray[np.int64]) -> NDArray[np.int16]: ...

    def __call__(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor: ...


class Order:
    """The order of the images in each epoch, as indices `[N]`: shuffled with `seed`, or unshuffled if it is None."""

    def __init__(self, count: int, *, seed: int | None) -> None:
        self.count = count
        self.seed = seed
        self._last: tuple[int, NDArray[np.int64]] | None = None

    def of_epoch(self, epoch: int) -> NDArray[np.int64]:
        if self._last is None or self._last[0] != epoch:
            order = np.arange(self.count)
            if self.seed is not None:
                np.random.default_rng((self.seed, epoch, _ORDER)).shuffle(order)
            self._last = epoch, order
        return self._last[1]


class BatchSource(Protocol):
    """Yields batches before normalization: uint8 images `[B,H,W,3]` and int64 labels `[B]`, on the device."""

    def epoch(self, epoch: int, parts: Sequence[range]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield one batch for each of `parts`. A part is a range of positions in the order of `epoch`."""
        ...

    def first(self, count: int) -> NDArray[np.uint8]:
        """The first `count` images of the first epoch, after augmentation: uint8 `[count,H,W,3]`."""
        ...


class ResidentSource:
    """Batches of images that are all on the device. Each epoch, the host sends order, labels and random parameters."""

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
        # On the CPU the images stay where they are: in memory, or in a memory-mapped file.
        self._pixels = None if device == "cpu" else torch.from_numpy(images.images).to(device)

    def epoch(self, epoch: int, parts: Sequence[range]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = self._order.of_epoch(epoch)
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
        images = torch.from_numpy(self._images.images[self._order.of_epoch(0)[:count]])
        if self._augment_batch:
            draws = self._augment_batch.draw(self._seed, 0, self._order.of_epoch(0)[:count])
            images = self._augment_batch(images, torch.from_numpy(draws))
        return images.numpy()


class WorkerSource:
    """Batches that worker processes augment image by image."""

    def __init__(self, batches: "AugmentedBatches", *, workers: int, device: str) -> None:
        self._batches = batches
        self._sampler = _EpochSampler()
        self._device = device
        self._loader = DataLoader(
            batches,
            batch_size=None,  # each item is a whole batch
            sampler=self._sampler,
            num_workers=workers,
            # Persistent workers are forked once, before the first step, and share little memory with this process.
            # Workers forked in every epoch would each keep a copy of all memory that training changes after the fork.
            persistent_workers=workers > 0,
            pin_memory=device == "cuda",
            worker_init_fn=_begin_worker,
            # A forked worker shares the images' memory and ends when this process is killed. A worker from a fork
            # server, the default since Python 3.14, copies the images and would keep running.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            # Without this generator, the loader would draw from the global generator, which initializes the model.
            generator=torch.Generator(),
        )

    def epoch(self, epoch: int, parts: Sequence[range]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self._sampler.epoch, self._sampler.parts = epoch, parts
        for images, labels in self._loader:
            yield images.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True)

    def first(self, count: int) -> NDArray[np.uint8]:
        return self._batches.augmented(0, range(count))


def _begin_worker(worker: int) -> None:
    # The threads of a training step wait for each other, so a worker that occupies one core would delay all threads.
    # Batches are prefetched, so idle CPU time is enough for the workers.
    if hasattr(os, "nice"):
        os.nice(WORKER_NICENESS)
    # A terminal or batch system sends signals to all processes of a run. The workers keep running for a while, because
    # the main process still needs batches to finish its step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_GRACE_SECONDS))


class _EpochSampler(Sampler[tuple[int, range]]):
    """Yields (epoch, positions) for every batch."""

    def __init__(self) -> None:
        self.epoch = 0
        self.parts: Sequence[range] = ()

    def __iter__(self) -> Iterator[tuple[int, range]]:
        return iter([(self.epoch, part) for part in self.parts])


class AugmentedBatches(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """A dataset whose items are whole batches, by the key (epoch, positions). Augments a batch image by image."""

    def __init__(self, images: ImageSet, order: Order, augment: Augment, *, seed: int) -> None:
        self.images = images
        self.order = order
        self.augment = augment
        self.seed = seed

    def __getitem__(self, place: tuple[int, range]) -> tuple[torch.Tensor, torch.Tensor]:
        epoch, positions = place
        labels = self.images.labels[self.order.of_epoch(epoch)[positions]]
        return torch.from_numpy(self.augmented(epoch, positions)), torch.from_numpy(labels)

    def augmented(self, epoch: int, positions: range) -> NDArray[np.uint8]:
        """The augmented images at `positions` of `epoch`, uint8 `[len(positions),H,W,3]`."""
        images = self.images.images[self.order.of_epoch(epoch)[positions]]
        if not len(images):
            return images
        keys = ((self.seed, epoch, position) for position in positions)
        return np.stack([self.augment(image, key) for image, key in zip(images, keys, strict=True)])
