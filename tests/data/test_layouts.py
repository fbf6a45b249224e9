"""The layouts and formats of the table in docs/your-own-images.md: each is written here, and read."""

import gzip
import re
import shutil
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas
import pytest
from cifar100_files import archived as archived_folder
from cifar100_files import write_python
from image_folders import write_images
from PIL import Image

from onecycle.data import Dataset, load_dataset
from onecycle.data.image_files import to_square

PAGE = Path(__file__).parents[2] / "docs" / "your-own-images.md"
CLASSES = ("ant", "bee", "cat")


def write_splits(root: Path, *splits: str, each: int = 5) -> Path:
    for seed, split in enumerate(splits):
        write_images(root / split, dict.fromkeys(CLASSES, each), seed=seed)
    return root


def in_deeper_folders(root: Path) -> Path:
    for path in sorted(write_splits(root, "").glob("*/*3.png")):
        (path.parent / "2026" / "june").mkdir(parents=True)
        path.rename(path.parent / "2026" / "june" / path.name)
    return root


def archived(root: Path) -> Path:
    return Path(shutil.make_archive(str(root), "zip", write_splits(root, "train", "val")))


def with_table(root: Path) -> Path:
    rows = []
    for path in sorted(write_splits(root, "").glob("*/*.png")):
        name = f"{path.parent.name}-{path.name}"
        rows.append({"file": name, "label": path.parent.name})
        path.rename(root / name)
    for name in CLASSES:
        (root / name).rmdir()
    pandas.DataFrame(rows).to_csv(root / "labels.csv", index=False)
    return root


def with_ids(root: Path) -> Path:
    rows = []
    for number, path in enumerate(sorted(write_splits(root, "train").glob("train/*/*.png")), start=1):
        rows.append({"id": number, "label": path.parent.name})
        path.rename(root / "train" / f"{number}.png")
    for name in CLASSES:
        (root / "train" / name).rmdir()
    pandas.DataFrame(rows).to_csv(root / "trainLabels.csv", index=False)
    return root


LAYOUTS: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "class folders": (lambda root: write_splits(root, ""), ["train", "test"]),
    "`train/` and `valid/`": (lambda root: write_splits(root, "train", "valid"), ["train", "validation"]),
    "`train/`, `val/` and `test/`": (
        lambda root: write_splits(root, "train", "val", "test"),
        ["train", "validation", "test"],
    ),
    "`Training/` and `Testing/`": (lambda root: write_splits(root, "Training", "Testing"), ["train", "test"]),
    "folders inside class folders": (in_deeper_folders, ["train", "test"]),
    "a .zip or .tar of these": (archived, ["train", "validation"]),
    "`labels.csv` beside the images": (with_table, ["train", "test"]),
    "`trainLabels.csv` with ids": (with_ids, ["train", "test"]),
}


NUMBERS = ("0", "1", "2")
SHAPE = (32, 32)  # of CIFAR-100


def packed(gray: bool = False) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images, uint8 `[N,32,32]` or `[N,32,32,3]`, and the numbers of their classes, by split."""
    shape = SHAPE if gray else (*SHAPE, 3)
    rng = np.random.default_rng(0)
    return {
        split: (rng.integers(0, 256, (count, *shape), np.uint8), np.arange(count) % len(CLASSES))
        for split, count in (("train", 9), ("test", 6))
    }


def as_parquet(root: Path) -> Path:
    return Path(shutil.copytree(Path(__file__).parent / "readers" / "files" / "datasets-5.2.0", root))


def as_npz(root: Path, *, gray: bool, images: str, labels: str) -> Path:
    arrays = {}
    for split, (pixels, numbers) in packed(gray).items():
        arrays |= {images.format(split): pixels, labels.format(split): numbers}
    root.mkdir()
    np.savez_compressed(root / "set.npz", **arrays)
    return root / "set.npz"


def as_idx(root: Path) -> Path:
    root.mkdir()
    for split, arrays in packed(gray=True).items():
        stem = "train" if split == "train" else "t10k"
        for name, values in zip(("images-idx3", "labels-idx1"), arrays, strict=True):
            header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
            (root / f"{stem}-{name}-ubyte.gz").write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))
    return root


def as_cifar100(root: Path) -> Path:
    pixels, numbers = ({split: arrays[part] for split, arrays in packed().items()} for part in range(2))
    return archived_folder(write_python(root / "cifar-100-python", pixels, numbers, fine=CLASSES))


def of_datasets() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What the files hold that `datasets` wrote; see their README."""
    pixels = np.stack([np.random.default_rng(n).integers(0, 256, (6, 7, 3), np.uint8) for n in range(10)])
    labels = np.array([0, 1, 0, 1, 1, 0, 0, 1, 1, 0])
    parts = {"train": slice(0, 6), "validation": slice(6, 8), "test": slice(8, 10)}
    return {split: (pixels[part], labels[part]) for split, part in parts.items()}


Packed = dict[str, tuple[np.ndarray, np.ndarray]]
FORMATS: dict[str, tuple[Callable[[Path], Path], Packed, tuple[str, ...]]] = {
    "`train-00000-of-00001.parquet`": (as_parquet, of_datasets(), ("cat", "dog")),
    "MedMNIST's .npz": (
        partial(as_npz, gray=False, images="{}_images", labels="{}_labels"),
        packed(),
        NUMBERS,
    ),
    "Keras' .npz": (partial(as_npz, gray=True, images="x_{}", labels="y_{}"), packed(gray=True), NUMBERS),
    "IDX files of MNIST": (as_idx, packed(gray=True), NUMBERS),
    "CIFAR-100's archives": (as_cifar100, packed(), CLASSES),
}


def labeled_pixels(data: Dataset) -> set[tuple[str, bytes]]:
    return {
        (images.classes[label], pixels.tobytes())
        for images in data.by_split.values()
        for pixels, label in zip(images.images, images.labels, strict=True)
    }


def test_the_table_has_all_layouts_that_are_tested() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## Layouts, side by side")[2].partition("\n## ")[0]
    assert re.findall(r"^\| (.+?) \|", table, flags=re.MULTILINE)[1:] == [*LAYOUTS, *FORMATS]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_the_table_is_read(tmp_path: Path, layout: str) -> None:
    write, splits = LAYOUTS[layout]
    found = load_dataset(write(tmp_path / "photos"))
    assert list(found.by_split) == splits
    plain = write_splits(tmp_path / "plain", *map(str, range(1 if "drawn" in " ".join(found.notes) else len(splits))))
    assert labeled_pixels(found) == {
        (path.parent.name, to_square(Image.open(path), 32).tobytes()) for path in plain.glob("*/*/*.png")
    }


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_of_the_table_is_read(tmp_path: Path, format: str) -> None:
    write, expected, classes = FORMATS[format]
    found = load_dataset(write(tmp_path / "set"))
    assert list(found.by_split) == list(expected)
    for split, images in found.by_split.items():
        pixels, labels = expected[split]
        assert images.classes == classes
        assert images.labels.tolist() == labels.tolist()
        assert (images.images == [to_square(Image.fromarray(image), 32) for image in pixels]).all()
