"""From an `ImageSet` to batches: order, augmentation, workers. Randomness is a function of (seed, epoch, position)."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

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
        self.shuffle = shuffle
        self.augment = augment
        self.seed = seed
        self.workers = workers
        self.device = device

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.images) // self.batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of `epoch` (0-based): float `[B,3,H,W]`, normalized and channels-last, and labels int64 `[B]`."""
        loader = DataLoader(
            _AugmentedEpoch(self, epoch),
            batch_size=None,  # an item is a whole batch already
            num_workers=self.workers,
            # Without one of its own the loader draws from the global generator, which belongs to the model.
            generator=torch.Generator(),
        )
        for images, labels in loader:  # uint8 [B,H,W,3], int64 [B]
            normalized = self.preprocessing.normalize(images.to(self.device))
            yield Batch(normalized, labels.to(self.device))

    def preview(self, count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The first `count` images of the first epoch as they are, and as trained on: uint8 `[count,H,W,3]` each."""
        first = _AugmentedEpoch(self, 0)
        return self.images.images[first.order[:count]], first.pixels(range(min(count, len(first.order))))


class _AugmentedEpoch(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """One epoch's batches by number, as pixels; what the workers run."""

    def __init__(self, batches: Batches, epoch: int) -> None:
        self.batches = batches
        self.epoch = epoch
        count = len(batches.images)
        self.order = np.arange(count)
        if batches.shuffle:
            np.random.default_rng((batches.seed, epoch, _ORDER)).shuffle(self.order)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        start = number * self.batches.batch_size
        positions = range(start, min(start + self.batches.batch_size, len(self.order)))
        labels = self.batches.images.labels[self.order[positions]]
        return torch.from_numpy(self.pixels(positions)), torch.from_numpy(labels)

    def pixels(self, positions: range) -> NDArray[np.uint8]:
        """The images at `positions` of the epoch's order, augmented: uint8 `[len(positions),H,W,3]`."""
        images, augment = self.batches.images.images[self.order[positions]], self.batches.augment
        if augment is None:
            return images
        keys = ((self.batches.seed, self.epoch, position) for position in positions)
        return np.stack([augment(image, key) for image, key in zip(images, keys, strict=True)])
