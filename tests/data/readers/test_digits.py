import numpy as np
from sklearn import datasets

from onecycle.data.readers import digits
from onecycle.data.readers.digits import load_digits


def test_the_digits_are_those_of_scikit_learn() -> None:
    expected = datasets.load_digits()
    with np.load(digits._FILE) as file:
        assert np.array_equal(file["images"], expected.images)
        assert np.array_equal(file["labels"], expected.target)


def test_the_digits_are_the_same_everywhere() -> None:
    train, test = load_digits().by_split.values()
    # Integer arithmetic gives the same pixels on every machine.
    assert train.fingerprint == "0f7f8d03314631f5e21abc7b9a0d12fb3d170fae381c0c319a06e686364e21f4"
    assert test.fingerprint == "71a3f85d7f20957b12ff310e4a68b62de87cb6ad3e1b2bd7fc4c2659017268eb"


def test_the_digits_have_the_image_format_of_cifar10() -> None:
    for images in load_digits().by_split.values():
        assert images.images.shape[1:] == (32, 32, 3)
        assert images.classes == tuple("0123456789")
        assert images.images.min() == 0
        assert images.images.max() > 240


def test_the_split_is_stratified_and_keeps_every_digit() -> None:
    train, test = load_digits().by_split.values()
    assert len(train) + len(test) == 1797
    share = np.bincount(test.labels) / (np.bincount(train.labels) + np.bincount(test.labels))
    assert (np.abs(share - 0.2) < 0.01).all()
    pixels = {image.tobytes() for image in train.images}
    assert not any(image.tobytes() in pixels for image in test.images)


def test_enlarging_keeps_the_mean_of_the_pixels() -> None:
    train, test = load_digits().by_split.values()
    small = datasets.load_digits().images * 255 / 16
    enlarged = np.concatenate([train.images, test.images])[..., 0].mean()
    assert abs(enlarged - small.mean()) < 1
