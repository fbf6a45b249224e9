import os
import random
import shutil
import tarfile
import time
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onecycle.core.errors import InputError
from onecycle.data import ImageSet, image_files, load_dataset
from onecycle.data.image_files import to_square
from onecycle.data.readers.image_folder import read_image_folder
from onecycle.data.store import mapped
from onecycle.data.store.cache import cache_folder


@pytest.fixture(scope="session")
def few(tiny: tuple[ImageSet, ImageSet]) -> tuple[ImageSet, ImageSet]:
    """Two training images and one test image for each of three classes, not sorted by class."""

    def first(images: ImageSet, each: int) -> ImageSet:
        rows = np.sort(np.concatenate([np.flatnonzero(images.labels == digit)[:each] for digit in (3, 4, 7)]))
        labels = np.searchsorted([3, 4, 7], images.labels[rows])
        return ImageSet(images.images[rows], labels, ("3", "4", "7"))

    return first(tiny[0], 2), first(tiny[1], 1)


@pytest.fixture
def folder(few: tuple[ImageSet, ImageSet], tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for split, images in zip(("train", "test"), few, strict=True):
        for row, (pixels, label) in enumerate(zip(images.images, images.labels, strict=True)):
            path = root / split / images.classes[label] / f"{row:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_folder() / "images"


def _shuffled(folder: Path) -> list[tuple[Path, str]]:
    files = [(path, path.relative_to(folder).as_posix()) for path in sorted(folder.rglob("*")) if path.is_file()]
    random.Random(0).shuffle(files)
    return files


def _tar(folder: Path, top: str = "") -> Path:
    with tarfile.open(folder.parent / "images.tar", "w") as archive:
        for path, name in _shuffled(folder):
            archive.add(path, top + name)
    return folder.parent / "images.tar"


def _tar_gz(folder: Path) -> Path:
    with tarfile.open(folder.parent / "images.tar.gz", "w:gz") as archive:
        archive.add(folder, "images")
    return folder.parent / "images.tar.gz"


def _zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder.parent / "images.zip", "w") as archive:
        for path, name in _shuffled(folder):
            archive.write(path, name)
    return folder.parent / "images.zip"


def _expected(images: ImageSet) -> ImageSet:
    return images.subset(np.lexsort((np.arange(len(images)), images.labels)))  # sorted by class, then file name


_FORMS = pytest.mark.parametrize(
    "form",
    [lambda folder: folder, _tar, lambda folder: _tar(folder, "./top/"), _tar_gz, _zip],
    ids=["folder", "tar", "tar with a top folder", "tar.gz", "zip"],
)


@_FORMS
def test_every_form_gives_the_same_sets_ordered_by_class_and_file_name(
    form: Callable[[Path], Path], folder: Path, few: tuple[ImageSet, ImageSet]
) -> None:
    for read, images in zip(read_image_folder(form(folder), 32).by_split.values(), few, strict=True):
        assert read.fingerprint == _expected(images).fingerprint


@_FORMS
@pytest.mark.parametrize("size", [32, 8])
def test_images_have_their_file_names_relative_to_the_source(
    form: Callable[[Path], Path], folder: Path, size: int
) -> None:
    def name(path: Path) -> str:
        return path.relative_to(folder).as_posix()

    for _ in range(2):  # decoded, and from the cache
        for split, read in read_image_folder(form(folder), size).by_split.items():
            names = [name.removeprefix("top/").removeprefix("images/") for name in read.names or ()]
            assert names == sorted(map(name, (folder / split).rglob("*.png")))


def test_names_follow_images_through_splits_limits_and_subsets_in_files(
    folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "IN_MEMORY", 0)
    pixels = {path.relative_to(folder).as_posix(): np.asarray(Image.open(path)) for path in folder.rglob("*.png")}
    dataset = load_dataset(folder, validation=3, limit=3)
    for images in (dataset.train, dataset.evaluation):
        assert images.names and len(images.names) == 3
        assert all((pixels[name] == image).all() for name, image in zip(images.names, images.images, strict=True))


