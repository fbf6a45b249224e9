"""Sources of batches before normalization. They take images from the device, or from worker processes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from onecycle.core.errors import PeerError
from onecycle.data import ImageSet
from onecycle.data.batch_workers import BatchWorkers

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]
Place = tuple[int, range]  # an epoch (0-based) and the positions of a batch in the order of that epoch
Augment = Callable[[Pixels, Sequence[int]], Pixels]

# Last element of the shuffle's seed. It is larger than any position, so the seed never equals an image's key
# (seed, epoch, position).
_ORDER = 2**32


class AugmentBatch(Protocol):
    """Augments whole batches. `draw` draws the random parameters of an epoch: one row for each index in `order`."""

    def draw(self, seed: int, epoch: int, order: NDArray[np.int64]) -> NDArray[np.int16]: ...

    def __call__(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor: ...


class Order:
    """The order of the images in each epoch, as indices `[N]`. It is shuffled, unless `seed` is None."""

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
    """Batches from a set of images on the device. Each epoch, the host sends order, labels and random parameters.

    `steps` are functions that change each image on the host. If there are any, the set of images stays on the host, and
    the host sends the images of each batch.
    """

    def __init__(
        self,
        images: ImageSet,
        order: Order,
        augment_batch: AugmentBatch | None,
        *,
        steps: Sequence[Augment],
        seed: int,
        device: str,
    ) -> None:
        self._images = images
        self._order = order
        self._on_host = AugmentedBatches(images, order, steps, seed=seed)
        self._augment_batch = augment_batch
        self._seed = seed
        self._device = device
        # On the CPU the images stay where they are: in memory, or in a memory-mapped file.
        self._pixels = None if device == "cpu" or steps else torch.from_numpy(images.images).to(device)

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
                images = _on_device(self._on_host((epoch, part))[0], self._device)
            else:
                images = self._pixels[indices[batch]]
            if self._augment_batch and draws is not None:
                images = self._augment_batch(images, draws[batch])
            yield images, labels[batch]

    def first(self, count: int) -> NDArray[np.uint8]:
        images = torch.from_numpy(self._on_host((0, range(count)))[0])
        if self._augment_batch:
            draws = self._augment_batch.draw(self._seed, 0, self._order.of_epoch(0)[:count])
            images = self._augment_batch(images, torch.from_numpy(draws))
        return images.numpy()


class WorkerSource:
    """Batches that worker processes augment image by image. Without `workers`, this process augments them."""

    def __init__(self, batches: "AugmentedBatches", *, workers: int, device: str) -> None:
        self._batches = batches
        self._count = workers
        self._device = device
        self._workers: BatchWorkers[Place, tuple[Pixels, Labels]] | None = None

    def epoch(self, epoch: int, parts: Sequence[range]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        # Start the workers only once, before the first step. A forked worker keeps a copy of all memory that training
        # changes after the fork. Before the first step, this process has little memory that training will change.
        if self._count and not self._workers:
            self._workers = BatchWorkers(self._batches, self._count)
        places = [(epoch, part) for part in parts]
        try:
            for images, labels in self._workers.results(places) if self._workers else map(self._batches, places):
                yield _on_device(images, self._device), _on_device(labels, self._device)
        except (KeyboardInterrupt, PeerError):
            self._workers = None  # a batch may be half received; the next epoch starts new workers
            raise

    def first(self, count: int) -> NDArray[np.uint8]:
        return self._batches((0, range(count)))[0]


class AugmentedBatches:
    """Computes the batch at a place (epoch, positions). Applies all `steps` to each image, with the image's key."""

    def __init__(self, images: ImageSet, order: Order, steps: Sequence[Augment], *, seed: int) -> None:
        self.images = images
        self.order = order
        self.steps = steps
        self.seed = seed

    def __call__(self, place: Place) -> tuple[Pixels, Labels]:
        """The images uint8 `[B,H,W,3]` and labels int64 `[B]` of the batch at `place`."""
        epoch, positions = place
        rows = self.order.of_epoch(epoch)[positions]
        images, labels = self.images.images[rows], self.images.labels[rows]
        for step in self.steps if len(images) else ():
            keys = ((self.seed, epoch, position) for position in positions)
            images = np.stack([step(image, key) for image, key in zip(images, keys, strict=True)])
        return images, labels


def _on_device(values: Pixels | Labels, device: str) -> torch.Tensor:
    tensor = torch.from_numpy(values)
    if device == "cuda":
        tensor = tensor.pin_memory()  # copying from pinned memory does not wait for the GPU
    return tensor.to(device, non_blocking=True)
