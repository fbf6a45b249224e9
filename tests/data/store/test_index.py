"""Image folders with one folder per class, with and without a test set."""

import shutil
import tarfile
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_folders import write_images
from PIL import Image

from onecycle.core.errors import InputError
from onecycle.data import load_dataset
from onecycle.data.check import check
from onecycle.data.image_files import to_square
from onecycle.data.readers.image_folder import read_image_folder
from onecycle.data.splits import DRAWN_SHARE

COUNTS = {"ant": 20, "bee": 10, "cät": 3}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_images(tmp_path / "photos", COUNTS)


def test_without_a_test_set_a_fifth_of_each_class_is_drawn(photos: Path) -> None:
    sets = read_image_folder(photos, 32)
    train, test, drawn = sets.train, sets.test, sets.drawn
    assert train.classes == test.classes == tuple(COUNTS)
    assert np.bincount(test.labels).tolist() == [4, 2, 1] == [round(DRAWN_SHARE * n) for n in COUNTS.values()]
    assert np.bincount(train.labels).tolist() == [16, 8, 2]
    assert drawn is not None
    assert Counter(name.split("/")[0] for name in drawn) == {"ant": 4, "bee": 2, "cät": 1}


def test_the_drawn_names_are_those_of_the_test_images(photos: Path) -> None:
    sets = read_image_folder(photos, 32)
    test, drawn = sets.test, sets.drawn
    assert drawn is not None
    for name, pixels in zip(drawn, test.images, strict=True):
        assert (to_square(Image.open(photos / name), 32) == pixels).all()
        (photos / name).unlink()
    train, other_test = read_image_folder(photos, 32).by_split.values()
    pixels = {image.tobytes() for image in (*train.images, *other_test.images)}
    assert not pixels & {image.tobytes() for image in test.images}


@pytest.mark.parametrize("form", ["in train", "in another folder", "in an archive"])
def test_the_same_test_images_are_drawn_from_every_form_of_a_set(photos: Path, tmp_path: Path, form: str) -> None:
    first = read_image_folder(photos, 32)
    if form == "in train":
        source = tmp_path / "other"
        shutil.copytree(photos, source / "train")
    elif form == "in another folder":
        source = tmp_path / "outer"
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
    assert "no test set, so 20% of each class, 7 images, were drawn" in note


def test_a_cached_set_keeps_the_names_of_the_drawn_images(photos: Path) -> None:
    assert load_dataset(photos).drawn == load_dataset(photos).drawn is not None


