"""Make batches from an `ImageSet`. All randomness is a function of (seed, epoch, position)."""

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from onecycle.data import ImageSet
from onecycle.data.batch_sources import (
    Augment,
    AugmentBatch,
    AugmentedBatches,
    BatchSource,
    Order,
    ResidentSource,
    WorkerSource,
)
from onecycle.data.preprocessing import Preprocessing, resize
from onecycle.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from onecycle.models import Batch


class Shard(NamedTuple):
    """A part of a batch. `number` is its index (0-based). Its images are the slice `start:stop` of the batch."""

    number: int
    start: int
    stop: int


class Batches:
    """The batches of `images`, epoch by epoch: shuffled and augmented for training, or in the order of `images`.

    `augment` is called with a uint8 image `[H,W,3]` and its key (seed, epoch, position), in `workers` processes.
    Batches do not depend on the number of workers. `augment_batch` is called on the device with a batch of uint8 images
    `[B,H,W,3]` and the random parameters drawn for them. `degrade` takes the same arguments as `augment`, and is
    called before `augment` or `augment_batch`. If neither `augment` nor `degrade` is given, all images stay on the
    device. The last batch is not dropped, but may be shorter.

    If `shards` is more than 1, every batch is split into shards. Each process of `group` gets only the images of its
    own shards.

    With `sizes`, the image size changes during training: it takes the values of `sizes` in order, each for an equal
    share of the steps of all `epochs`.

    Raises:
        ValueError: when both `augment` and `augment_batch` are given, or when `batch_size`, `epochs` or `shards` is
            below 1.
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
        degrade: Augment | None = None,
        sizes: Sequence[int] = (),
        epochs: int = 1,
        shards: int = 1,
        seed: int = 0,
        workers: int = 0,
        device: str = "cpu",
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        if augment and augment_batch:
            raise ValueError("give augment or augment_batch, not both")
        for name, value in {"batch_size": batch_size, "epochs": epochs, "shards": shards}.items():
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be 1 or more")
        self.images = images
        self.preprocessing = preprocessing
        self.batch_size = batch_size
        self.epochs = epochs
        self.shards = shards
        self.group = group
        self._device = device
        self._order = Order(len(images), seed=seed if shuffle else None)
        self._source: BatchSource
        steps = [step for step in (degrade, augment) if step]
        if augment:
            batches = AugmentedBatches(images, self._order, steps, seed=seed)
            self._source = WorkerSource(batches, workers=workers, device=device)
        else:
            self._source = ResidentSource(images, self._order, augment_batch, steps=steps, seed=seed, device=device)
        self._sizes = sizes
        self._length = -(-len(images) // batch_size)
        self._current: object = None

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return self._length

    def size(self, number: int) -> int:
        """The number of images in batch `number` (0-based) of an epoch."""
        return min(self.batch_size, len(self.images) - number * self.batch_size)

    def image_size(self, step: int) -> int:
        """The height and width, in pixels, of the images of the global step `step` (0-based)."""
        if not self._sizes:
            return self.preprocessing.input_size
        return self._sizes[min(step * len(self._sizes) // (self.epochs * len(self)), len(self._sizes) - 1)]

    def sizes_of_single_images(self) -> set[int]:
        """The image sizes, in pixels, that occur in steps with only one image in the batch or in a shard."""
        single = [number for number in range(len(self)) if self.size(number) < 2 * self.shards]
        return {self.image_size(epoch * len(self) + number) for epoch in range(self.epochs) for number in single}

    def epoch(self, epoch: int, *, first: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """The batches of `epoch` (0-based) from `first` up to, but not including, `stop`.

        Images are float32 `[B,3,S,S]`, normalized and channels-last. Labels are int64 `[B]`. Only one epoch can be
        iterated at a time.

        Raises:
            RuntimeError: when an iteration continues after another one has started.
        """
        self._current = current = object()
        numbers = range(first, len(self) if stop is None else stop)
        drawn = self._source.epoch(epoch, [self._positions(number) for number in numbers])  # uint8 [B,H,W,3], int64 [B]
        for number, (images, labels) in zip(numbers, drawn, strict=True):
            yield Batch(self._inputs(images, epoch * len(self) + number), labels)
            if self._current is not current:  # a later call of `epoch` is using the source
                raise RuntimeError(
                    f"the iteration over epoch {epoch} was continued after another one had started; "
                    "iterate over one epoch at a time"
                )

    def _inputs(self, drawn: torch.Tensor, step: int) -> torch.Tensor:
        """The inputs of the network at the global `step`, from the images in `drawn`, uint8 `[B,H,W,3]`."""
        if self._sizes and len(drawn):
            drawn = resize(drawn, self.image_size(step))
        return self.preprocessing.normalize(drawn)

    def local_shards(self, number: int) -> list[Shard]:
        """The shards that this process computes for batch `number` (0-based) of an epoch."""
        images = self.size(number)
        mine = self.group.shard_range(self.shards) if self.shards > 1 else range(1)
        return [Shard(shard, images * shard // self.shards, images * (shard + 1) // self.shards) for shard in mine]

    def _positions(self, number: int) -> range:
        """This process's images in batch `number`, as positions in an epoch's order."""
        mine, start = self.local_shards(number), number * self.batch_size
        return range(start + mine[0].start, start + mine[-1].stop)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The order of the images in the batches of `epoch` (0-based), as indices into `images`, int64 `[N]`."""
        return self._order.of_epoch(epoch)

    def at_last_size(self) -> Self:
        """A copy of these batches that resizes all images to the last of `sizes`."""
        other = copy.copy(self)
        other._sizes = self._sizes[-1:]
        return other

    def without_last(self) -> Self:
        """A copy of these batches without the last batch of each epoch."""
        other = copy.copy(self)
        other._length -= 1
        return other

    def unsharded(self) -> Self:
        """A copy of these batches that is not split into shards: each process gets whole batches."""
        other = copy.copy(self)
        other.shards = 1
        return other

    def unaugmented(self, indices: NDArray[np.int64]) -> "Batches":
        """Batches of the images at `indices` `[M]`, in this order and not augmented."""
        return Batches(
            self.images.subset(indices),
            self.preprocessing,
            batch_size=self.batch_size,
            device=self._device,
            group=self.group,
        )

    def preview(self, count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The first `count` images of the first epoch, original and augmented: uint8 `[count,H,W,3]` each."""
        order = self._order.of_epoch(0)[:count]
        return self.images.images[order], self._source.first(len(order))
