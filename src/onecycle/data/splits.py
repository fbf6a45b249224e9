"""Stratified splits of image sets, reproducible by seed."""

import numpy as np
from numpy.typing import NDArray

from onecycle.core.errors import InputError
from onecycle.data.readers.image_set import ImageSet
from onecycle.data.store.mapped import subset_of

DRAWN_SHARE = 0.2  # if a data set has only training images, this fraction of each class becomes the test set
_DRAWN_SEED = 0


def stratified(labels: NDArray[np.int64], size: int, *, seed: int, keep: int = 0, leave: int = 0) -> NDArray[np.int64]:
    """Choose `size` of the `labels`, int64 `[N]`, with the class proportions of all labels. Returns sorted indices.

    The number chosen from each class is rounded by largest remainder. If all classes in `labels` have the same size,
    these numbers differ by at most one. In each class, at least `keep` labels are chosen, and at least `leave` labels
    are not chosen. These two limits take priority over the proportions.

    Raises:
        ValueError: when `size` is not from 0 to N, or `keep` and `leave` cannot both be met.
    """
    if not 0 <= size <= len(labels):
        raise ValueError(f"size is {size}; it must be from 0 to {len(labels)}")
    classes, counts = np.unique(labels, return_counts=True)
    most = counts - leave
    if (most < keep).any() or not keep * len(classes) <= size <= most.sum():
        raise ValueError(
            f"cannot choose {size} of {len(labels)} labels; each class needs {keep} or more chosen labels and {leave} "
            "or more others"
        )
    # With integer arithmetic, equal shares compare equal.
    shares = np.clip(counts * size // max(len(labels), 1), keep, most)
    while missing := size - int(shares.sum()):
        lacks = counts * size - shares * len(labels)  # the number of images that each class lacks, times N
        if missing > 0:
            shares[np.where(shares < most, lacks, lacks.min() - 1).argmax()] += 1
        else:
            shares[np.where(shares > keep, lacks, lacks.max() + 1).argmin()] -= 1
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(np.flatnonzero(labels == c))[:share] for c, share in zip(classes, shares, strict=True)]
    return np.sort(np.concatenate([np.empty(0, np.int64), *chosen]))


def held_out(labels: NDArray[np.int64], share: float, *, seed: int) -> NDArray[np.int64]:
    """Choose the fraction `share` of each class in `labels`, int64 `[N]`, but at least one label of each class.

    Returns sorted indices.
    """
    rng = np.random.default_rng(seed)
    by_class = (rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels))
    return np.sort(np.concatenate([rows[: max(1, round(share * len(rows)))] for rows in by_class]))


def drawn_for_test(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose the test images if there are only training images: a fifth of each class in `labels`, int64 `[N]`."""
    return held_out(labels, DRAWN_SHARE, seed=_DRAWN_SEED)


def split_test(train: ImageSet) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
    """Split `train`, the images of a data set without a test set, into a training set and a test set.

    Also returns the names of the test images, or their numbers (from 0) in `train` if they have no names.

    Raises:
        InputError: when a class has only one image.
        StorageError: when the cache cannot be written.
    """
    counts = np.bincount(train.labels, minlength=len(train.classes))
    if 1 in counts:
        name = train.classes[int(np.argmax(counts == 1))]
        raise InputError(f"class {name!r} has only one image, but training and testing need one each; add more")
    drawn = drawn_for_test(train.labels)
    numbers = (f"image {number}" for number in drawn.tolist())
    names = tuple(numbers if train.names is None else train.names.subset(drawn))
    return subset_of(train, np.setdiff1d(np.arange(len(train)), drawn)), subset_of(train, drawn), names


def split_validation(train: ImageSet, size: int, *, seed: int) -> tuple[ImageSet, ImageSet]:
    """Split `train` into a training set and a stratified validation set of `size` images.

    Both get at least one image of each class that has images.

    Raises:
        InputError: when `size` or the number of images of a class does not allow that.
        StorageError: when the cache cannot be written.
    """
    smallest, largest = len(train.classes), len(train) - len(train.classes)
    if not smallest <= size <= largest:
        raise InputError(
            f"--validation is {size}; with {len(train):,} training images in {len(train.classes)} classes "
            f"it must be from {smallest} to {max(largest, smallest)}, or 0 for none"
        )
    counts = np.bincount(train.labels, minlength=len(train.classes))
    if 1 in counts:
        single = ", ".join(name for name, count in zip(train.classes, counts, strict=True) if count == 1)
        raise InputError(
            f"--validation needs two images of each class, but there is only one of {single}; add images, or leave out "
            "--validation"
        )
    chosen = stratified(train.labels, size, seed=seed, keep=1, leave=1)
    return subset_of(train, np.setdiff1d(np.arange(len(train)), chosen)), subset_of(train, chosen)


def limit_images(images: ImageSet, size: int, *, seed: int) -> ImageSet:
    """Choose a stratified subset of `size` images, with at least one image of each class.

    Returns all images if there are at most `size`.

    Raises:
        InputError: when `size` is smaller than the number of classes.
        StorageError: when the cache cannot be written.
    """
    if size < len(images.classes):
        raise InputError(f"--limit is {size}; it must be at least {len(images.classes)}, the number of classes")
    if size >= len(images):
        return images
    return subset_of(images, stratified(images.labels, size, seed=seed, keep=1))
