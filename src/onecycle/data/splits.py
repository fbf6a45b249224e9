"""Cutting sets of images: stratified, and the same for the same seed."""

import numpy as np
from numpy.typing import NDArray

from onecycle.core.errors import InputError
from onecycle.data.readers.image_set import ImageSet
from onecycle.data.store.stored import cut


def stratified(labels: NDArray[np.int64], size: int, *, seed: int) -> NDArray[np.int64]:
    """Positions of `size` of the `labels` int64 `[N]`, ascending: as many of each class as its share of the whole.

    Shares are rounded by the largest remainders, so the classes of a balanced set differ by at most one.

    Raises:
        ValueError: unless 0 <= size <= N.
    """
    if not 0 <= size <= len(labels):
        raise ValueError(f"size is {size}; it must be from 0 to {len(labels)}")
    classes, counts = np.unique(labels, return_counts=True)
    # Whole numbers: remainders that are equal must compare equal.
    shares, remainders = np.divmod(counts * size, max(len(labels), 1))
    largest = np.argsort(-remainders, kind="stable")[: size - int(shares.sum())]
    shares[largest] += 1
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(np.flatnonzero(labels == c))[:share] for c, share in zip(classes, shares, strict=True)]
    return np.sort(np.concatenate([np.empty(0, np.int64), *chosen]))


def held_out(labels: NDArray[np.int64], share: float, *, seed: int) -> NDArray[np.int64]:
    """Positions of a `share` of the `labels` int64 `[N]`, ascending: of each class that share, but at least one."""
    rng = np.random.default_rng(seed)
    by_class = (rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels))
    return np.sort(np.concatenate([rows[: max(1, round(share * len(rows)))] for rows in by_class]))


def cut_validation(train: ImageSet, size: int, *, seed: int) -> tuple[ImageSet, ImageSet]:
    """`train` without a stratified `size` of its images, and those: (training set, validation set).

    Raises:
        InputError: unless both parts have room for every class.
    """
    smallest, largest = len(train.classes), len(train) - len(train.classes)
    if not smallest <= size <= largest:
        raise InputError(
            f"--validation is {size}; of {len(train):,} training images in {len(train.classes)} classes "
            f"it must be from {smallest} to {max(largest, smallest)}, or 0 for none"
        )
    chosen = stratified(train.labels, size, seed=seed)
    return cut(train, np.setdiff1d(np.arange(len(train)), chosen)), cut(train, chosen)


def cut_limit(images: ImageSet, size: int, *, seed: int) -> ImageSet:
    """A stratified `size` of `images`, or all where there are no more.

    Raises:
        InputError: `size` is smaller than the number of classes.
    """
    if size < len(images.classes):
        raise InputError(f"--limit is {size}; for {len(images.classes)} classes it must be at least that many")
    if size >= len(images):
        return images
    return cut(images, stratified(images.labels, size, seed=seed))
