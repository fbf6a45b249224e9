"""Stratified splits of image sets, reproducible by seed."""

import numpy as np
from numpy.typing import NDArray

from onecycle.core.errors import InputError
from onecycle.data.readers.image_set import ImageSet
from onecycle.data.store.mapped import subset_of


def stratified(labels: NDArray[np.int64], size: int, *, seed: int) -> NDArray[np.int64]:
    """Choose `size` of the `labels`, int64 `[N]`, with the class proportions of all labels. Returns sorted indices.

    Shares are rounded by largest remainder, so class counts of a balanced set differ by at most one.

    Raises:
        ValueError: unless 0 <= size <= N.
    """
    if not 0 <= size <= len(labels):
        raise ValueError(f"size is {size}; it must be from 0 to {len(labels)}")
    classes, counts = np.unique(labels, return_counts=True)
    # With integer arithmetic, equal remainders compare equal.
    shares, remainders = np.divmod(counts * size, max(len(labels), 1))
    largest = np.argsort(-remainders, kind="stable")[: size - int(shares.sum())]
    shares[largest] += 1
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(np.flatnonzero(labels == c))[:share] for c, share in zip(classes, shares, strict=True)]
    return np.sort(np.concatenate([np.empty(0, np.int64), *chosen]))


def held_out(labels: NDArray[np.int64], share: float, *, seed: int) -> NDArray[np.int64]:
    """Choose the fraction `share` of each class in `labels`, int64 `[N]`, but at least one. Returns sorted indices."""
    rng = np.random.default_rng(seed)
    by_class = (rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels))
    return np.sort(np.concatenate([rows[: max(1, round(share * len(rows)))] for rows in by_class]))


def split_validation(train: ImageSet, size: int, *, seed: int) -> tuple[ImageSet, ImageSet]:
    """Split `train` into a training set and a stratified validation set of `size` images.

    Raises:
        InputError: when either set would have fewer images than there are classes.
        StorageError: when the cache cannot be written.
    """
    smallest, largest = len(train.classes), len(train) - len(train.classes)
    if not smallest <= size <= largest:
        raise InputError(
            f"--validation is {size}; with {len(train):,} training images in {len(train.classes)} classes "
            f"it must be from {smallest} to {max(largest, smallest)}, or 0 for none"
        )
    chosen = stratified(train.labels, size, seed=seed)
    return subset_of(train, np.setdiff1d(np.arange(len(train)), chosen)), subset_of(train, chosen)


def limit_images(images: ImageSet, size: int, *, seed: int) -> ImageSet:
    """A stratified subset of `size` images, or all images if there are at most `size`.

    Raises:
        InputError: when `size` is smaller than the number of classes.
        StorageError: when the cache cannot be written.
    """
    if size < len(images.classes):
        raise InputError(f"--limit is {size}; it must be at least {len(images.classes)}, the number of classes")
    if size >= len(images):
        return images
    return subset_of(images, stratified(images.labels, size, seed=seed))
