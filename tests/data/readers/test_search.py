import shutil
import tarfile
from pathlib import Path

import pytest

from onecycle.core.cache import cache_folder
from onecycle.core.errors import InputError
from onecycle.data import load_dataset
from onecycle.data.readers.registry import DEFAULT
from onecycle.data.readers.search import find_named, locate


def found(path: Path) -> tuple[Path, str]:
    """The path and the name of the format of the data that `locate` finds."""
    there = locate(path)
    return there.path, there.format.name


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start each test in an empty folder, with an empty cache."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_an_archive_is_recognized_by_its_content_under_any_name(
    binary_archive: Path, python_archive: Path, image_folder: Path, tmp_path: Path
) -> None:
    for name, source in [("a.zip", binary_archive), ("b", python_archive)]:
        shutil.copy(source, tmp_path / name)
        assert found(tmp_path / name) == (tmp_path / name, "CIFAR-10")
    with tarfile.open(tmp_path / "c.tar", "w") as archive:
        archive.add(image_folder, "top")
    assert found(tmp_path / "c.tar") == (tmp_path / "c.tar", "image files")


def test_a_folder_is_searched_for_the_official_names(
    binary_archive: Path, python_archive: Path, binary_folder: Path, python_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "found"
    folder.mkdir()
    # The least preferred source comes first. `locate` prefers each new copy to all earlier copies.
    for source in (python_folder, binary_folder, python_archive, binary_archive):
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / source.name)
        assert found(folder) == (folder / source.name, "CIFAR-10")


def test_an_unpacked_folder_is_recognized_under_any_name(
    binary_folder: Path, python_folder: Path, tmp_path: Path
) -> None:
    for source, layout in [(binary_folder, "binary"), (python_folder, "python")]:
        shutil.copytree(source, tmp_path / layout)
        assert found(tmp_path / layout) == (tmp_path / layout, "CIFAR-10")


def test_a_sample_is_found_only_by_its_own_path(binary_archive: Path, tmp_path: Path) -> None:
    sample = tmp_path / "samples" / "cifar-10-binary-sample.tar.gz"
    sample.parent.mkdir()
    shutil.copy(binary_archive, sample)
    with pytest.raises(InputError, match="holds no data that is read"):
        locate(sample.parent)
    assert found(sample) == (sample, "CIFAR-10")


def test_an_image_folder_may_have_one_folder_around_it(image_folder: Path, tmp_path: Path) -> None:
    assert found(image_folder) == (image_folder, "image files")
    shutil.copytree(image_folder, tmp_path / "outer" / "one")
    assert found(tmp_path / "outer") == (tmp_path / "outer" / "one", "image files")
    shutil.copytree(image_folder, tmp_path / "outer" / "two")
    with pytest.raises(InputError, match=r"holds several data sets: image files \(one\), .* \(two\); give the path"):
        locate(tmp_path / "outer")


def test_a_folder_that_holds_only_archives_is_an_image_folder(
    image_folder: Path, binary_archive: Path, tmp_path: Path
) -> None:
    archives = tmp_path / "archives"
    archives.mkdir()
    for split in ("train", "test"):
        with tarfile.open(archives / f"{split}.tar", "w") as archive:
            archive.add(image_folder / split, split)
    (archives / "README.txt").write_text("a description")
    assert found(archives) == (archives, "image files")
    shutil.copy(next(image_folder.rglob("*.png")), archives)
    with pytest.raises(InputError, match="holds no data that is read"):
        locate(archives)
    shutil.rmtree(archives)
    archives.mkdir()
    shutil.copy(binary_archive, archives / "some.tar.gz")
    with pytest.raises(InputError, match="holds no data that is read"):
        locate(archives)


