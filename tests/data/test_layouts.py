"""The layouts and formats of the table in docs/your-own-images.md: each is written here, and read."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest
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


def labeled_pixels(data: Dataset) -> set[tuple[str, bytes]]:
    return {
        (images.classes[label], pixels.tobytes())
        for images in data.by_split.values()
        for pixels, label in zip(images.images, images.labels, strict=True)
    }


def test_the_table_has_all_layouts_that_are_tested() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## Layouts, side by side")[2].partition("\n## ")[0]
    assert re.findall(r"^\| (.+?) \|", table, flags=re.MULTILINE)[1:] == list(LAYOUTS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_the_table_is_read(tmp_path: Path, layout: str) -> None:
    write, splits = LAYOUTS[layout]
    found = load_dataset(write(tmp_path / "photos"))
    assert list(found.by_split) == splits
    plain = write_splits(tmp_path / "plain", *map(str, range(1 if "drawn" in " ".join(found.notes) else len(splits))))
    assert labeled_pixels(found) == {
        (path.parent.name, to_square(Image.open(path), 32).tobytes()) for path in plain.glob("*/*/*.png")
    }
