"""From an `ImageSet` to batches: order, augmentation, workers. Randomness is a function of (seed, epoch, position)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from onecycle.dataset import ImageSet
from onecycle.models import Batch
from onecycle.preprocessing import Preprocessing

Augment = Callable[[NDArray[np.uint8], Sequence[int]], NDArray[np.uint8]]

# Keeps the draws for order apart from those for images, which are keyed by (seed, epoch, position).
_ORDER = 2**32


class AugmentBatch(Protocol):
    """Augments whole batches: `draw` says what happens to the images at positions 0 to `count` of an epoch."""

    def draw(self, seed: int, epoch: int, count: int) -> NDArray[np.int16]: ...

    def __call__(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor: ...


class Batches:
    """The batches of `images`, epoch by epoch: shuffled and augmented for training, in order and as they are otherwise.

    `augment` is called with an image uint8 `[H,W,3]` and the key (seed, epoch, position), in as many processes as there
    are `workers`; batches are the same with any number. `augment_batch` is called with a batch of images uint8
    `[B,H,W,3]` and their draws, on the device, where all images then stay. The last, shorter batch counts.

    Raises:
        ValueError: when both ways to augment are given.
    """

    def __init__(
        self,
        images: ImageSet,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        shuffle: bool = False,
        augment: Augment | None = None,
        augment_batch: AugmentBatch | None = None,
        seed: int = 0,
        workers: int = 0,
        device: str = "cpu",
    ) -> None:
        if augment and augment_batch:
            raise ValueError("images are augmented one by one or batch by batch; give augment or augment_batch")
        self.images = images
        self.preprocessing = preprocessing
        self.batch_size = batch_size
        self.device = device
        self._order = _Order(len(images), seed=seed if shuffle else None)
        self._source: _Source
        if augment:
            one_by_one = _OneByOne(images, self._order, augment, batch_size=batch_size, seed=seed)
            self._source = _Workers(one_by_one, len(self), workers=workers, device=device)
        else:
            self._source = _Resident(
                images, self._order, augment_batch, batch_size=batch_size, seed=seed, device=device
            )
        self._begun: object = None

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.images) // self.batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of `epoch` (0-based): float `[B,3,H,W]`, normalized and channels-last, and labels int64 `[B]`.

        One epoch is drawn at a time.

        Raises:
            RuntimeError: when it is continued after another was begun.
        """
        self._begun = begun = object()
        for images, labels in self._source.epoch(epoch):  # uint8 [B,H,W,3], int64 [B]
            if self._begun is not begun:
                raise RuntimeError(f"epoch {epoch} was continued after another was begun; draw one at a time")
            yield Batch(self.preprocessing.normalize(images), labels)

    def preview(self, count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The first `count` images of the first epoch as they are, and as trained on: uint8 `[count,H,W,3]` each."""
        order = self._order.of(0)[:count]
        return self.images.images[order], self._source.first(len(order))


class _Order:
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


class _Source(Protocol):
    """Where batches come from before normalization: uint8 `[B,H,W,3]` and int64 `[B]`, on the device."""

    def epoch(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]: ...

    def first(self, count: int) -> NDArray[np.uint8]:
        """The first `count` images of the first epoch."""
        ...


class _Resident:
    """All images on the device; an epoch needs nothing of the host but its order and draws, sent as it begins."""

    def __init__(
        self,
        images: ImageSet,
        order: _Order,
        augment_batch: AugmentBatch | None,
        *,
        batch_size: int,
        seed: int,
        device: str,
    ) -> None:
        self._images = images
        self._order = order
        self._augment_batch = augment_batch
        self._batch_size = batch_size
        self._seed = seed
        self._device = device
        # On the CPU the images stay where they are, which may be a file that is mapped into memory.
        self._pixels = None if device == "cpu" else torch.from_numpy(images.images).to(device)

    def epoch(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = self._order.of(epoch)
        indices = torch.from_numpy(order).to(self._device)
        labels = torch.from_numpy(self._images.labels[order]).to(self._device)
        draws = None
        if self._augment_batch:
            draws = torch.from_numpy(self._augment_batch.draw(self._seed, epoch, len(order))).to(self._device)
        for start in range(0, len(order), self._batch_size):
            batch = slice(start, start + self._batch_size)
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
            draws = self._augment_batch.draw(self._seed, 0, len(self._images))[:count]
            images = self._augment_batch(images, torch.from_numpy(draws))
        return images.numpy()


class _Workers:
    """Batches augmented image by image, in other processes."""

    def __init__(self, pixels: "_OneByOne", batches: int, *, workers: int, device: str) -> None:
        self._pixels = pixels
        self._sampler = _EpochSampler(batches)
        self._device = device
        self._loader = DataLoader(
            pixels,
            batch_size=None,  # an item is a whole batch already
            sampler=self._sampler,
            num_workers=workers,
            # Workers that live on hold what memory the process had before its first step. Started anew for every
            # epoch, each would keep a copy of all that the network has filled since.
            persistent_workers=workers > 0,
            pin_memory=device == "cuda",
            # Without one of its own the loader draws from the global generator, which belongs to the model.
            generator=torch.Generator(),
        )

    def epoch(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self._sampler.epoch = epoch
        for images, labels in self._loader:
            yield images.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True)

    def first(self, count: int) -> NDArray[np.uint8]:
        return self._pixels.augmented(0, range(count))


class _EpochSampler(Sampler[tuple[int, int]]):
    """The (epoch, number) of every batch of `epoch`."""

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.epoch = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter([(self.epoch, number) for number in range(self.batches)])


class _OneByOne(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Whole batches by (epoch, number); what the workers run."""

    def __init__(self, images: ImageSet, order: _Order, augment: Augment, *, batch_size: int, seed: int) -> None:
        self.images = images
        self.order = order
        self.augment = augment
        self.batch_size = batch_size
        self.seed = seed

    def __getitem__(self, place: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        epoch, number = place
        start = number * self.batch_size
        positions = range(start, min(start + self.batch_size, len(self.images)))
        labels = self.images.labels[self.order.of(epoch)[positions]]
        return torch.from_numpy(self.augmented(epoch, positions)), torch.from_numpy(labels)

    def augmented(self, epoch: int, positions: range) -> NDArray[np.uint8]:
        """The images at `positions` of `epoch`, uint8 `[len(positions),H,W,3]`."""
        images = self.images.images[self.order.of(epoch)[positions]]
        keys = ((self.seed, epoch, position) for position in positions)
        return np.stack([self.augment(image, key) for image, key in zip(images, keys, strict=True)])