def add_files(folder: Path) -> list[str]:
    """Add files that are left out to `folder`, with and without images. Returns the expected lines."""
    for name in ("ant/1.cr2", "bee/2.cr2", "bee/deep/3.cr2", "labels"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(bytes.fromhex("00000018667479706865696300000000"))
    shutil.copy(folder / "ant" / "00.png", folder / "loose.png")
    return [
        "3 files .cr2, not an image format that is read (ant/1.cr2, bee/2.cr2, bee/deep/3.cr2)",
        "1 file without a suffix such as .jpg (labels)",
        "1 image beside the class folders (loose.png)",
    ]


def zipped(folder: Path) -> Path:
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    return folder.with_suffix(".zip")


@pytest.mark.parametrize("pack", [lambda folder: folder, zipped], ids=["folder", "zip"])
def test_what_is_left_out_is_named_also_from_the_cache_and_changes_no_set(
    photos: Path, pack: Callable[[Path], Path]
) -> None:
    before = load_dataset(pack(photos))
    expected = add_files(photos)
    first = load_dataset(pack(photos))
    assert first.fingerprint == before.fingerprint
    assert first.drawn == before.drawn
    assert first.notes == load_dataset(pack(photos)).notes == (*before.notes, f"Left out: {'; '.join(expected)}")
    assert set(check(photos).left_out) == set(expected)
    (photos / "bee" / "4.cr2").touch()
    assert "Left out: 4 files .cr2" in load_dataset(pack(photos)).notes[-1]


def test_what_is_left_out_of_several_archives_and_beside_them_is_named(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "archives"
    folder.mkdir()
    add_files(photos)
    for name in COUNTS:
        with tarfile.open(folder / f"{name}.tar", "w") as archive:
            archive.add(photos / name, name)
    (folder / "more.7z").touch()
    (folder / "Thumbs.db").touch()
    expected = {
        "1 file .7z, not an image format that is read (more.7z)",
        "3 files .cr2, not an image format that is read (ant.tar:ant/1.cr2, bee.tar:bee/2.cr2, bee.tar:bee/deep/3.cr2)",
    }
    assert set(check(folder).left_out) == expected
    assert set(read_image_folder(folder, 32).left_out) == expected
    (folder / "more.7z").unlink()
    assert len(read_image_folder(folder, 32).left_out) == 1


def test_images_outside_of_train_and_test_are_named(tmp_path: Path) -> None:
    for split in ("train", "test", "more", "extra/deep"):
        write_images(tmp_path / "photos" / split, {"ant": 2, "bee": 2})
    for name in ("loose.png", "train/loose.png"):
        shutil.copy(tmp_path / "photos" / "train" / "ant" / "00.png", tmp_path / "photos" / name)
    assert set(read_image_folder(tmp_path / "photos", 32).left_out) == {
        "4 images in extra/, which is neither train/, val/ nor test/ "
        "(extra/deep/ant/00.png, extra/deep/ant/01.png, extra/deep/bee/00.png, …)",
        "4 images in more/, which is neither train/, val/ nor test/ "
        "(more/ant/00.png, more/ant/01.png, more/bee/00.png, …)",
        "2 images beside the class folders (loose.png, train/loose.png)",
    }


@pytest.mark.parametrize("splits", [[""], ["train"], ["train", "test"]])
@pytest.mark.parametrize("around", ["a", "a/a", "a/b/c/d"])
def test_any_number_of_single_folders_may_be_around_the_images(tmp_path: Path, splits: list[str], around: str) -> None:
    for split in splits:
        write_images(tmp_path / "plain" / split, COUNTS)
    nested = tmp_path / "nested" / around
    shutil.copytree(tmp_path / "plain", nested)
    assert load_dataset(tmp_path / "nested").fingerprint == load_dataset(tmp_path / "plain").fingerprint
    shutil.copy(next(nested.rglob("*.png")), tmp_path / "nested" / "a" / "loose.png")
    (tmp_path / "nested" / "README").touch()
    with_others = load_dataset(tmp_path / "nested")
    assert with_others.fingerprint == load_dataset(tmp_path / "plain").fingerprint
    assert with_others.notes[-1] == (
        "Left out: 1 file without a suffix such as .jpg (README); 1 image beside the class folders (a/loose.png)"
    )


def test_archives_may_have_single_folders_of_different_names_around_the_same_folders(tmp_path: Path) -> None:
    (tmp_path / "archives").mkdir()
    for number, name in enumerate(COUNTS):
        write_images(tmp_path / f"part {number}" / "images" / "all", {name: 3})
        with tarfile.open(tmp_path / "archives" / f"{number}.tar", "w") as archive:
            archive.add(tmp_path / f"part {number}", f"part {number}")
    assert read_image_folder(tmp_path / "archives", 32).train.classes == tuple(COUNTS)


def test_different_folders_below_the_top_folders_of_archives_are_classes(tmp_path: Path) -> None:
    (tmp_path / "archives").mkdir()
    for number, name in enumerate(COUNTS):
        write_images(tmp_path / "all" / name / "railway", {"train": 3})
        with tarfile.open(tmp_path / "archives" / f"{number}.tar", "w") as archive:
            archive.add(tmp_path / "all" / name, f"part {number}/{name}")
    sets = read_image_folder(tmp_path / "archives", 32)
    assert (sets.train.classes, sets.left_out) == (tuple(COUNTS), ())


def test_linked_class_folders_and_images_are_read_like_copies(photos: Path, tmp_path: Path) -> None:
    expected = load_dataset(photos)
    linked = tmp_path / "linked"
    (linked / "ant").mkdir(parents=True)
    for path in (photos / "ant").iterdir():
        (linked / "ant" / path.name).symlink_to(path)
    (linked / "bee").symlink_to(photos / "bee")
    (linked / "cät").symlink_to(Path("..", "photos", "cät"))
    found = load_dataset(linked)
    assert (found.fingerprint, found.drawn, found.notes) == (expected.fingerprint, expected.drawn, expected.notes)


def test_nothing_is_drawn_if_there_is_a_test_set(image_folder: Path) -> None:
    dataset = load_dataset(image_folder)
    assert dataset.drawn is None and not any("drawn" in note for note in dataset.notes)


def test_images_are_cropped_to_the_input_size(photos: Path) -> None:
    assert load_dataset(photos, input_size=48).train.images.shape == (26, 48, 48, 3)


def test_check_counts_the_images_of_a_drawn_test_set(photos: Path) -> None:
    found = check(photos)
    assert found.counts == {"train": (16, 8, 2), "test": (4, 2, 1)}
    assert "There is no test set: 20% of each class are drawn for testing" in found.lines()
    assert found.dangers() == []


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"ant": 3, "bee": 1}, "class 'bee' has only one image, but training and testing need one each; add more"),
        ({"ant": 3, "bee": 0}, "class folder bee has no images; add some or remove it"),
        ({"ant": 3}, "there is only one class, 'ant'"),
    ],
)
def test_too_few_images_or_classes_are_refused(tmp_path: Path, counts: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_dataset(write_images(tmp_path / "few", counts))


COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("names", "difference"),
    [
        ((COMPOSED, DECOMPOSED), r" \('(train/)?cafe\\u0301' and '(test/)?caf\\xe9'\) differ in Unicode form only"),
        (("Cat", "cat"), " differ in case only"),
        (("cat", "cat "), " differ in spaces only"),
    ],
)
@pytest.mark.parametrize("form", ["one set", "two sets", "an archive"])
def test_classes_that_look_alike_are_refused(
    tmp_path: Path, names: tuple[str, str], difference: str, form: str
) -> None:
    one, other = sorted(names)
    photos = tmp_path / "photos"
    if form == "two sets":
        write_images(photos / "train", {one: 2, "dog": 2})
        write_images(photos / "test", {other: 2, "dog": 2})
        one, other = f"train/{one}", f"test/{other}"
    else:
        write_images(photos, {one: 2, other: 2})
    source = Path(shutil.make_archive(str(photos), "zip", photos)) if form == "an archive" else photos
    with pytest.raises(
        InputError, match=f"{source}: the class folders '{one}' and '{other}'{difference}; rename or merge them$"
    ):
        load_dataset(source)


