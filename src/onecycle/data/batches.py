"""From an `ImageSet` to batches: order, augmentation, workers. Randomness is a function of (seed, epoch, position)."""

import copy
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from onecycle.data import ImageSet
from onecycle.data.batch_sources import (
    Augment,
    AugmentBatch,
    AugmentedBatches,
    Order,
    ResidentSource,
    Source,
    WorkerSource,
)
from onecycle.data.preprocessing import Preprocessing, resize
from onecycle.distributed import ranks
from onecycle.models import Batch


class Batches:
    """The batches of `images`, epoch by epoch: shuffled and augmented for training, in order and as they are otherwise.

    `augment` is called with an image uint8 `[H,W,3]` and the key (seed, epoch, position), in as many processes as there
    are `workers`; batches are the same with any number. `augment_batch` is called with a batch of images uint8
    `[B,H,W,3]` and their draws, on the device, where all images then stay. The last, shorter batch counts.

    With `shards` each process takes only its part of every batch: so many of these that it computes itself, and the
    others theirs.

    With `sizes` the batches of `epochs` epochs are resized to these sides in turn, each for an equal part of them.

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
        sizes: Sequence[int] = (),
        epochs: int = 1,
        shards: int = 1,
        seed: int = 0,
        workers: int = 0,
        device: str = "cpu",
    ) -> None:
        if augment and augment_batch:
            raise ValueError("images are augmented one by one or batch by batch; give augment or augment_batch")
        self.images = images
        self.preprocessing = preprocessing
        self.batch_size = batch_size
        self.shards = shards
        self._order = Order(len(images), seed=seed if shuffle else None)
        self._source: Source
        if augment:
            batches = AugmentedBatches(images, self._order, augment, seed=seed)
            self._source = WorkerSource(batches, workers=workers, device=device)
        else:
            self._source = ResidentSource(images, self._order, augment_batch, seed=seed, device=device)
        self._sizes = sizes
        self._epochs = epochs
        self._begun: object = None

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.images) // self.batch_size)

    def size(self, number: int) -> int:
        """Images in the batch `number` (0-based) of an epoch."""
        return min(self.batch_size, len(self.images) - number * self.batch_size)

    def epoch(self, epoch: int, *, first: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """The batches of `epoch` (0-based): float `[B,3,S,S]`, normalized and channels-last, and labels int64 `[B]`.

        One epoch is drawn at a time, from its batch `first` on, to before its batch `stop`.

        Raises:
            RuntimeError: when it is continued after another was begun.
        """
        self._begun = begun = object()
        numbers = range(first, len(self) if stop is None else stop)
        drawn = self._source.epoch(epoch, [self._part(number) for number in numbers])  # uint8 [B,H,W,3], int64 [B]
        for number, (images, labels) in zip(numbers, drawn, strict=True):
            if self._sizes and len(labels):
                images = resize(images, self._size(epoch * len(self) + number))
            yield Batch(self.preprocessing.normalize(images), labels)
            if self._begun is not begun:  # and the next batch that comes belongs to the other
                raise RuntimeError(f"epoch {epoch} was continued after another was begun; draw one at a time")

    def _part(self, number: int) -> range:
        """The positions in an epoch's order of the batch `number`: of those of its shards that this process has."""
        mine, size, start = ranks.current().block(self.shards), self.size(number), number * self.batch_size
        if self.shards == 1:
            return range(start, start + size)
        return range(start + size * mine.start // self.shards, start + size * mine.stop // self.shards)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The positions in `images` of an epoch's images (0-based), in the order of its batches: int64 `[N]`."""
        return self._order.of(epoch)

    def at_last_size(self) -> Self:
        """The same batches, all resized to the last of their sizes."""
        other = copy.copy(self)
        other._sizes = self._sizes[-1:]
        return other

    def _size(self, step: int) -> int:
        return self._sizes[min(step * len(self._sizes) // (self._epochs * len(self)), len(self._sizes) - 1)]

    def preview(self, count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The first `count` images of the first epoch as they are, and augmented: uint8 `[count,H,W,3]`."""
        order = self._order.of(0)[:count]
        return self.images.images[order], self._source.first(len(order))
