import os
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onecycle.core.errors import InputError
from onecycle.data import ImageSet
from onecycle.data.readers.cifar10 import read_cifar10


@pytest.fixture
def binary(binary_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(binary_folder, tmp_path / "binary"))


@pytest.fixture
def python(python_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(python_folder, tmp_path / "python"))


@pytest.mark.parametrize("source", ["binary_folder", "binary_archive", "python_folder", "python_archive"])
def test_every_official_form_holds_the_same_images(
    source: str, tiny: tuple[ImageSet, ImageSet], request: pytest.FixtureRequest
) -> None:
    train, test, _ = read_cifar10(request.getfixturevalue(source), "binary" if "binary" in source else "python")
    assert (train.fingerprint, test.fingerprint) == (tiny[0].fingerprint, tiny[1].fingerprint)


def test_the_real_samples_are_read_alike_from_both_formats(real_data: Path) -> None:
    binary = read_cifar10(real_data / "cifar-10-binary-sample.tar.gz", "binary")
    python = read_cifar10(real_data / "cifar-10-python-sample.tar.gz", "python")
    assert [part.fingerprint for part in binary[:2]] == [part.fingerprint for part in python[:2]]
    train, test, _ = binary
    assert (train.images.shape, test.images.shape) == ((1000, 32, 32, 3), (100, 32, 32, 3))
    assert [train.classes[label] for label in train.labels[:3]] == ["frog", "truck", "truck"]
    assert train.images[0, 0, 0].tolist() == [59, 62, 63]  # the first pixel of CIFAR-10


def test_the_fingerprint_of_the_files_follows_their_content(binary: Path) -> None:
    before = read_cifar10(binary, "binary")[2]
    content = bytearray((binary / "test_batch.bin").read_bytes())
    content[100] ^= 1
    (binary / "test_batch.bin").write_bytes(content)
    assert read_cifar10(binary, "binary")[2] != before


@pytest.mark.parametrize("name", ["data_batch_3.bin", "test_batch.bin", "batches.meta.txt"])
def test_a_missing_file_is_named(binary: Path, name: str) -> None:
    (binary / name).unlink()
    with pytest.raises(InputError, match=f"binary: CIFAR-10 is not whole, {name} missing; get it again"):
        read_cifar10(binary, "binary")


def test_an_archive_without_its_last_file_is_refused(python: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "part.tar.gz", "w:gz") as archive:
        for name in ("batches.meta", "data_batch_1"):
            archive.add(python / name, f"cifar-10-batches-py/{name}")
    with pytest.raises(
        InputError, match="not whole, data_batch_2, data_batch_3, data_batch_4, data_batch_5, test_batch"
    ):
        read_cifar10(tmp_path / "part.tar.gz", "python")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95, 0.9999])
def test_an_archive_cut_short_is_refused(binary_archive: Path, tmp_path: Path, share: float) -> None:
    content = binary_archive.read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=r"cut\.tar\.gz: cannot be read to its end"):
        read_cifar10(tmp_path / "cut.tar.gz", "binary")


