import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onecycle.core.errors import InputError
from onecycle.data import ImageSet, load_dataset
from onecycle.data.store.cache import cache_folder

GRAY = "All training images are gray, so the network converts every image to gray"


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_digits_need_no_download(nowhere: None) -> None:
    digits = load_dataset("digits")
    assert (digits.name, digits.evaluated_on, digits.notes) == ("digits", "test", (GRAY,))
    assert (len(digits.train), len(digits.evaluation)) == (1442, 355)


def test_an_archive_without_the_official_checksum_is_used_and_noted_as_unverified(binary_archive: Path) -> None:
    dataset = load_dataset(str(binary_archive))
    sha256 = hashlib.sha256(binary_archive.read_bytes()).hexdigest()
    assert dataset.name == "cifar10"
    assert dataset.source == f"CIFAR-10, binary version, from {binary_archive}"
    assert dataset.notes[0] == (
        f"Unverified: {binary_archive.name} does not have the checksum of an official CIFAR-10 archive "
        f"(its sha256: {sha256})"
    )
    assert dataset.notes[1] == "Not all of CIFAR-10: 50 training and 20 test images, not 50,000 and 10,000"


def test_an_unpacked_folder_is_noted_as_unverified(python_folder: Path) -> None:
    note = load_dataset(python_folder).notes[0]
    assert note.startswith(f"Unverified: {python_folder.name} is unpacked, so it has no official checksum")
    assert str(python_folder.parent) not in note


@pytest.mark.parametrize("data", [None, "cifar10", "auto"])
def test_cifar10_is_found_in_the_folder_of_the_variable(
    data: str | None, binary_archive: Path, monkeypatch: pytest.MonkeyPatch, tiny: tuple[ImageSet, ImageSet]
) -> None:
    monkeypatch.setenv("ONECYCLE_DATA", str(binary_archive.parent))
    assert load_dataset(data).train.fingerprint == tiny[0].fingerprint


@pytest.mark.parametrize("data", [None, "cifar10"])
def test_without_data_and_network_the_message_names_the_alternatives(nowhere: None, data: str | None) -> None:
    with pytest.raises(InputError) as caught:
        load_dataset(data)
    message = str(caught.value)
    assert message.startswith(
        "CIFAR-10 was not found, and https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz could"
    )
    download = "Download https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    for alternative in (f"{download} and give its path with --data or $ONECYCLE_DATA", "--data digits"):
        assert alternative in message
    assert "\n" not in message
    assert not any(path.is_file() for path in cache_folder().rglob("*"))


def test_auto_falls_back_to_digits_and_says_so_first(nowhere: None) -> None:
    dataset = load_dataset("auto")
    assert dataset.name == "digits"
    assert dataset.notes[0].startswith("THIS IS NOT CIFAR-10")
    assert "could not be downloaded" in dataset.notes[0]


def test_auto_does_not_hide_a_wrong_variable_or_a_truncated_archive(
    nowhere: None, binary_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("data").mkdir()
    (Path("data") / binary_archive.name).write_bytes(binary_archive.read_bytes()[:-2000])
    with pytest.raises(InputError, match="cannot be read to its end"):
        load_dataset("auto")
    monkeypatch.setenv("ONECYCLE_DATA", str(tmp_path / "missing"))
    with pytest.raises(InputError, match=r"\$ONECYCLE_DATA"):
        load_dataset("auto")


def test_a_path_is_taken_before_the_variable(binary_archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONECYCLE_DATA", "/missing")
    assert load_dataset(binary_archive).name == "cifar10"


def test_an_image_folder_gives_the_data_set_a_safe_name(image_folder: Path, tmp_path: Path) -> None:
    assert load_dataset(image_folder).name == "handwritten"
    shutil.copytree(image_folder, tmp_path / "my digits: (1)")
    dataset = load_dataset(tmp_path / "my digits: (1)")
    assert dataset.name == "my-digits-1"
    assert dataset.source == f"image folder {tmp_path / 'my digits: (1)'} with train/ and test/"
    assert dataset.notes == (GRAY,)


def test_validation_images_come_from_the_training_set_and_replace_the_test_set() -> None:
    whole, split = load_dataset("digits"), load_dataset("digits", validation=200)
    assert split.evaluated_on == "validation"
    assert (len(split.train), len(split.evaluation)) == (1242, 200)
    training = sorted(image.tobytes() for image in whole.train.images)
    both = np.concatenate([split.train.images, split.evaluation.images])
    assert sorted(image.tobytes() for image in both) == training


def test_the_limit_applies_to_both_sets_after_the_validation_split() -> None:
    split, limited = load_dataset("digits", validation=200), load_dataset("digits", validation=200, limit=100)
    assert (len(limited.train), len(limited.evaluation)) == (100, 100)
    for before, after in [(split.train, limited.train), (split.evaluation, limited.evaluation)]:
        assert {image.tobytes() for image in after.images} <= {image.tobytes() for image in before.images}


def test_the_fingerprint_changes_with_seed_limit_and_validation() -> None:
    fingerprints = [load_dataset("digits", limit=100, seed=seed).fingerprint for seed in (0, 0, 1)]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    assert load_dataset("digits").fingerprint != load_dataset("digits", validation=100).fingerprint


def test_a_limit_above_the_size_of_the_test_set_limits_only_the_training_set() -> None:
    whole, limited = load_dataset("digits"), load_dataset("digits", limit=400)
    assert (len(limited.train), limited.evaluation.fingerprint) == (400, whole.evaluation.fingerprint)
    split = load_dataset("digits", validation=100, limit=150)
    assert (len(split.train), len(split.evaluation)) == (150, 100)
    assert load_dataset("digits", limit=10**6).fingerprint == whole.fingerprint


def test_a_limit_or_validation_size_that_does_not_fit_the_data_is_refused() -> None:
    with pytest.raises(InputError, match="^--limit is 9; it must be at least 10, the number of classes$"):
        load_dataset("digits", limit=9)
    with pytest.raises(InputError, match="^--validation is 2000; with 1,442 training images in 10 classes it must be"):
        load_dataset("digits", validation=2000)


def test_every_kind_of_data_has_the_input_size(binary_archive: Path, image_folder: Path) -> None:
    for data in ("digits", binary_archive, image_folder):
        dataset = load_dataset(data, input_size=24)
        assert dataset.train.images.shape[1:] == dataset.evaluation.images.shape[1:] == (24, 24, 3)
    with pytest.raises(InputError, match="input_size is 0; it must be 1 or more"):
        load_dataset("digits", input_size=0)


def test_cifar10_as_a_folder_of_jpegs_matches_the_original(real_data: Path, tmp_path: Path) -> None:
    sample = load_dataset(real_data / "cifar-10-binary-sample.tar.gz", limit=50)
    for split, images in (("train", sample.train), ("test", sample.evaluation)):
        for row, (pixels, label) in enumerate(zip(images.images, images.labels, strict=True)):
            path = tmp_path / "jpeg" / split / images.classes[label] / f"{row:05}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, quality=95, subsampling=0)
    jpeg = load_dataset(tmp_path / "jpeg")
    assert jpeg.train.classes == sample.train.classes
    order = np.lexsort((np.arange(50), sample.train.labels))
    difference = jpeg.train.images.astype(int) - sample.train.images[order]
    assert np.abs(difference).mean() < 4
