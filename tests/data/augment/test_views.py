import numpy as np
import torch

from onecycle.data.augment.batched import BatchedAugmentation
from onecycle.data.augment.degradation import Degradation
from onecycle.data.augment.views import Views

AUGMENTATION = BatchedAugmentation(
    8, [100, 110, 120], padding=2, cutout=0, flip="alternating", brightness=0.1, contrast=0.2
)
IMAGES = np.random.default_rng(0).integers(256, size=(3, 8, 8, 3), dtype=np.uint8)


def test_the_first_view_is_the_image_and_the_others_are_different_copies() -> None:
    views = Views(AUGMENTATION, 4).of(IMAGES[0])
    assert views.dtype == torch.uint8 and views.shape == (4, 8, 8, 3)
    assert np.array_equal(views[0], IMAGES[0])
    assert len({view.numpy().tobytes() for view in views}) == 4
    assert torch.equal(Views(AUGMENTATION, 4).first_only().of(IMAGES[0]), views[:1])


def test_the_views_depend_on_the_image_alone() -> None:
    views = Views(AUGMENTATION, 4)
    again = [views.of(image) for image in IMAGES[::-1]][::-1]  # in another order
    assert all(torch.equal(views.of(image.copy()), later) for image, later in zip(IMAGES, again, strict=True))
    other = IMAGES[0].copy()
    other[0, 0, 0] ^= 1
    assert not torch.equal(views.of(other)[1], views.of(IMAGES[0])[1])


def test_the_copies_are_degraded_and_the_first_view_is_not() -> None:
    unmoved = BatchedAugmentation(8, [0, 0, 0], padding=0, cutout=0, flip="alternating")
    views, plain = (Views(unmoved, 40, degrade).of(IMAGES[0]) for degrade in (Degradation(1), None))
    assert torch.equal(views[0], plain[0])
    assert (views[1:] != plain[1:]).flatten(1).any(dim=1).all()
    assert torch.equal(Views(unmoved, 40, Degradation(1)).of(IMAGES[0]), views)


def test_a_read_only_image_is_not_changed() -> None:
    image = IMAGES[0].copy()
    image.flags.writeable = False
    Views(AUGMENTATION, 2).of(image)
    assert np.array_equal(image, IMAGES[0])


def test_the_values_that_views_depend_on_tell_augmentations_apart() -> None:
    assert Views(AUGMENTATION, 4).to_json() != Views(AUGMENTATION, 3).to_json()
    assert Views(AUGMENTATION, 4).to_json() != Views(BatchedAugmentation(8, [100, 110, 120]), 4).to_json()
    assert Views(AUGMENTATION, 4).to_json() != Views(AUGMENTATION, 4, Degradation(0.5)).to_json()
