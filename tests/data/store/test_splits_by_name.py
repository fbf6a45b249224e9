"""The folders of a training, a validation and a test set, by the names that people and tools give them."""

import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from image_folders import write_images

from onecycle.core.errors import InputError
from onecycle.data import load_dataset
from onecycle.data.check import check

COUNTS = {"ant": 4, "bee": 3, "cät": 2}


def write_splits(root: Path, *names: str) -> Path:
    """Write a folder with images of three classes for each of `names`. All have different images."""
    for seed, name in enumerate(names):
        write_images(root / name, COUNTS, seed=seed)
    return root


def zipped(folder: Path, top: str = "") -> Path:
    """An archive of the images of `folder` below `top`, without entries for folders."""
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, Path(top, path.relative_to(folder)))
    return folder.with_suffix(".zip")


def tarred(folder: Path) -> Path:
    with tarfile.open(folder.with_suffix(".tar.gz"), "w:gz") as archive:
        archive.add(folder, ".")
    return folder.with_suffix(".tar.gz")


def in_more_folders(folder: Path) -> Path:
    shutil.copytree(folder, folder.parent / "outer" / "data" / "photos")
    return folder.parent / "outer"


def in_an_archive_for_each_split(folder: Path) -> Path:
    (folder.parent / "archives").mkdir()
    for split in folder.iterdir():
        with tarfile.open(folder.parent / "archives" / f"{split.name}.tar", "w") as archive:
            archive.add(split, split.name)
    return folder.parent / "archives"


FORMS = pytest.mark.parametrize(
    "form",
    [lambda folder: folder, zipped, lambda folder: zipped(folder, "photos"), tarred, in_more_folders]
    + [in_an_archive_for_each_split],
    ids=["folder", "zip", "zip with a top folder", "tar.gz", "in more folders", "an archive for each split"],
)


@FORMS
@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Training", "VALID", "Testing"), ("TRAIN", "dev", "test")]
)
def test_a_validation_set_beside_a_test_set_is_read(
    tmp_path: Path, names: tuple[str, str, str], form: Callable[[Path], Path]
) -> None:
    plain = load_dataset(write_splits(tmp_path / "plain", "train", "test"))
    train, validation, test = names
    photos = write_splits(tmp_path / "photos", train, test)
    write_images(photos / validation, COUNTS, seed=2)
    found = load_dataset(form(photos))
    assert (found.evaluated_on, found.epoch_evaluated_on, found.drawn) == ("test", "validation", None)
    assert found.fingerprint == plain.fingerprint
    assert found.validation and list(found.by_split) == ["train", "validation", "test"]
    expected = load_dataset(write_splits(tmp_path / "other", "train", "unused", "test"))
    assert found.validation.fingerprint == expected.evaluation.fingerprint


@FORMS
@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev", "Val", "VALIDATION"])
def test_without_a_test_set_the_validation_set_is_evaluated(
    tmp_path: Path, name: str, form: Callable[[Path], Path]
) -> None:
    plain = load_dataset(write_splits(tmp_path / "plain", "train", "test"))
    found = load_dataset(form(write_splits(tmp_path / "photos", "train", name)))
    assert (found.evaluated_on, found.epoch_evaluated_on, found.validation) == ("validation", "validation", None)
    assert found.evaluation.fingerprint == plain.evaluation.fingerprint
    assert found.fingerprint != plain.fingerprint  # the result is that of another split


@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "testing"), ("TRAIN", "test"), ("train", "TESTING")])
def test_a_training_and_a_test_set_have_any_of_their_names(tmp_path: Path, names: tuple[str, str]) -> None:
    plain = load_dataset(write_splits(tmp_path / "plain", "train", "test"))
    assert load_dataset(write_splits(tmp_path / "photos", *names)).fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("train", "val", "valid"), "validation"),
        (("train", "test", "dev", "validation"), "validation"),
        (("Train", "train", "test"), "training"),
        (("train", "training", "val"), "training"),
        (("train", "test", "TEST"), "test"),
        (("train", "testing", "Testing"), "test"),
    ],
)
@pytest.mark.parametrize("form", [lambda folder: folder, zipped], ids=["folder", "zip"])
def test_two_names_for_one_split_are_refused(
    tmp_path: Path, names: tuple[str, ...], kind: str, form: Callable[[Path], Path]
) -> None:
    source = form(write_splits(tmp_path / "photos", *names))
    with pytest.raises(InputError, match=rf"photos\S*: \w+/ and \w+/ are both a {kind} set; merge them, or move one"):
        load_dataset(source)