def test_equal_images_with_other_names_do_not_get_the_names_of_the_cache(
    folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "IN_MEMORY", 0)
    before = load_dataset(folder, limit=3).train
    for path in folder.rglob("*.png"):
        path.rename(path.with_stem(f"renamed-{path.stem}"))
    after = load_dataset(folder, limit=3).train
    assert after.fingerprint == before.fingerprint
    assert before.names and after.names
    assert [name.replace("renamed-", "") for name in after.names] == list(before.names) != list(after.names)


def test_the_names_of_several_archives_begin_with_the_archive(folder: Path, tmp_path: Path) -> None:
    archives = tmp_path / "archives"
    archives.mkdir()
    for split in ("train", "test"):
        with zipfile.ZipFile(archives / f"{split}.zip", "w") as archive:
            for path in sorted((folder / split).rglob("*.png")):
                archive.write(path, path.relative_to(folder))
    train, test = read_image_folder(archives, 32).by_split.values()
    assert train.names and test.names
    assert train.names[0] == "train.zip:train/3/000.png" and test.names[0].startswith("test.zip:test/3/")


@_FORMS
def test_a_second_read_decodes_nothing_and_gives_the_same_sets(
    form: Callable[[Path], Path], folder: Path, own_cache: Path
) -> None:
    source = form(folder)
    first = read_image_folder(source, 32)
    (entry,) = own_cache.iterdir()
    written = entry.stat().st_mtime_ns, sorted(path.stat().st_mtime_ns for path in entry.iterdir())
    second = read_image_folder(source, 32)
    assert written == (entry.stat().st_mtime_ns, sorted(path.stat().st_mtime_ns for path in entry.iterdir()))
    assert first.train.fingerprint == second.train.fingerprint and first.test.fingerprint == second.test.fingerprint


def test_a_changed_image_is_decoded_again(folder: Path) -> None:
    before = read_image_folder(folder, 32).train
    path = next((folder / "train" / "7").iterdir())
    Image.new("RGB", (32, 32), "red").save(path)
    os.utime(path, ns=(time.time_ns(), time.time_ns() + 1))
    after = read_image_folder(folder, 32).train
    assert (before.images != after.images).any(axis=(1, 2, 3)).sum() == 1


@pytest.mark.parametrize("form", ["folder", "linked", "archives"])
def test_a_change_that_keeps_the_size_and_the_time_is_noticed(form: str, folder: Path, tmp_path: Path) -> None:
    source, bitmap = folder, folder / "train" / "7" / "0.bmp"
    changed = bitmap
    if form == "linked":
        changed = tmp_path / "elsewhere.bmp"
        bitmap.symlink_to(changed)
    elif form == "archives":
        source = tmp_path / "archives"
        source.mkdir()
        changed = source / "images.tar"
    sizes, fingerprints = [], []
    for color in ("red", "blue"):
        Image.new("RGB", (32, 32), color).save(bitmap)
        if form == "archives":
            _tar(folder).replace(changed)
        os.utime(changed, ns=(10**18, 10**18))
        sizes.append(changed.stat().st_size)
        fingerprints.append(read_image_folder(source, 32).train.fingerprint)
    assert sizes[0] == sizes[1] and fingerprints[0] != fingerprints[1]


def test_each_input_size_is_cached_separately(folder: Path) -> None:
    assert read_image_folder(folder, 32).train.images.shape == (6, 32, 32, 3)
    assert read_image_folder(folder, 16).train.images.shape == (6, 16, 16, 3)
    assert read_image_folder(folder, 32).train.images.shape == (6, 32, 32, 3)


def test_a_damaged_cache_is_written_again(folder: Path, own_cache: Path) -> None:
    before = read_image_folder(folder, 32).train.fingerprint
    (images,) = own_cache.glob("*/train_images.npy")
    images.write_bytes(images.read_bytes()[:1000])
    assert read_image_folder(folder, 32).train.fingerprint == before


def test_writing_to_the_images_does_not_change_the_cache(folder: Path) -> None:
    images = read_image_folder(folder, 32).train.images
    before = images.copy()
    images[:] = 0
    assert (read_image_folder(folder, 32).train.images == before).all()


