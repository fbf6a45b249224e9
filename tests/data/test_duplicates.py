import numpy as np
import pytest
from PIL import Image, ImageEnhance

from onecycle.data import duplicates, load_dataset
from onecycle.data.duplicates import most_alike


@pytest.fixture(scope="module")
def photographs(real_data) -> np.ndarray:  # type: ignore[no-untyped-def]
    return load_dataset(real_data / "cifar-10-binary-sample.tar.gz").train.images


def altered(image: np.ndarray, how: str) -> np.ndarray:
    picture = Image.fromarray(image)
    if how == "mirrored":
        return image[:, ::-1]
    if how == "brighter":
        return np.asarray(ImageEnhance.Brightness(picture).enhance(1.3))
    if how == "scaled":
        return np.asarray(picture.crop((1, 1, 31, 31)).resize((32, 32)))
    return image


@pytest.mark.parametrize("how", ["as it is", "mirrored", "brighter", "scaled"])
def test_what_was_taken_from_one_photograph_finds_its_partner(photographs: np.ndarray, how: str) -> None:
    ours = np.stack([altered(image, how) for image in photographs[:50]])
    partners, similarities = most_alike(ours, photographs)
    assert (partners == np.arange(50)).mean() >= 0.96
    assert np.median(similarities) > 0.97
    assert (similarities <= 1 + 1e-5).all()


def test_the_same_image_is_as_alike_as_can_be(photographs: np.ndarray) -> None:
    _, similarities = most_alike(photographs[:20], photographs)
    assert similarities == pytest.approx(np.ones(20), abs=1e-5)


def test_a_partner_is_found_in_whatever_portion_it_comes(
    photographs: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = most_alike(photographs[:40], photographs)
    monkeypatch.setattr(duplicates, "_THEIRS", 7)
    partners, similarities = most_alike(photographs[:40], photographs)
    assert (partners == whole[0]).all()
    assert similarities == pytest.approx(whole[1], abs=1e-6)


def test_images_of_one_colour_are_like_nothing() -> None:
    grey = np.full((2, 32, 32, 3), 128, np.uint8)
    partners, similarities = most_alike(grey, grey)
    assert similarities.tolist() == [0, 0] and partners.shape == (2,)


def test_there_must_be_something_to_be_alike_to() -> None:
    images = np.zeros((1, 32, 32, 3), np.uint8)
    assert [len(found) for found in most_alike(images[:0], images)] == [0, 0]
    with pytest.raises(ValueError, match="no images to compare with"):
        most_alike(images, images[:0])
