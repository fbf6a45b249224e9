import numpy as np
import pytest
from PIL import Image, ImageEnhance

from onecycle.data import duplicates, load_dataset
from onecycle.data.duplicates import most_similar


@pytest.fixture(scope="module")
def photographs(real_data) -> np.ndarray:  # type: ignore[no-untyped-def]
    return load_dataset(real_data / "cifar-10-binary-sample.tar.gz").train.images


def altered(image: np.ndarray, change: str) -> np.ndarray:
    photograph = Image.fromarray(image)
    if change == "mirrored":
        return image[:, ::-1]
    if change == "brighter":
        return np.asarray(ImageEnhance.Brightness(photograph).enhance(1.3))
    if change == "scaled":
        return np.asarray(photograph.crop((1, 1, 31, 31)).resize((32, 32)))
    return image


@pytest.mark.parametrize("change", ["unchanged", "mirrored", "brighter", "scaled"])
def test_an_altered_copy_finds_its_original(photographs: np.ndarray, change: str) -> None:
    ours = np.stack([altered(image, change) for image in photographs[:50]])
    partners, similarities = most_similar(ours, photographs)
    assert (partners == np.arange(50)).mean() >= 0.96
    assert np.median(similarities) > 0.97
    assert (similarities <= 1 + 1e-5).all()


def test_the_same_image_has_similarity_1(photographs: np.ndarray) -> None:
    _, similarities = most_similar(photographs[:20], photographs)
    assert similarities == pytest.approx(np.ones(20), abs=1e-5)


def test_comparing_in_parts_finds_the_same_partners(photographs: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = most_similar(photographs[:40], photographs)
    monkeypatch.setattr(duplicates, "_THEIRS", 7)
    partners, similarities = most_similar(photographs[:40], photographs)
    assert (partners == whole[0]).all()
    assert similarities == pytest.approx(whole[1], abs=1e-6)


def test_images_of_one_color_have_similarity_0() -> None:
    gray = np.full((2, 32, 32, 3), 128, np.uint8)
    partners, similarities = most_similar(gray, gray)
    assert similarities.tolist() == [0, 0] and partners.shape == (2,)


def test_an_empty_other_set_is_refused() -> None:
    images = np.zeros((1, 32, 32, 3), np.uint8)
    assert [len(found) for found in most_similar(images[:0], images)] == [0, 0]
    with pytest.raises(ValueError, match="no images to compare with"):
        most_similar(images, images[:0])
