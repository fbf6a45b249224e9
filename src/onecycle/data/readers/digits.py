"""The embedded handwritten digits, a data set that needs no download."""

from pathlib import Path

import numpy as np

from onecycle.data.readers.image_set import ImageSet
from onecycle.data.readers.sets import Sets

_FILE = Path(__file__).with_suffix(".npz")
_TEST_EVERY = 5  # every fifth image of each class is a test image


def load_digits() -> Sets:
    """Handwritten digits as 32×32 RGB: 1,442 training and 355 test images, the same everywhere.

    The package contains the 8×8 images of scikit-learn. They are resized with integer arithmetic and split by a fixed
    rule, so the result does not depend on library versions.
    Source: Alpaydin & Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
    license CC BY 4.0.
    """
    with np.load(_FILE, allow_pickle=False) as file:
        small, labels = file["images"].astype(np.int64), file["labels"].astype(np.int64)  # [N,8,8], ink from 0 to 16
    # Bilinear resizing: output pixel i has its center at (i + 0.5) / 4 - 0.5 in the input. `at` is this position in
    # eighths of a pixel.
    at = np.clip(2 * np.arange(32) - 3, 0, 56)
    left, eighths = np.divmod(at, 8)
    weights = np.zeros((32, 9), np.int64)
    weights[np.arange(32), left] = 8 - eighths
    weights[np.arange(32), left + 1] += eighths
    weights = weights[:, :8]
    large = weights @ small @ weights.T  # [N,32,32], from 0 to 16 * 64
    gray = ((large * 255 + 512) // 1024).astype(np.uint8)
    images = np.repeat(gray[..., None], 3, axis=3)  # [N,32,32] -> [N,32,32,3]
    classes = tuple("0123456789")
    whole = ImageSet(images, labels, classes)
    is_test = np.zeros(len(whole), bool)
    for label in range(len(classes)):
        is_test[np.flatnonzero(labels == label)[_TEST_EVERY - 1 :: _TEST_EVERY]] = True
    return Sets(
        name="digits",
        source="scikit-learn's handwritten digits, embedded",
        train=whole.subset(np.flatnonzero(~is_test)),
        test=whole.subset(np.flatnonzero(is_test)),
    )
