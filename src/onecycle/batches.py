"""From an `ImageSet` to batches: order, augmentation, workers. Randomness is a function of (seed, epoch, position)."""

from collections.abc import Callable, Iterator, Sequence

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


class Batches:
    """The batches of `images`, epoch by epoch: shuffled and augmented for training, in order and as they are otherwise.

    `augment` is called with an image uint8 `[H,W,3]` and the key (seed, epoch, position). The last, shorter batch
    counts. Batches are the same with any number of `workers`.
    """

    def __init__(
        self,
        images: ImageSet,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        shuffle: bool = False,
        augment: Augment | None = None,
        seed: int = 0,
        workers: int = 0,
        device: str = "cpu",
    ) -> None:
        self.images = images
        self.preprocessing = preprocessing
        self.batch_size = batch_size
        self.device = device
        self._pixels = _Pixels(images, batch_size=batch_size, shuffle=shuffle, augment=augment, seed=seed)
        self._sampler = _EpochSampler(len(self))
        self._loader = DataLoader(
            self._pixels,
            batch_size=None,  # an item is a whole batch already
            sampler=self._sampler,
            num_workers=workers,
            # Workers that live on hold what memory the process had before its first step. Started anew for every
            # epoch, each would keep a copy of all that the network has filled since.
            persistent_workers=workers > 0,
            # Without one of its own the loader draws from the global generator, which belongs to the model.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.images) // self.batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of `epoch` (0-based): float `[B,3,H,W]`, normalized and channels-last, and labels int64 `[B]`.

        One epoch is drawn at a time.

        Raises:
            RuntimeError: when it is continued after another was begun.
        """
        drawn = self._sampler.begin(epoch)
        for images, labels in self._loader:  # uint8 [B,H,W,3], int64 [B]
            if self._sampler.drawn is not drawn:
                raise RuntimeError(f"epoch {epoch} was continued after another was begun; draw one at a time")
            normalized = self.preprocessing.normalize(images.to(self.device))
            yield Batch(normalized, labels.to(self.device))

    def preview(self, count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The first `count` images of the first epoch as they are, and as trained on: uint8 `[count,H,W,3]` each."""
        order = self._pixels.order(0)[:count]
        return self.images.images[order], self._pixels.augmented(0, range(len(order)))


class _EpochSampler(Sampler[tuple[int, int]]):
    """The (epoch, number) of every batch of the epoch that was begun last."""

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.drawn: list[tuple[int, int]] = []

    def begin(self, epoch: int) -> list[tuple[int, int]]:
        self.drawn = [(epoch, number) for number in range(self.batches)]
        return self.drawn

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.drawn)


class _Pixels(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Whole batches by (epoch, number), before normalization; what the workers run."""

    def __init__(self, images: ImageSet, *, batch_size: int, shuffle: bool, augment: Augment | None, seed: int) -> None:
        self.images = images
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.augment = augment
        self.seed = seed

    def __getitem__(self, place: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        epoch, number = place
        start = number * self.batch_size
        positions = range(start, min(start + self.batch_size, len(self.images)))
        labels = self.images.labels[self.order(epoch)[positions]]
        return torch.from_numpy(self.augmented(epoch, positions)), torch.from_numpy(labels)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The images' indices `[N]` by position in `epoch`."""
        order = np.arange(len(self.images))
        if self.shuffle:
            np.random.default_rng((self.seed, epoch, _ORDER)).shuffle(order)
        return order

    def augmented(self, epoch: int, positions: range) -> NDArray[np.uint8]:
        """The images at `positions` of `epoch`, uint8 `[len(positions),H,W,3]`."""
        images = self.images.images[self.order(epoch)[positions]]
        if self.augment is None:
            return images
        keys = ((self.seed, epoch, position) for position in positions)
        return np.stack([self.augment(image, key) for image, key in zip(images, keys, strict=True)])
