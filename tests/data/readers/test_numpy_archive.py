import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from onecycle.cli import main
from onecycle.core.errors import InputError
from onecycle.data import load_dataset
from onecycle.data.check import check
from onecycle.data.image_files import to_square
from onecycle.data.readers import entries

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (10, 12, 9), np.uint8)
COLOR = RNG.integers(0, 256, (10, 12, 9, 3), np.uint8)
LABELS = np.array([0, 1, 2] * 3 + [0], np.uint8)


def medmnist(images: NDArray[Any] = GRAY, labels: NDArray[Any] = LABELS) -> dict[str, NDArray[Any]]:
    """The arrays of a MedMNIST file: the labels are `[N,1]`."""
    parts = {"train": slice(0, 4), "val": slice(4, 7), "test": slice(7, 10)}
    images_of = {f"{split}_images": images[part] for split, part in parts.items()}
    return images_of | {f"{split}_labels": labels[part, None] for split, part in parts.items()}


def keras(images: NDArray[Any] = GRAY, labels: NDArray[Any] = LABELS) -> dict[str, NDArray[Any]]:
    """The arrays of Keras' mnist.npz."""
    return {"x_train": images[:6], "y_train": labels[:6], "x_test": images[6:], "y_test": labels[6:]}


def expected(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    return np.stack([to_square(Image.fromarray(image), size) for image in images])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("images", [GRAY, COLOR, GRAY[..., None]], ids=["gray", "color", "one channel"])
def test_medmnist_files_hold_the_same_images_and_labels(
    images: NDArray[np.uint8], save: Callable[..., None], tmp_path: Path
) -> None:
    save(tmp_path / "pathmnist.npz", **medmnist(images))
    found = load_dataset(tmp_path / "pathmnist.npz", input_size=9)
    assert (found.name, found.source) == ("pathmnist", f"NumPy archive {tmp_path / 'pathmnist.npz'}")
    assert found.validation and found.evaluated_on == "test"
    pixels = images.reshape(10, 12, 9, -1)
    pixels = np.broadcast_to(pixels, (10, 12, 9, 3))
    for of_split, part in (
        (found.train, slice(0, 4)),
        (found.validation, slice(4, 7)),
        (found.evaluation, slice(7, 10)),
    ):
        assert of_split.classes == ("0", "1", "2")
        assert of_split.labels.tolist() == LABELS[part].tolist()
        assert (of_split.images == expected(np.ascontiguousarray(pixels[part]), 9)).all()
    assert found.train.names
    assert found.train.names[3] == "train_images, row 3"


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.dtype(">i4")])
def test_the_archives_of_keras_are_read(dtype: np.dtype[Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "mnist.npz", **keras(labels=LABELS.astype(dtype)))
    found = load_dataset(tmp_path)  # a folder with one archive
    assert (len(found.train), len(found.evaluation), found.validation) == (6, 4, None)
    assert found.evaluation.labels.tolist() == LABELS[6:].tolist()
    assert (found.train.images == expected(GRAY[:6], 32)).all()


def test_images_of_the_input_size_keep_their_pixels(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (10, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "x.npz", **keras(pixels))
    found = load_dataset(tmp_path / "x.npz")
    assert (found.train.images == pixels[:6]).all() and (found.evaluation.images == pixels[6:]).all()


def test_check_names_the_format_and_the_arrays_that_are_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "x.npz", **keras(), names=np.array(["a", "b", "c"]))
    assert main(["check", str(tmp_path / "x.npz")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"NumPy archive {tmp_path / 'x.npz'}"
    assert "  1 array of another name (names)" in lines
    assert check(tmp_path / "x.npz").counts == {"train": (2, 2, 2), "test": (2, 1, 1)}


def test_an_archive_without_test_images_gives_a_fifth_of_its_images_for_testing(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x_train=GRAY, y_train=LABELS)
    found = load_dataset(tmp_path / "x.npz")
    assert found.drawn and all(name.startswith("x_train, row ") for name in found.drawn)
    assert len(found.train) + len(found.evaluation) == 10


def test_the_classes_are_the_labels_of_the_training_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **keras(labels=np.array([5, 300] * 5)))
    found = load_dataset(tmp_path / "x.npz")
    assert found.train.classes == ("5", "300")
    assert found.evaluation.labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": GRAY / 255}, r"x_train is float64; pixels must be uint8, from 0 to 255: save \(255 \* x_train\)"),
        ({"x_train": GRAY.astype(np.int16)}, r"x_train is int16; .* save x_train.astype\('uint8'\)"),
        (
            {"x_train": np.array([object()] * 6)},
            "x_train holds Python objects, which may run code, so it was not loaded",
        ),
        ({"y_train": np.array(["a"] * 6, object)}, "y_train holds Python objects"),
        ({"more": np.array([object()])}, "more holds Python objects"),
        (
            {"x_train": GRAY.reshape(10, -1)},
            r"x_train has the shape \(10, 108\); images must be \[N,H,W\] or \[N,H,W,3\]",
        ),
        ({"x_train": COLOR.transpose(0, 3, 1, 2)}, "x_train (has the shape|is in Fortran order)"),
        ({"x_train": np.ascontiguousarray(COLOR.transpose(0, 3, 1, 2))}, r"x_train has the shape \(10, 3, 12, 9\)"),
        ({"x_train": np.asfortranarray(GRAY)}, r"x_train is in Fortran order; save np.ascontiguousarray\(x_train\)"),
        ({"x_train": GRAY[:6, :, :1]}, "x_train has images of 1×12 pixels; they must have at least 2 pixels"),
        ({"x_train": GRAY[:5]}, "x_train has 5 images, but y_train has 6 labels"),
        ({"x_train": GRAY[:0], "y_train": LABELS[:0]}, "train has no images"),
        (
            {"y_train": LABELS[:6] / 1},
            r"y_train is float64; labels must be integers, .* save y_train.astype\('int64'\)",
        ),
        ({"y_train": np.eye(3, dtype=int)[LABELS[:6]]}, r"y_train has the shape \(6, 3\); each image needs one label"),
        ({"y_train": LABELS[:6].astype(int) - 1}, "x_train, row 0 has the label -1, which stands for an unknown class"),
        ({"y_train": LABELS[:6] * 0}, "x_test, row 1 has the label 1, which no image of train has"),
        ({"y_train": LABELS[:6] * 0, "y_test": LABELS[6:] * 0}, "there is only one class, '0'"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused_in_one_line(
    arrays: dict[str, NDArray[Any]], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "x.npz", **(keras() | arrays))
    with pytest.raises(InputError, match=f"^{tmp_path / 'x.npz'}: {message}") as refused:
        load_dataset(tmp_path / "x.npz")
    assert "\n" not in str(refused.value)
    assert main(["check", str(tmp_path / "x.npz")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("x_test", "y_test"), "has no training images; it must have arrays called train_images and .* x_test, y_test"),
        (("x_train", "x_test", "y_test"), "has x_train, but no labels beside it"),
        (("y_train",), "has y_train, but no images beside it"),
        ((), "holds no data that is read"),
    ],
)
def test_missing_arrays_are_named(names: tuple[str, ...], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **{name: keras()[name] for name in names})
    with pytest.raises(InputError, match=message):
        load_dataset(tmp_path / "x.npz")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    np.savez_compressed(tmp_path / "x.npz", **keras(RNG.integers(0, 256, (10, 40, 40), np.uint8)))
    return tmp_path / "x.npz"


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_a_truncated_archive_is_refused(archive: Path, share: float) -> None:
    content = archive.read_bytes()
    archive.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=f"^{archive}: cannot be read to its end"):
        load_dataset(archive)


def test_changed_pixels_are_noticed_by_the_checksum(archive: Path) -> None:
    np.savez(archive, **keras())
    content = bytearray(archive.read_bytes())
    content[content.index(GRAY[:6].tobytes()) + 500] ^= 1
    archive.write_bytes(content)
    with pytest.raises(InputError, match=f"^{archive}: cannot be read to its end .*CRC"):
        load_dataset(archive)


def rewritten(archive: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Write `archive` again, with the content of each member changed."""
    with zipfile.ZipFile(archive) as before:
        members = {name: change(name, before.read(name)) for name in before.namelist()}
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as after:
        for name, content in members.items():
            after.writestr(name, content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.replace(b"(6, 40, 40)", b"(9, 40, 40)"), "which is not the size of uint8 .9, 40, 40"),
        (lambda content: content.replace(b"(6, 40, 40)", b"(6,-40,-40)"), "which is not the size of uint8"),
        (lambda content: content.replace(b"(6, 40, 40)", b"(10**9,40,)"), "cannot be read to its end"),
        (lambda content: content + b"more", "which is not the size of uint8"),
        (lambda content: content[:-1], "which is not the size of uint8"),
        (lambda content: b"text" + content[4:], "cannot be read to its end"),
        (lambda content: content[:6] + b"\x03\x00" + content[8:], r"has the version \(3, 0\) of NumPy's format"),
        (lambda content: content.replace(b"|u1", b"|O8"), "cannot be read|holds Python objects"),
    ],
)
def test_a_header_that_lies_is_refused(archive: Path, change: Callable[[bytes], bytes], message: str) -> None:
    rewritten(archive, lambda name, content: change(content) if name == "x_train.npy" else content)
    with pytest.raises(InputError, match=message) as refused:
        load_dataset(archive)
    assert str(refused.value).startswith(f"{archive}: ") and "\n" not in str(refused.value)


def test_a_size_that_the_archive_claims_falsely_is_refused(archive: Path) -> None:
    content = archive.read_bytes()
    size = (6 * 40 * 40 + 128).to_bytes(4, "little")
    assert content.count(size) >= 1
    archive.write_bytes(content.replace(size, (6 * 40 * 40 + 129).to_bytes(4, "little")))
    with pytest.raises(InputError, match=f"^{archive}: "):
        load_dataset(archive)


def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(archive, **keras(np.zeros((10, 400, 400), np.uint8)))
    monkeypatch.setattr(entries, "EXPANSION", (100, 0))
    with pytest.raises(InputError, match="may be a zip bomb"):
        load_dataset(archive)


def test_an_archive_beside_class_folders_is_refused_with_the_way_out(archive: Path, image_folder: Path) -> None:
    (archive.parent / "photos").symlink_to(image_folder / "train")
    with pytest.raises(InputError, match=r"holds several data sets: a NumPy archive \(x\.npz\), image files"):
        check(archive.parent)
    assert len(load_dataset(archive).train) == 6


def test_two_archives_in_a_folder_are_named(archive: Path) -> None:
    np.savez(archive.with_name("y.npz"), **keras())
    with pytest.raises(
        InputError, match=r"a NumPy archive \(x\.npz\), a NumPy archive \(y\.npz\); give the path of one"
    ):
        load_dataset(archive.parent)