def test_a_folder_around_the_images_that_holds_more_is_read_itself(image_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(image_folder, tmp_path / "outer" / "one")
    (tmp_path / "outer" / "@eaDir").mkdir()
    (tmp_path / "outer" / "Thumbs.db").touch()
    assert found(tmp_path / "outer") == (tmp_path / "outer" / "one", "image files")
    (tmp_path / "outer" / "loose.png").touch()
    assert found(tmp_path / "outer") == (tmp_path / "outer", "image files")


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_a_path_without_images_in_folders_is_refused_with_what_it_holds(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "phone"
    (folder / "cats").mkdir(parents=True)
    for name in ("cats/IMG_1.CR2", "cats/IMG_2.CR2", "loose.png"):
        (folder / name).touch()
    if form == "tar":
        with tarfile.open(tmp_path / "phone.tar", "w") as archive:
            archive.add(folder, ".")
        folder = tmp_path / "phone.tar"
    message = (
        r"holds no data that is read; give an archive.*\. Left out: 2 files \.cr2, not an image format that is read "
        r"\(cats/IMG_1\.CR2, cats/IMG_2\.CR2\); 1 image beside the class folders \(loose\.png\)$"
    )
    with pytest.raises(InputError, match=message):
        locate(folder)


def test_a_link_that_leads_nowhere_does_not_hide_the_images(image_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(image_folder, tmp_path / "photos")
    for name in ("x", "y"):
        (tmp_path / "photos" / name).symlink_to({"x": "y", "y": "x"}[name])
    assert load_dataset(tmp_path / "photos").fingerprint == load_dataset(image_folder).fingerprint


def test_a_path_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing: no such file or folder; check the path"):
        locate(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: the folder is empty"):
        locate(tmp_path / "empty")
    (tmp_path / "empty" / "letter.txt").write_text("hello")
    with pytest.raises(
        InputError,
        match=r"holds no data that is read; .* one of: CIFAR-10 \(cifar-10-binary\.tar\.gz, .*; image files \(",
    ):
        locate(tmp_path / "empty")
    with pytest.raises(InputError, match=r"letter\.txt: not a \.zip, \.tar or \.tar\.gz archive"):
        locate(tmp_path / "empty" / "letter.txt")
    with tarfile.open(tmp_path / "other.tar", "w") as archive:
        archive.add(tmp_path / "empty", "empty")
    with pytest.raises(
        InputError, match=r"other\.tar: holds no data that is read; give an archive with one of: CIFAR-"
    ):
        locate(tmp_path / "other.tar")


def test_the_variable_comes_before_the_working_folder_and_that_before_the_cache(
    binary_archive: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert find_named(DEFAULT) is None
    for folder in (cache_folder(), Path("data"), tmp_path / "named"):
        folder.mkdir(parents=True)
        shutil.copy(binary_archive, folder)
        if folder == tmp_path / "named":
            monkeypatch.setenv("ONECYCLE_DATA", str(folder))
        assert find_named(DEFAULT) == folder / binary_archive.name
    monkeypatch.setenv("ONECYCLE_DATA", str(binary_archive))
    assert find_named(DEFAULT) == binary_archive


def test_a_wrong_variable_is_an_error_even_if_there_is_data_elsewhere(
    binary_archive: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Path("data").mkdir()
    shutil.copy(binary_archive, "data")
    monkeypatch.setenv("ONECYCLE_DATA", str(tmp_path / "missing"))
    with pytest.raises(InputError, match=r"^\$ONECYCLE_DATA: .*missing: no such file or folder"):
        find_named(DEFAULT)
    monkeypatch.setenv("ONECYCLE_DATA", str(image_folder))
    with pytest.raises(InputError, match=r"^\$ONECYCLE_DATA: .* holds image files, not CIFAR-10; give this path"):
        find_named(DEFAULT)
    monkeypatch.setenv("ONECYCLE_DATA", "")
    assert find_named(DEFAULT) is not None


def test_a_data_folder_without_cifar10_is_skipped(image_folder: Path) -> None:
    shutil.copytree(image_folder, "data")
    assert find_named(DEFAULT) is None


def test_an_image_folder_called_like_cifar_100_is_an_image_folder(image_folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(image_folder, "cifar-100-python")
    assert found(tmp_path / "images.tar") == (tmp_path / "images.tar", "image files")
