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
from onecycle.data.readers.cifar10 import Cifar10
from onecycle.data.readers.formats import ReadOptions
from onecycle.data.readers.sets import Sets


def read_cifar10(path: Path) -> Sets:
    return Cifar10().read(path, ReadOptions())


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
    sets = read_cifar10(request.getfixturevalue(source)).by_split
    assert [images.fingerprint for images in sets.values()] == [images.fingerprint for images in tiny]


def test_the_real_samples_are_the_same_in_both_formats(real_data: Path) -> None:
    binary = read_cifar10(real_data / "cifar-10-binary-sample.tar.gz")
    python = read_cifar10(real_data / "cifar-10-python-sample.tar.gz")
    assert [part.fingerprint for part in binary.by_split.values()] == [
        part.fingerprint for part in python.by_split.values()
    ]
    train, test = binary.by_split.values()
    assert (train.images.shape, test.images.shape) == ((1000, 32, 32, 3), (100, 32, 32, 3))
    assert [train.classes[label] for label in train.labels[:3]] == ["frog", "truck", "truck"]
    assert train.images[0, 0, 0].tolist() == [59, 62, 63]  # the first pixel of CIFAR-10


def test_the_checksum_of_the_files_changes_with_their_content(binary: Path) -> None:
    before = read_cifar10(binary).notes
    content = bytearray((binary / "test_batch.bin").read_bytes())
    content[100] ^= 1
    (binary / "test_batch.bin").write_bytes(content)
    assert read_cifar10(binary).notes != before


@pytest.mark.parametrize("name", ["data_batch_3.bin", "test_batch.bin", "batches.meta.txt"])
def test_a_missing_file_is_named(binary: Path, name: str) -> None:
    (binary / name).unlink()
    with pytest.raises(InputError, match=f"binary: CIFAR-10 is incomplete: {name} missing; download it again"):
        read_cifar10(binary)


def test_an_archive_without_its_last_file_is_refused(python: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "part.tar.gz", "w:gz") as archive:
        for name in ("batches.meta", "data_batch_1"):
            archive.add(python / name, f"cifar-10-batches-py/{name}")
    with pytest.raises(
        InputError, match="is incomplete: data_batch_2, data_batch_3, data_batch_4, data_batch_5, test_batch"
    ):
        read_cifar10(tmp_path / "part.tar.gz")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95, 0.9999])
def test_a_truncated_archive_is_refused(binary_archive: Path, tmp_path: Path, share: float) -> None:
    content = binary_archive.read_bytes()
    (tmp_path / "short.tar.gz").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=r"short\.tar\.gz: cannot be read to its end"):
        read_cifar10(tmp_path / "short.tar.gz")


