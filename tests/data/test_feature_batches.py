from collections import Counter

import numpy as np
import torch
from numpy.typing import NDArray

from onecycle.data import ImageSet
from onecycle.data.augment.batched import BatchedAugmentation
from onecycle.data.augment.views import Views
from onecycle.data.feature_batches import FeatureBatches
from onecycle.data.preprocessing import Preprocessing

COUNT, VIEWS = 10, 3
PIXELS = np.random.default_rng(0).integers(256, size=(COUNT, 8, 8, 3), dtype=np.uint8)
IMAGES = ImageSet(PIXELS, np.arange(COUNT) % 2, ("a", "b"))


def numbered(images: NDArray[np.uint8], views: Views) -> torch.Tensor:
    """Features bfloat16 [N,V,2,1,1]: the number of the image in `PIXELS`, and the number of the view."""
    numbers = [int((image == PIXELS).all(axis=(1, 2, 3)).argmax()) for image in images]
    features = [[[number, view] for view in range(views.count)] for number in numbers]
    return torch.tensor(features, dtype=torch.bfloat16)[..., None, None]


def batches(*, seed: int = 0, shuffle: bool = True) -> FeatureBatches:
    views = Views(BatchedAugmentation(8, [0, 0, 0], padding=2, cutout=0), VIEWS)
    made = FeatureBatches(IMAGES, Preprocessing.of(PIXELS), views, batch_size=4, shuffle=shuffle, epochs=9, seed=seed)
    made.fill(numbered)
    return made


def epoch(of: FeatureBatches, number: int) -> list[tuple[int, int]]:
    """The image and the view of each row of an epoch. The labels are checked."""
    rows = []
    for features, labels in of.epoch(number):
        assert features.dtype == torch.float32 and features.shape[1:] == (2, 1, 1)
        assert labels.tolist() == [int(image) % 2 for image in features[:, 0, 0, 0]]
        rows += [(int(image), int(view)) for image, view in features.flatten(1)]
    return rows


def test_an_epoch_has_each_image_once_and_consecutive_epochs_show_all_views() -> None:
    made = batches()
    epochs = [epoch(made, number) for number in range(VIEWS)]
    assert all(sorted(image for image, _ in rows) == list(range(COUNT)) for rows in epochs)
    assert Counter(row for rows in epochs for row in rows) == Counter(
        (image, view) for image in range(COUNT) for view in range(VIEWS)
    )
    assert len({view for _, view in epochs[0]}) > 1, "images start with different views"


def test_the_draw_is_a_function_of_seed_and_epoch() -> None:
    assert epoch(batches(), 5) == epoch(batches(), 5) != epoch(batches(seed=1), 5)
    whole = epoch(batches(), 2)
    rest = [row for features, _ in batches().epoch(2, first=1) for row in features.flatten(1).tolist()]
    assert [tuple(map(int, row)) for row in rest] == whole[4:]


def test_without_shuffling_the_images_are_in_order_and_not_augmented() -> None:
    assert epoch(batches(shuffle=False), 3) == [(image, 0) for image in range(COUNT)]


def test_the_evaluation_set_and_a_sample_are_not_augmented() -> None:
    made = batches()
    sample = made.unaugmented(np.array([7, 2]))
    assert epoch(sample, 0) == [(7, 0), (2, 0)]
    other = made.of_evaluation(IMAGES.subset(np.array([3, 4, 5])))
    other.fill(numbered)
    assert epoch(other, 0) == [(3, 0), (4, 0), (5, 0)]


def test_the_preview_shows_the_views_of_the_first_epoch() -> None:
    made = batches()
    originals, shown = made.preview(5)
    for (image, view), original, augmented in zip(epoch(made, 0), originals, shown, strict=False):
        assert np.array_equal(original, PIXELS[image])
        assert np.array_equal(augmented, made.views.of(PIXELS[image])[view])


def test_a_head_can_be_trained_on_a_batch_of_a_single_image() -> None:
    assert batches().sizes_of_single_images() == set()