def test_decomposed_names_in_both_sets_are_read(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_images(tmp_path / "photos" / split, {DECOMPOSED: 2, "dog": 2})
    assert load_dataset(tmp_path / "photos").train.classes == (DECOMPOSED, "dog")


@pytest.mark.parametrize("train", ["train", "Train", "training"])
def test_images_beside_train_are_refused(tmp_path: Path, train: str) -> None:
    for split in (train, "plane"):
        write_images(tmp_path / "photos" / split, COUNTS)
    with pytest.raises(
        InputError,
        match=rf"there is no val/ or test/ beside {train}/, but there is plane/ with images; rename it to val/ or "
        rf"test/ .* if {train}/ is a class, rename {train}/",
    ):
        load_dataset(tmp_path / "photos")


def test_a_folder_called_train_inside_a_class_does_not_hide_the_other_classes(photos: Path) -> None:
    for name in ("steam", "electric"):
        write_images(photos / "rail" / "train", {name: 5})
    with pytest.raises(InputError, match="rail/ contains train/ or test/, but there are images outside rail/;"):
        load_dataset(photos)


@pytest.mark.parametrize("name", ["train", "test", "val", "Train", "validation"])
def test_a_class_with_the_name_of_a_split_is_refused_with_the_way_out(tmp_path: Path, name: str) -> None:
    folder = write_images(tmp_path / "vehicles", {"car": 3, "plane": 3, name: 3})
    with pytest.raises(InputError, match=rf"vehicles: {name}/ looks like a (class|split), .*; .*rename it") as refused:
        load_dataset(folder)
    assert "\n" not in str(refused.value)
    (folder / name).rename(folder / "railway")
    assert load_dataset(folder).train.classes == ("car", "plane", "railway")
    (folder / "railway").rename(folder / name)
    folder.rename(tmp_path / "train")
    (tmp_path / "vehicles").mkdir()
    (tmp_path / "train").rename(tmp_path / "vehicles" / "train")
    assert load_dataset(tmp_path / "vehicles").train.classes == tuple(sorted(("car", "plane", name)))


@pytest.mark.parametrize(("name", "missing"), [("train", "val/ or test/"), ("test", "train/")])
def test_a_class_of_folders_with_the_name_of_a_split_is_refused_with_the_way_out(
    tmp_path: Path, name: str, missing: str
) -> None:
    for kind in ("car", name):
        write_images(tmp_path / "vehicles" / kind, {"old": 3, "new": 3})
    message = (
        rf"there is no {missing} beside {name}/, but there is car/ with images; .*; if {name}/ is a class, "
        rf"rename {name}/"
    )
    with pytest.raises(InputError, match=message):
        load_dataset(tmp_path / "vehicles")


def test_a_class_without_images_is_refused_with_what_it_holds(photos: Path) -> None:
    shutil.rmtree(photos / "bee")
    (photos / "bee").mkdir()
    (photos / "bee" / "IMG_1.CR2").touch()
    message = r"class folder bee has no images; add some or remove it\. Left out: 1 file \.cr2, .*\(bee/IMG_1\.CR2\)$"
    with pytest.raises(InputError, match=message):
        load_dataset(photos)


def test_an_image_folder_called_digits_gets_another_name(tmp_path: Path) -> None:
    assert load_dataset(write_images(tmp_path / "digits", COUNTS)).name == "digits-images"
