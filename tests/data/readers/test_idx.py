import gzip
import hashlib
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from onecycle.cli import main
from onecycle.core.cache import cache_folder
from onecycle.core.errors import InputError
from onecycle.data import load_dataset
from onecycle.data.check import check
from onecycle.data.image_files import to_square
from onecycle.data.readers import entries, idx, registry
from onecycle.data.readers.download import RemoteFile

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (10, 8, 7), np.uint8)
LABELS = np.array([3, 1, 3, 1, 3, 1, 1, 3, 3, 1], np.uint8)
TRAIN, TEST = slice(0, 6), slice(6, 10)
FOUR = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx_bytes(values: NDArray[np.uint8]) -> bytes:
    """The content of an IDX file by its specification: two zeros, the type, the dimensions, the sizes, the data."""
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def write(folder: Path, name: str, values: NDArray[np.uint8]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = idx_bytes(values)
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder / name


def write_four(folder: Path, pattern: str = "{}", images: NDArray[np.uint8] = IMAGES) -> Path:
    """Write the four files of a data set. `pattern` makes their names of the official ones."""
    for name, values in zip(FOUR, (images[TRAIN], LABELS[TRAIN], images[TEST], LABELS[TEST]), strict=True):
        write(folder, pattern.format(name), values)
    return folder


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name,
        lambda name: f"{name}.gz",
        lambda name: name.replace("-idx", ".idx"),
        lambda name: f"{name.replace('-idx', '.idx')}.gz",
        lambda name: f"emnist-letters-{name.replace('t10k', 'test')}.gz",
    ],
)
@pytest.mark.parametrize("around", ["", "MNIST/raw"])
def test_every_form_holds_the_same_images_and_labels(rename: Callable[[str], str], around: str, tmp_path: Path) -> None:
    write_four(tmp_path / "set" / around)
    for path in sorted((tmp_path / "set" / around).iterdir()):
        content = path.read_bytes()
        path.unlink()
        new = path.with_name(rename(path.name))
        new.write_bytes(gzip.compress(content) if new.suffix == ".gz" else content)
    found = load_dataset(tmp_path / "set", input_size=8)
    assert (found.name, found.source) == ("set", f"IDX files from {tmp_path / 'set' / around}".rstrip("/"))
    for images, part in ((found.train, TRAIN), (found.evaluation, TEST)):
        assert images.classes == ("1", "3")
        assert [images.classes[label] for label in images.labels] == [str(label) for label in LABELS[part]]
        assert (images.images == [to_square(Image.fromarray(image), 8) for image in IMAGES[part]]).all()
    assert found.train.names
    assert found.train.names[2] == f"{rename(FOUR[0])}, row 2"


