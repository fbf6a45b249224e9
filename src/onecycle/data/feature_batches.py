"""Batches of features, which a frozen backbone computes from the views of images."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from onecycle.data import ImageSet
from onecycle.data.augment.views import Views
from onecycle.data.batch_sources import Order
from onecycle.data.batches import Batches
from onecycle.data.preprocessing import Preprocessing
from onecycle.distributed.process_group import SINGLE_PROCESS, ProcessGroup

# Last element of the random seed for the views of the first epoch. The seeds in `batch_sources` and `augment.batched`
# end with other values.
_VIEWS = 2**36


class FeatureBatches(Batches):
    """Batches with features of `images`, float32 `[B,channels,1,1]`, instead of the images.

    If `shuffle` is true, each epoch uses the next view of an image, and the seed chooses the view of the first epoch.
    If `shuffle` is false, all epochs use the first view, which is the image itself.

    Call `fill` before the first epoch.
    """

    def __init__(
        self,
        images: ImageSet,
        preprocessing: Preprocessing,
        views: Views,
        *,
        batch_size: int,
        shuffle: bool = False,
        epochs: int = 1,
        shards: int = 1,
        seed: int = 0,
        device: str = "cpu",
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        super().__init__(
            images,
            preprocessing,
            batch_size=batch_size,
            shuffle=shuffle,
            epochs=epochs,
            shards=shards,
            seed=seed,
            group=group,
        )
        self.views = views
        self._features = FeatureSource(images, self._order, views, seed=seed if shuffle else None, device=device)
        self._source = self._features

    def fill(self, compute: Callable[[NDArray[np.uint8], Views], torch.Tensor]) -> None:
        """Compute and store the features of all views of the images. `compute` returns them as `[N,V,channels,1,1]`."""
        self._features.features = compute(self.images.images, self.views).to(self._features.device)

    def sizes_of_single_images(self) -> set[int]:
        """Returns no sizes. The head has no batch norm, so it can be trained on single images."""
        return set()

    def of_evaluation(self, images: ImageSet) -> "FeatureBatches":
        """Batches of the features of `images`, which are neither shuffled nor augmented."""
        return FeatureBatches(
            images,
            self.preprocessing,
            self.views.first_only(),
            batch_size=self.batch_size,
            device=self._features.device,
            group=self.group,
        )

    def unaugmented(self, indices: NDArray[np.int64]) -> "FeatureBatches":
        """Batches of the first views of the images at `indices` `[M]`, in this order."""
        batches = self.of_evaluation(self.images.subset(indices))
        features = self._features.features
        batches._features.features = features[torch.from_numpy(indices).to(features.device), :1]
        return batches

    def _inputs(self, drawn: torch.Tensor, step: int) -> torch.Tensor:
        return drawn.float()


class FeatureSource:
    """A `BatchSource` of features `[B,channels,1,1]` instead of images."""

    def __init__(self, images: ImageSet, order: Order, views: Views, *, seed: int | None, device: str) -> None:
        self._images = images
        self._order = order
        self._views = views
        self._seed = seed
        self.device = device
        self.features = torch.empty(0)  # [N,V,channels,1,1], float32 or bfloat16

    def epoch(self, epoch: int, parts: Sequence[range]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = self._order.of_epoch(epoch)
        labels = torch.from_numpy(self._images.labels[order]).to(self.device)
        rows = torch.from_numpy(order).to(self.device)
        views = torch.from_numpy(self._views_of(epoch, order)).to(self.device)
        for part in parts:
            batch = slice(part.start, part.stop)
            yield self.features[rows[batch], views[batch]], labels[batch]

    def first(self, count: int) -> NDArray[np.uint8]:
        order = self._order.of_epoch(0)[:count]
        views = self._views_of(0, order)
        shown = [self._views.of(self._images.images[row])[view] for row, view in zip(order, views, strict=True)]
        return torch.stack(shown).numpy()

    def _views_of(self, epoch: int, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each image in `order` `[n]`, the number of the view that `epoch` uses."""
        if self._seed is None:
            return np.zeros(len(order), np.int64)
        starts = np.random.default_rng((self._seed, _VIEWS)).integers(self._views.count, size=len(self._images))
        turns: NDArray[np.int64] = (starts[order] + epoch) % self._views.count
        return turns