def test_records_cut_short_are_refused(binary: Path) -> None:
    content = (binary / "data_batch_2.bin").read_bytes()
    (binary / "data_batch_2.bin").write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"data_batch_2\.bin has 30,729 bytes, which are no whole records of 3,073"):
        read_cifar10(binary, "binary")
    (binary / "data_batch_2.bin").write_bytes(content[: 3 * 3073])
    with pytest.raises(InputError, match=r"not whole, its training batches hold \[10, 3, 10, 10, 10\] images"):
        read_cifar10(binary, "binary")
    (binary / "data_batch_2.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"data_batch_2\.bin has 0 bytes"):
        read_cifar10(binary, "binary")


def test_a_label_without_a_class_is_refused(binary: Path) -> None:
    content = bytearray((binary / "test_batch.bin").read_bytes())
    content[3073] = 10
    (binary / "test_batch.bin").write_bytes(content)
    with pytest.raises(InputError, match=r"test_batch\.bin has label 10, but there are 10 classes"):
        read_cifar10(binary, "binary")


@pytest.mark.parametrize("names", [b"", b"only one\n", b"twice\ntwice\n", b"\xff\xfe"])
def test_a_list_of_classes_that_is_none_is_refused(binary: Path, names: bytes) -> None:
    (binary / "batches.meta.txt").write_bytes(names)
    with pytest.raises(InputError, match=r"batches\.meta\.txt: not a list of"):
        read_cifar10(binary, "binary")


class _Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def test_a_pickle_that_calls_something_is_refused_and_the_call_is_not_made(python: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    content = pickle.dumps({b"data": _Call(os.mkdir, str(made))}, protocol=2)
    (python / "data_batch_1").write_bytes(content)
    with pytest.raises(InputError, match=r"data_batch_1 wants to call \w+\.mkdir, so it was not loaded"):
        read_cifar10(python, "python")
    assert not made.exists()
    pickle.loads(content)
    assert made.exists()  # so the pickle was a real one


@pytest.mark.parametrize(
    "asked",
    [_Call(eval, "1"), _Call(getattr, "x", "upper"), np.array([object()]), np.zeros(3), _Call("".encode, "zlib")],
    ids=["eval", "getattr", "array of objects", "array of floats", "method"],
)
def test_a_pickle_may_hold_data_only(python: Path, asked: Any) -> None:
    (python / "test_batch").write_bytes(pickle.dumps({b"data": asked}, protocol=2))
    with pytest.raises(InputError, match="test_batch .*so it was not loaded"):
        read_cifar10(python, "python")


def test_bytes_are_decoded_in_the_one_way_that_python_writes_them(python: Path) -> None:
    (python / "test_batch").write_bytes(b"\x80\x02c_codecs\nencode\nX\x01\0\0\0aX\x05\0\0\0utf-7\x86R.")
    with pytest.raises(InputError, match="asks for the encoding 'utf-7'"):
        read_cifar10(python, "python")


def test_arrays_named_as_old_and_new_numpy_name_them_are_read(python: Path) -> None:
    for path in python.glob("*_batch*"):
        content = path.read_bytes()
        assert b"numpy._core.multiarray" in content or b"numpy.core.multiarray" in content
        path.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    old = read_cifar10(python, "python")
    for path in python.glob("*_batch*"):
        path.write_bytes(path.read_bytes().replace(b"numpy.core.multiarray", b"numpy._core.multiarray"))
    assert read_cifar10(python, "python")[0].fingerprint == old[0].fingerprint


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, 2], "not a CIFAR-10 file, but a pickled list"),
        ({b"data": np.zeros((2, 7), np.uint8), b"labels": [0, 1]}, "its data are not rows of 3,072 bytes"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, "has 2 images and 1 labels"),
        (
            {b"data": np.zeros((1, 3072), np.uint8), b"labels": ["0"]},
            "its labels are not a list of small whole numbers",
        ),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [-1]}, "its labels are not"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [11]}, "has label 11, but there are 10 classes"),
        ({b"labels": [0]}, "its data are not rows"),
    ],
)
def test_a_pickle_of_another_form_is_refused(python: Path, values: Any, message: str) -> None:
    (python / "test_batch").write_bytes(pickle.dumps(values, protocol=2))
    with pytest.raises(InputError, match=f"test_batch.*{message}"):
        read_cifar10(python, "python")


@pytest.mark.parametrize("content", [b"", b"text", b"\x80\x02]", b"\x80\x02K"])
def test_a_damaged_pickle_is_refused(python: Path, content: bytes) -> None:
    (python / "data_batch_5").write_bytes(content)
    with pytest.raises(InputError, match=r"data_batch_5: not a (readable )?CIFAR-10 file"):
        read_cifar10(python, "python")


def test_a_pickle_without_class_names_is_refused(python: Path) -> None:
    (python / "batches.meta").write_bytes(pickle.dumps({b"label_names": 3}, protocol=2))
    with pytest.raises(InputError, match=r"batches\.meta: no list of class names"):
        read_cifar10(python, "python")