def test_check_names_the_format_and_what_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_four(tmp_path)
    write_four(tmp_path, "{}.gz")
    (tmp_path / "readme.txt").touch()
    assert main(["check", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"IDX files from {tmp_path}"
    assert any(line.startswith("  4 files with a compressed copy (") for line in lines)
    assert "  1 file of another kind (readme.txt)" in lines
    assert check(tmp_path).counts == {"train": (3, 3), "test": (2, 2)}


def test_training_files_alone_give_a_fifth_of_their_images_for_testing(tmp_path: Path) -> None:
    write(tmp_path, FOUR[0], IMAGES)
    write(tmp_path, FOUR[1], LABELS)
    found = load_dataset(tmp_path)
    assert (len(found.train), len(found.evaluation)) == (8, 2)


def _replaced(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            _replaced(FOUR[0], lambda content: content[:-1]),
            "does not hold the 6 entries that its header claims; get it again",
        ),
        (_replaced(FOUR[0], lambda content: content + b"?"), "does not hold the 6 entries that its header claims"),
        (_replaced(FOUR[1], lambda content: content[:-1]), "does not hold the 6 entries that its header claims"),
        (_replaced(FOUR[0], lambda content: content[:10]), "not an IDX file with images: it starts with 00 00 08 03"),
        (
            _replaced(FOUR[0], lambda content: b""),
            "not an IDX file with images: it starts with nothing, not 00 00 08 03",
        ),
        (_replaced(FOUR[0], lambda content: b"\1" + content[1:]), "it starts with 01 00 08 03, not 00 00 08 03"),
        (_replaced(FOUR[0], lambda content: b"\0\0\x0d" + content[3:]), "it starts with 00 00 0d 03"),  # floats
        (_replaced(FOUR[1], lambda content: content[:3] + b"\3" + content[4:]), "not an IDX file with labels"),
        (
            _replaced(FOUR[0], lambda content: content[:4] + b"\0\0\0\7" + content[8:]),
            "has 7 images, but .* has 6 labels",
        ),
        (_replaced(FOUR[0], lambda content: content[:4] + b"\xff\xff\xff\xff" + content[8:]), "may be a zip bomb"),
        (_replaced(FOUR[0], lambda content: content[:8] + b"\0\0\0\0" + content[12:]), "has images of 7×0 pixels"),
        (
            _replaced(FOUR[3], lambda content: content[:-1] + b"\7"),
            f"{FOUR[2]}, row 3 has the label 7, which no image of",
        ),
        (lambda folder: (folder / FOUR[1]).unlink(), f"{FOUR[0]} is there, but not the labels of train; add the file"),
        (lambda folder: (folder / FOUR[2]).unlink(), f"{FOUR[3]} is there, but not the images of test"),
        (lambda folder: [(folder / name).unlink() for name in FOUR[:2]], "has no training images"),
        (partial(write_four, pattern="kmnist-{}"), r"IDX files of several data sets \('', 'kmnist'\); move each data"),
    ],
)
def test_damaged_files_are_refused_in_one_line(
    damage: Callable[[Path], object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_four(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=message) as refused:
        load_dataset(tmp_path)
    assert str(refused.value).startswith(str(tmp_path)) and "\n" not in str(refused.value)
    assert main(["check", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_truncated_gzip_files_are_refused(share: float, tmp_path: Path) -> None:
    write_four(tmp_path, "{}.gz")
    path = tmp_path / f"{FOUR[0]}.gz"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match=f"^{path}: cannot be read to its end"):
        load_dataset(tmp_path)


def test_a_file_that_unpacks_to_far_more_than_its_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_four(tmp_path, "{}.gz", np.zeros((10, 500, 500), np.uint8))
    monkeypatch.setattr(entries, "EXPANSION", (100, 0))
    with pytest.raises(InputError, match="may be a zip bomb"):
        load_dataset(tmp_path)


def test_one_file_is_refused_with_the_folder_to_give(tmp_path: Path) -> None:
    write_four(tmp_path, "{}.gz")
    path = tmp_path / f"{FOUR[0]}.gz"
    with pytest.raises(InputError, match=f"^{path}: this is one of the IDX files .*; give their folder, {tmp_path}$"):
        load_dataset(path)


def test_mnist_and_fashion_mnist_in_one_folder_are_named_with_the_way_out(tmp_path: Path) -> None:
    for name in ("MNIST", "FashionMNIST"):
        write_four(tmp_path / name / "raw")
    with pytest.raises(InputError) as refused:
        check(tmp_path)
    assert "IDX files (FashionMNIST/raw), IDX files (MNIST/raw); give the path of one of them" in str(refused.value)


def test_idx_files_beside_class_folders_are_refused(tmp_path: Path, image_folder: Path) -> None:
    write_four(tmp_path)
    shutil.copytree(image_folder / "train", tmp_path / "photos")
    with pytest.raises(InputError, match=r"holds several data sets: IDX files \(in the folder itself\), image files"):
        load_dataset(tmp_path)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve the files in `folder`. Yields the address and a list of the files that were requested."""
    requested: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            requested.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requested
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_data_set_is_downloaded_by_name_verified_and_found_again(
    nowhere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = RNG.integers(0, 256, (20, 8, 7), np.uint8)
    labels = np.repeat(np.arange(10, dtype=np.uint8), 2)
    names = [f"{name}.gz" for name in FOUR]
    for name, values in zip(names, (pixels, labels, pixels, labels), strict=True):
        write(tmp_path / "web", name, values)
    with served(tmp_path / "web") as (url, requested):
        contents = {name: (tmp_path / "web" / name).read_bytes() for name in names}
        files = tuple(
            RemoteFile(url=f"{url}/{name}", size=len(content), sha256=hashlib.sha256(content).hexdigest())
            for name, content in contents.items()
        )
        known = replace(idx.FASHION_MNIST, files=files)
        monkeypatch.setattr(idx, "KNOWN", (known,))
        named = replace(registry.NAMED["fashion-mnist"], files=files, find=known.find, read=known.read)
        monkeypatch.setitem(registry.NAMED, "fashion-mnist", named)  # type: ignore[arg-type]
        (tmp_path / "web" / names[3]).rename(tmp_path / "web" / "hidden")
        with pytest.raises(InputError, match=r"^Fashion-MNIST was not found, and .*File not found.*use --data digits"):
            load_dataset("fashion-mnist")
        (tmp_path / "web" / "hidden").rename(tmp_path / "web" / names[3])
        found = load_dataset("fashion-mnist")
        assert [path.strip("/") for path in requested if "404" not in path].count(names[0]) == 1  # not fetched again
    assert (found.name, found.train.classes[9]) == ("fashion-mnist", "Ankle boot")
    assert found.source == f"Fashion-MNIST, IDX files from {cache_folder() / 'fashion-mnist'}"
    assert not any(note.startswith("Unverified") for note in found.notes)
    again = load_dataset("fashion-mnist")  # the server has stopped
    assert again.fingerprint == found.fingerprint
    assert load_dataset(cache_folder() / "fashion-mnist").train.classes == found.train.classes


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw")])
def test_the_folders_of_torchvision_are_found_by_name_and_noted_as_unverified(
    nowhere: None, name: str, folder: str
) -> None:
    labels = np.repeat(np.arange(10, dtype=np.uint8), 2)
    for four, values in zip(FOUR, (np.tile(IMAGES, (2, 1, 1)), labels) * 2, strict=True):
        write(Path("data") / folder, four, values)
    found = load_dataset(name)
    assert (found.name, len(found.train.classes)) == (name, 10)
    assert found.notes[0].startswith(f"Unverified: data/{folder} does not have the official files of ")


@pytest.mark.parametrize("known", idx.KNOWN)
def test_the_official_files_are_four_with_checksums(known: idx.KnownFiles) -> None:
    assert [file.name.removesuffix(".gz") for file in known.files] == list(FOUR)
    assert all(len(file.sha256) == 64 and file.size > 1000 for file in known.files)
    assert len(set(known.classes)) == 10
