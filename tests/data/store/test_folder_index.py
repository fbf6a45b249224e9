"""One's own pictures as they come: with or without a test set, one folder a class."""

import shutil
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onecycle.core.errors import InputError
from onecycle.data import load_dataset
from onecycle.data.check import check
from onecycle.data.preprocessing import to_square
from onecycle.data.readers.image_folder import read_image_folder
from onecycle.data.store.folder_index import DRAWN_SHARE

COUNTS = {"ant": 20, "bee": 10, "cät": 3}


def write_pictures(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """`counts` pictures of each class, of different sizes, in `folder/<class>/`."""
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (20 + number, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02}.png")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "photos", COUNTS)


def test_of_class_folders_alone_a_fifth_of_each_class_is_drawn_for_testing(photos: Path) -> None:
    train, test, drawn = read_image_folder(photos, 32)
    assert train.classes == test.classes == tuple(COUNTS)
    assert np.bincount(test.labels).tolist() == [4, 2, 1] == [round(DRAWN_SHARE * n) for n in COUNTS.values()]
    assert np.bincount(train.labels).tolist() == [16, 8, 2]
    assert drawn is not None
    assert Counter(name.split("/")[0] for name in drawn) == {"ant": 4, "bee": 2, "cät": 1}


def test_the_names_are_those_of_the_test_images(photos: Path) -> None:
    _, test, drawn = read_image_folder(photos, 32)
    assert drawn is not None
    for name, pixels in zip(drawn, test.images, strict=True):
        assert (to_square(Image.open(photos / name), 32) == pixels).all()
        (photos / name).unlink()
    left, more, _ = read_image_folder(photos, 32)
    pixels = {image.tobytes() for image in (*left.images, *more.images)}
    assert not pixels & {image.tobytes() for image in test.images}


@pytest.mark.parametrize("form", ["in train", "a folder around", "an archive"])
def test_the_same_images_are_drawn_however_they_come(photos: Path, tmp_path: Path, form: str) -> None:
    first = read_image_folder(photos, 32)
    if form == "in train":
        source = tmp_path / "other"
        shutil.copytree(photos, source / "train")
    elif form == "a folder around":
        source = tmp_path / "around"
        shutil.copytree(photos, source / "photos")
    else:
        source = tmp_path / "photos.tar.gz"
        with tarfile.open(source, "w:gz") as archive:
            archive.add(photos, "photos")
    second = load_dataset(source)
    assert [first.train.fingerprint, first.test.fingerprint] == [
        second.train.fingerprint,
        second.evaluation.fingerprint,
    ]
    assert second.drawn and [name[-9:] for name in second.drawn] == [name[-9:] for name in first.drawn or ()]
    (note,) = second.notes
    assert "no test set: 20% of each class, 7 images, were drawn" in note


def test_a_set_that_was_cached_is_known_to_be_drawn(photos: Path) -> None:
    assert load_dataset(photos).drawn == load_dataset(photos).drawn is not None


def test_with_a_test_set_none_is_drawn(image_folder: Path) -> None:
    dataset = load_dataset(image_folder)
    assert dataset.drawn is None and dataset.notes == ()


def test_pictures_are_cropped_to_the_size_that_is_asked_for(photos: Path) -> None:
    assert load_dataset(photos, input_size=48).train.images.shape == (26, 48, 48, 3)


def test_check_looks_through_class_folders_too(photos: Path) -> None:
    found = check(photos)
    assert found.counts == {"train": (16, 8, 2), "test": (4, 2, 1)}
    assert found.dangers() == []


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"ant": 3, "bee": 1}, "class 'bee' has one image, and one is needed for testing; add some"),
        ({"ant": 3, "bee": 0}, "class folder bee has no images; add some or remove it"),
        ({"ant": 3}, "there is one class only, 'ant'"),
    ],
)
def test_too_few_images_or_classes_are_told(tmp_path: Path, counts: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_dataset(write_pictures(tmp_path / "few", counts))


@pytest.mark.parametrize("name", ["val", "Test", "testing", "Validation", "plane"])
def test_pictures_beside_train_are_not_passed_over(tmp_path: Path, name: str) -> None:
    for split in ("train", name):
        write_pictures(tmp_path / "photos" / split, COUNTS)
    with pytest.raises(InputError, match=f"there is no test/, and {name}/ with pictures beside train/; name it test/"):
        load_dataset(tmp_path / "photos")


@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "testing"), ("TRAINING", "validation")])
def test_sets_that_are_called_otherwise_are_not_taken_for_classes(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        write_pictures(tmp_path / "photos" / name, COUNTS)
    with pytest.raises(InputError, match="looks like a set, not like a class; name the sets train/ and test/"):
        load_dataset(tmp_path / "photos")


def test_a_set_of_another_name_is_seen_in_an_archive_without_folders(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_pictures(tmp_path / "photos" / split, COUNTS)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in (tmp_path / "photos").rglob("*.png"):
            archive.write(path, path.relative_to(tmp_path / "photos"))
    with pytest.raises(InputError, match="there is no test/, and val/ with pictures beside train/"):
        load_dataset(tmp_path / "photos.zip")


def test_a_class_with_a_folder_called_train_in_it_does_not_hide_the_others(photos: Path) -> None:
    for name in ("steam", "electric"):
        write_pictures(photos / "rail" / "train", {name: 5})
    with pytest.raises(InputError, match="rail/ has sets in it .*, and there are pictures beside it"):
        load_dataset(photos)


def test_ones_own_folder_with_the_name_of_a_known_set_is_not_taken_for_it(tmp_path: Path) -> None:
    assert load_dataset(write_pictures(tmp_path / "digits", COUNTS)).name == "digits-images"
