import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import cifar100_files
import numpy as np
import pytest
from cifar100_files import COARSE, FINE, planes, write_python

from onecycle.cli import main
from onecycle.core.errors import InputError
from onecycle.data import load_dataset
from onecycle.data.check import check
from onecycle.data.readers import registry
from onecycle.data.readers.cifar100 import BINARY, PYTHON
from onecycle.data.readers.search import find_named

RNG = np.random.default_rng(0)
IMAGES = {split: RNG.integers(0, 256, (count, 32, 32, 3), np.uint8) for split, count in (("train", 200), ("test", 100))}
LABELS = {split: np.arange(len(images)) % 100 for split, images in IMAGES.items()}  # coarse labels are these, by 5


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    """The official binary files: a record is the coarse label, the fine label and the planes of the image."""
    folder = tmp_path / "set" / "cifar-100-binary"
    folder.mkdir(parents=True)
    (folder / "fine_label_names.txt").write_text("\n".join(FINE) + "\n")
    (folder / "coarse_label_names.txt").write_text("\n".join(COARSE) + "\n")
    for split, labels in LABELS.items():
        records = np.concatenate([np.stack([labels // 5, labels], 1).astype(np.uint8), planes(IMAGES[split])], axis=1)
        (folder / f"{split}.bin").write_bytes(records.tobytes())
    return folder


@pytest.fixture
def python(tmp_path: Path) -> Path:
    return write_python(tmp_path / "set" / "cifar-100-python", IMAGES, LABELS)


def archived(folder: Path) -> Path:
    path = cifar100_files.archived(folder)
    shutil.rmtree(folder)
    return path


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("pack", [lambda folder: folder, archived, lambda folder: archived(folder).parent])
@pytest.mark.parametrize("version", ["binary", "python"])
def test_every_official_form_holds_the_same_images(
    version: str, pack: Callable[[Path], Path], coarse: bool, request: pytest.FixtureRequest
) -> None:
    found = load_dataset(pack(request.getfixturevalue(version)), coarse=coarse)
    assert found.name == "cifar100"
    assert found.source.startswith(f"CIFAR-100, {version} version, from ")
    assert found.source.endswith(", coarse classes") == coarse
    assert found.notes[0].startswith("Unverified: ")
    assert found.notes[1] == "Not all of CIFAR-100: 200 training and 100 test images, not 50,000 and 10,000"
    for split, images in (("train", found.train), ("test", found.evaluation)):
        assert (images.images == IMAGES[split]).all()
        assert images.labels.tolist() == (LABELS[split] // 5 if coarse else LABELS[split]).tolist()
        assert images.classes == tuple(COARSE if coarse else FINE)


def test_check_names_the_format_and_takes_coarse(binary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(binary), "--coarse"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"CIFAR-100, binary version, from {binary}, coarse classes"
    assert check(binary).classes == tuple(FINE)


@pytest.mark.parametrize("data", ["digits", "cifar10", "images"])
def test_coarse_is_refused_for_other_data(
    data: str, image_folder: Path, binary_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONECYCLE_DATA", str(binary_archive))
    with pytest.raises(InputError, match="^--coarse is for CIFAR-100, which has coarse classes; leave it out$"):
        load_dataset(str(image_folder) if data == "images" else data, coarse=True)


@pytest.mark.parametrize("name", ["train.bin", "test.bin", "fine_label_names.txt"])
def test_a_missing_file_is_named(binary: Path, name: str) -> None:
    (binary / name).unlink()
    with pytest.raises(InputError, match=f"CIFAR-100 is incomplete: {name} missing; download it again"):
        load_dataset(binary)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "train.bin",
            lambda content: content[:-1],
            r"train\.bin has .* bytes, not a multiple of the record size 3,074",
        ),
        ("test.bin", lambda content: b"", r"test\.bin has 0 bytes"),
        ("test.bin", lambda content: b"\0\x64" + content[2:], r"test\.bin has label 100, but there are 100 classes"),
        ("fine_label_names.txt", lambda content: b"one\n", "not a list of different class names"),
        ("fine_label_names.txt", lambda content: b"\xff\xfe", "not a list of class names"),
    ],
)
def test_damaged_binary_files_are_refused(
    name: str, change: Callable[[bytes], bytes], message: str, binary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (binary / name).write_bytes(change((binary / name).read_bytes()))
    assert main(["check", str(archived(binary))]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    with pytest.raises(InputError, match=message):
        load_dataset(binary.parent)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("train", {b"data": np.zeros((2, 7), np.uint8), b"fine_labels": [0, 1]}, "its data is not rows of 3,072 bytes"),
        ("train", {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]}, "its labels are not a list"),
        ("test", {b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [0]}, "has 2 images and 1 labels"),
        ("test", {b"data": np.array([object()])}, "asks to call|holds an array of 'O8', not of bytes"),
        ("meta", {b"label_names": ["a", "b"]}, "no list of class names"),
        ("meta", [], "not a CIFAR file but a pickled list"),
    ],
)
def test_pickles_of_another_form_are_refused(name: str, values: object, message: str, python: Path) -> None:
    (python / name).write_bytes(pickle.dumps(values, protocol=2))
    with pytest.raises(InputError, match=f"{name}.*({message})") as refused:
        load_dataset(archived(python))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("share", [0.1, 0.9, 0.999])
def test_a_truncated_archive_is_refused(share: float, python: Path) -> None:
    path = archived(python)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match=f"^{path}: cannot be read to its end"):
        load_dataset(path)


def test_cifar_10_and_cifar_100_in_one_folder_are_refused_by_path_and_found_by_name(
    binary: Path, binary_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archived(binary)
    shutil.copy(binary_archive, archive.parent)
    with pytest.raises(InputError, match=r"CIFAR-10 \(cifar-10-binary.tar.gz\), CIFAR-100 \(cifar-100-binary.tar.gz\)"):
        load_dataset(archive.parent)
    monkeypatch.setenv("ONECYCLE_DATA", str(archive.parent))
    assert (load_dataset("cifar10").name, load_dataset("cifar100").name) == ("cifar10", "cifar100")


def test_it_is_found_in_the_working_folder_if_the_variable_names_other_data(
    binary: Path, binary_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONECYCLE_DATA", str(binary_archive))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert find_named(registry.NAMED["cifar100"]) is None
    binary.parent.rename("data")
    assert find_named(registry.NAMED["cifar100"]) == Path("data", "cifar-100-binary")


def test_without_it_and_network_the_message_says_where_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(InputError, match=f"^CIFAR-100 was not found, and .* Download {BINARY.url} and give its path"):
        load_dataset("cifar100")


def test_the_official_archives_have_checksums() -> None:
    assert {archive.name for archive in (BINARY, PYTHON)} == {"cifar-100-binary.tar.gz", "cifar-100-python.tar.gz"}
    assert all(len(archive.sha256) == 64 for archive in (BINARY, PYTHON))