def test_truncated_records_are_refused(binary: Path) -> None:
    content = (binary / "data_batch_2.bin").read_bytes()
    (binary / "data_batch_2.bin").write_bytes(content[:-1])
    with pytest.raises(
        InputError, match=r"data_batch_2\.bin has 30,729 bytes, not a multiple of the record size 3,073"
    ):
        read_cifar10(binary)
    (binary / "data_batch_2.bin").write_bytes(content[: 3 * 3073])
    with pytest.raises(InputError, match=r"is incomplete: its training batches hold \[10, 3, 10, 10, 10\] images"):
        read_cifar10(binary)
    (binary / "data_batch_2.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"data_batch_2\.bin has 0 bytes"):
        read_cifar10(binary)


def test_a_label_without_a_class_is_refused(binary: Path) -> None:
    content = bytearray((binary / "test_batch.bin").read_bytes())
    content[3073] = 10
    (binary / "test_batch.bin").write_bytes(content)
    with pytest.raises(InputError, match=r"test_batch\.bin has label 10, but there are 10 classes"):
        read_cifar10(binary)


@pytest.mark.parametrize("names", [b"", b"only one\n", b"twice\ntwice\n", b"\xff\xfe"])
def test_an_invalid_list_of_class_names_is_refused(binary: Path, names: bytes) -> None:
    (binary / "batches.meta.txt").write_bytes(names)
    with pytest.raises(InputError, match=r"batches\.meta\.txt: not a list of"):
        read_cifar10(binary)


class _Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def test_a_pickle_that_calls_a_function_is_refused_without_the_call(python: Path, tmp_path: Path) -> None:
    folder = tmp_path / "created by the pickle"
    content = pickle.dumps({b"data": _Call(os.mkdir, str(folder))}, protocol=2)
    (python / "data_batch_1").write_bytes(content)
    with pytest.raises(
        InputError, match=r"data_batch_1 asks to call \w+\.mkdir, which CIFAR does not need, so the file was not loaded"
    ):
        read_cifar10(python)
    assert not folder.exists()
    pickle.loads(content)
    assert folder.exists()  # `pickle.loads`, in contrast, calls the function


@pytest.mark.parametrize(
    "value",
    [_Call(eval, "1"), _Call(getattr, "x", "upper"), np.array([object()]), np.zeros(3), _Call("".encode, "zlib")],
    ids=["eval", "getattr", "array of objects", "array of floats", "method"],
)
def test_a_pickle_may_hold_only_plain_data(python: Path, value: Any) -> None:
    (python / "test_batch").write_bytes(pickle.dumps({b"data": value}, protocol=2))
    with pytest.raises(InputError, match="test_batch .*so the file was not loaded"):
        read_cifar10(python)


def test_bytes_are_decoded_only_from_latin_1_as_python_pickles_them(python: Path) -> None:
    (python / "test_batch").write_bytes(b"\x80\x02c_codecs\nencode\nX\x01\0\0\0aX\x05\0\0\0utf-7\x86R.")
    with pytest.raises(InputError, match="asks for the encoding 'utf-7'"):
        read_cifar10(python)


def test_arrays_pickled_by_numpy_1_and_by_numpy_2_are_read(python: Path) -> None:
    for path in python.glob("*_batch*"):
        content = path.read_bytes()
        assert b"numpy._core.multiarray" in content or b"numpy.core.multiarray" in content
        path.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    old = read_cifar10(python)
    for path in python.glob("*_batch*"):
        path.write_bytes(path.read_bytes().replace(b"numpy.core.multiarray", b"numpy._core.multiarray"))
    assert read_cifar10(python).train.fingerprint == old.train.fingerprint


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, 2], "not a CIFAR file but a pickled list"),
        ({b"data": np.zeros((2, 7), np.uint8), b"labels": [0, 1]}, "its data is not rows of 3,072 bytes"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, "has 2 images and 1 labels"),
        (
            {b"data": np.zeros((1, 3072), np.uint8), b"labels": ["0"]},
            "its labels are not a list of small integers",
        ),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [-1]}, "its labels are not"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [11]}, "has label 11, but there are 10 classes"),
        ({b"labels": [0]}, "its data is not rows"),
    ],
)
def test_a_pickle_of_another_form_is_refused(python: Path, values: Any, message: str) -> None:
    (python / "test_batch").write_bytes(pickle.dumps(values, protocol=2))
    with pytest.raises(InputError, match=f"test_batch.*{message}"):
        read_cifar10(python)


@pytest.mark.parametrize("content", [b"", b"text", b"\x80\x02]", b"\x80\x02K"])
def test_a_damaged_pickle_is_refused(python: Path, content: bytes) -> None:
    (python / "data_batch_5").write_bytes(content)
    with pytest.raises(InputError, match=r"data_batch_5: not a (readable )?CIFAR file"):
        read_cifar10(python)


def test_a_pickle_without_class_names_is_refused(python: Path) -> None:
    (python / "batches.meta").write_bytes(pickle.dumps({b"label_names": 3}, protocol=2))
    with pytest.raises(InputError, match=r"batches\.meta: no list of class names"):
        read_cifar10(python)