def test_images_of_every_common_format_size_and_mode_are_read(folder: Path) -> None:
    class_folder = folder / "train" / "7"
    for name, mode in [("a.jpg", "L"), ("b.JPEG", "CMYK"), ("c.bmp", "RGB"), ("d.gif", "P"), ("e.webp", "RGBA")]:
        Image.new(mode, (50, 40)).save(class_folder / name)
    for name, mode in [("f.tif", "RGB"), ("g.tiff", "1"), ("h.ppm", "RGB"), ("i.png", "LA")]:
        Image.new(mode, (10, 90)).save(class_folder / name)
    (class_folder / "notes.txt").write_text("not an image")
    (class_folder / ".hidden.png").write_text("not an image")
    assert len(read_image_folder(folder, 32).train) == 6 + 9


def _truncated_jpeg() -> bytes:
    file = BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()[: file.tell() * 3 // 4]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (_truncated_jpeg(), "the image cannot be read .*[Tt]runcated"),
        (b"a text", "not an image .6 bytes."),
        (b"", "the file is empty"),
    ],
    ids=["truncated", "text", "empty"],
)
@_FORMS
def test_a_file_that_is_not_a_complete_image_is_named_and_nothing_is_cached(
    form: Callable[[Path], Path], content: bytes, reason: str, folder: Path, own_cache: Path
) -> None:
    (folder / "test" / "3" / "broken.jpg").write_bytes(content)
    source = form(folder)
    separator = "/" if source.is_dir() else ":"
    with pytest.raises(InputError, match=rf"{source}{separator}.*test/3/broken\.jpg: {reason}.*; replace or remove it"):
        read_image_folder(source, 32)
    assert list(own_cache.iterdir()) == []


def test_a_decompression_bomb_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "MOST_PIXELS", 1100)
    Image.new("RGB", (40, 40)).save(folder / "train" / "3" / "large.png")
    with pytest.raises(
        InputError, match=r"large\.png: the image has 40×40 pixels; the limit is 1,100 pixels; make the image smaller"
    ):
        read_image_folder(folder, 32)


def _remove(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            shutil.rmtree(folder / name)

    return change


def _empty_class(folder: Path) -> None:
    shutil.rmtree(folder / "train" / "4")
    (folder / "train" / "4").mkdir()
    (folder / "train" / "4" / "readme.txt").touch()


def _loose(folder: Path) -> None:
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()
    Image.new("RGB", (32, 32)).save(folder / "train" / "loose.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_remove("train"), "there is no train/ folder"),
        (_loose, "train/ has no class folders"),
        (_empty_class, "class folder train/4 has no images; add some or remove it"),
        (_remove("test/4"), "different classes: '4' is in train/ but not in test/"),
        (_remove("train/4"), "different classes: '4' is in test/ but not in train/"),
        (_remove("train/3", "train/4", "test/3", "test/4"), "there is only one class, '7'"),
        (lambda folder: shutil.copytree(folder, folder / "copy"), "several places"),
        (
            lambda folder: [(folder / s / "4").rename(folder / s / "4\n") for s in ("train", "test")],
            "cannot be printed",
        ),
    ],
    ids=["no train", "loose", "empty class", "not in test", "not in train", "one class", "two", "newline"],
)
@pytest.mark.parametrize("form", [lambda folder: folder, _tar, _zip], ids=["folder", "tar", "zip"])
def test_a_wrong_folder_structure_is_refused(
    form: Callable[[Path], Path], change: Callable[[Path], object], message: str, folder: Path
) -> None:
    change(folder)
    with pytest.raises(InputError, match=rf"images\S*: .*{message}"):
        read_image_folder(form(folder), 32)


@pytest.mark.parametrize("pack", [_tar, _tar_gz, _zip])
def test_a_truncated_archive_is_refused(pack: Callable[[Path], Path], folder: Path, own_cache: Path) -> None:
    archive = pack(folder)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size * 2 // 3])
    with pytest.raises(InputError, match=r"images\.\S+: cannot be read to its end"):
        read_image_folder(archive, 32)
    assert not own_cache.exists() or list(own_cache.iterdir()) == []


def test_large_photographs_are_read_like_small_images(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for row in range(3):
                pixels = noise.integers(0, 255, (200, 300, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / split / name / f"{row}.png")  # a file of 180 kB
    train = read_image_folder(tmp_path / "photos", 32).train
    for image, path in zip(train.images, sorted((tmp_path / "photos" / "train").rglob("*.png")), strict=True):
        assert (image == to_square(Image.open(path), 32)).all()