def test_a_folder_for_a_split_without_images_is_no_split(tmp_path: Path) -> None:
    photos = write_splits(tmp_path / "photos", "train", "test")
    before = load_dataset(photos)
    for name in ("val", "Valid", "Testing/ant"):
        (photos / name).mkdir(parents=True)
    after = load_dataset(photos)
    assert (after.fingerprint, after.validation) == (before.fingerprint, None)


@pytest.mark.parametrize("empty", ["train", "Train", "test", "val", "Testing"])
def test_an_empty_folder_for_a_split_beside_classes_is_refused_in_one_line(tmp_path: Path, empty: str) -> None:
    photos = write_images(tmp_path / "photos", COUNTS)
    (photos / empty).mkdir()
    with pytest.raises(InputError, match=rf"photos: .*{empty}/.*; .*if .* is a class, rename") as refused:
        load_dataset(photos)
    assert "\n" not in str(refused.value)


def test_images_of_a_validation_folder_without_labels_are_left_out_beside_a_test_set(tmp_path: Path) -> None:
    photos = write_splits(tmp_path / "photos", "train", "test")
    (photos / "val").mkdir()
    shutil.copy(photos / "test" / "ant" / "00.png", photos / "val")
    found = load_dataset(photos)
    assert found.validation is None
    assert found.notes == ("Left out: 1 image beside the class folders (val/00.png)",)
    shutil.rmtree(photos / "test")
    with pytest.raises(InputError, match="photos: val/ has no class folders; put images in val/<class>/"):
        load_dataset(photos)


def test_a_validation_set_with_other_classes_is_refused(tmp_path: Path) -> None:
    photos = write_splits(tmp_path / "photos", "Train", "Val", "test")
    (photos / "Val" / "ant").rename(photos / "Val" / "wasp")
    message = "Train/ and Val/ have different classes: 'ant' is in Train/ but not in Val/; both need the same class"
    with pytest.raises(InputError, match=message):
        load_dataset(photos)


@pytest.mark.parametrize(
    "folders",
    [
        ["Train/ant", "Train/bee"],
        ["val/ant", "val/bee"],
        ["dev/a/ant", "dev/a/bee"],
        ["dev", "ops"],
        ["Test/b/1", "Test/b/2"],
    ]
    + [["cat/Train", "dog/Train"], ["cat/testing", "dog/deep/val"], ["training/x/ant", "training/x/bee"]],
    ids=" ".join,
)
def test_the_name_of_a_split_around_or_inside_classes_is_a_name_like_any_other(
    tmp_path: Path, folders: list[str]
) -> None:
    """As before such names were those of splits: these sets keep their fingerprint."""
    for folder in folders:
        write_images((tmp_path / "photos" / folder).parent, {Path(folder).name: 5})
    found = load_dataset(tmp_path / "photos")
    around = 1 if folders[0].count("/") == 0 or folders[0].startswith("cat") else len(folders[0].split("/"))
    assert found.train.classes == tuple(sorted(folder.split("/")[around - 1] for folder in folders))
    assert (len(found.train), len(found.evaluation), found.evaluated_on) == (8, 2, "test")


def test_a_data_set_with_a_validation_set_of_its_own_refuses_another(tmp_path: Path) -> None:
    both = write_splits(tmp_path / "both", "train", "val", "test")
    only = write_splits(tmp_path / "only", "train", "val")
    for photos in (both, only):
        with pytest.raises(InputError, match=rf"--validation is 6, but .*{photos} .* has a validation set of its own"):
            load_dataset(photos, validation=6)


def test_a_limit_applies_to_each_set(tmp_path: Path) -> None:
    found = load_dataset(write_splits(tmp_path / "photos", "train", "val", "test"), limit=6)
    assert [len(images) for images in found.by_split.values()] == [6, 6, 6]


def test_check_counts_the_images_of_each_split_and_names_the_layout(tmp_path: Path) -> None:
    photos = write_splits(tmp_path / "photos", "Train", "val", "test")
    shutil.copy(photos / "Train" / "ant" / "00.png", photos / "val" / "ant" / "copy.png")
    found = check(photos)
    assert found.source == f"image folder {photos} with Train/, val/ and test/"
    assert found.counts == {"train": (4, 3, 2), "validation": (5, 3, 2), "test": (4, 3, 2)}
    assert found.shared() == {"validation": 1, "test": 0}
    assert found.lines()[2:4] == [
        "class       train  validation        test",
        "ant             4           5           4",
    ]
    assert found.dangers() == ["1 of 10 validation images are also in the training set"]
