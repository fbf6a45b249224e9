"""Reports of a run on image files name the files."""

import csv
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from reported_runs import NAMES_OF_FILES

from onecycle import report
from onecycle.cli import main
from onecycle.core.metrics import probabilities_of
from onecycle.data import ImageSet, load_dataset
from onecycle.data.readers.image_names import ImageNames
from onecycle.report import page_galleries
from onecycle.report.comparison import Comparison
from onecycle.report.page import Page
from onecycle.report.page_galleries import Gallery
from onecycle.run import predictions_table
from onecycle.storage.run_folder import RunFolder

GALLERIES = [
    page_galleries.misclassified,
    page_galleries.label_issues,
    page_galleries.train_label_issues,
    page_galleries.duplicates,
]


@pytest.fixture
def copied(of_files: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of the run, which a test may change."""
    shutil.copytree(of_files.path, tmp_path / "copy")
    return RunFolder(tmp_path / "copy")


def table_of(run: RunFolder) -> list[dict[str, str]]:
    with run.predictions_table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("gallery_of", GALLERIES)
def test_every_list_names_files_that_exist_and_have_the_label(
    of_files: RunFolder, gallery_of: Callable[[Page], Gallery | None]
) -> None:
    page = Page(of_files)
    gallery = gallery_of(page)
    assert gallery is not None and gallery.tiles
    data = Path(page.config.data)
    for tile in gallery.tiles:
        assert (data / tile.name).is_file() and (data / tile.name).parent.name == page.classes[tile.label]
    named = [name for entry in gallery.listed for name in entry.split(" ~ ")]
    assert all((data / name).is_file() for name in named)
    assert [tile.name for tile in gallery.tiles] == named[: len(gallery.tiles)] or not named


def test_the_page_has_names_instead_of_numbers_and_escapes_them(of_files: RunFolder) -> None:
    html = of_files.report.read_text()
    assert "<b>&amp;.png" not in html
    words = unescape(re.sub(r"<[^>]+>", " ", html))
    assert {f"train/7/{name}" for name in NAMES_OF_FILES} <= set(words.split())
    assert not re.search(r"(test|training) image \d|[Ii]mage numbers", words)


def test_a_comparison_names_files_even_if_one_run_is_too_old_to_name_them(
    of_files: RunFolder, copied: RunFolder
) -> None:
    copied.image_names.unlink()
    arrays = copied.read_arrays(copied.predictions)
    copied.write_arrays(copied.predictions, logits=-arrays["logits"], labels=arrays["labels"])
    for runs in ([of_files.path, copied.path], [copied.path, of_files.path]):
        _, gallery = Comparison(runs).disagreements()
        assert gallery is not None and all(tile.name.startswith("test/") for tile in gallery.tiles)


def test_a_run_without_names_has_numbers(copied: RunFolder) -> None:
    copied.image_names.unlink()
    words = re.sub(r"<[^>]+>", " ", report.write(copied).read_text())
    assert re.search(r"test image \d", words) and re.search(r"training image \d", words)
    assert "Image numbers start at 0" in words


def test_an_older_run_gets_names_with_its_interpretation(copied: RunFolder, of_files: RunFolder) -> None:
    copied.image_names.unlink()
    copied.interpretation.unlink()
    assert main(["report", "--run", str(copied.path)]) == 0
    assert copied.image_names.read_bytes() == of_files.image_names.read_bytes()


@pytest.mark.parametrize(
    "names",
    [
        {"train": np.array([97, 0], np.uint8)},
        {"evaluated": np.array([0xFF] + [0] * 20, np.uint8)},
        {"evaluated": np.array(["a"] * 20)},
        {"evaluated": np.zeros((20, 1), np.uint8)},
        {"others": np.zeros(20, np.uint8)},
    ],
    ids=["too few", "not UTF-8", "text", "two dimensions", "unknown"],
)
def test_names_that_are_damaged_are_refused(
    copied: RunFolder, capsys: pytest.CaptureFixture[str], names: dict[str, NDArray[Any]]
) -> None:
    copied.write_arrays(copied.image_names, **{**copied.read_arrays(copied.image_names), **names})
    assert main(["report", "--run", str(copied.path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{copied.image_names} is damaged" in line and line.isprintable()


def test_the_table_of_predictions_agrees_with_the_logits(of_files: RunFolder) -> None:
    logits = of_files.read_predictions().logits
    dataset = load_dataset(of_files.read_config().data)
    rows = table_of(of_files)
    assert list(rows[0])[:5] == ["file", "label", "predicted", "probability", "probability_0"]
    assert len(rows) == len(logits) == 20
    for row, shares, label in zip(rows, probabilities_of(logits), dataset.evaluation.labels, strict=True):
        assert (Path(of_files.read_config().data) / row["file"]).is_file()
        assert row["label"] == dataset.evaluation.classes[label] == Path(row["file"]).parent.name
        assert row["predicted"] == dataset.evaluation.classes[shares.argmax()]
        assert [float(row[f"probability_{name}"]) for name in "0123456789"] == pytest.approx(shares, abs=1e-6)
        assert float(row["probability"]) == pytest.approx(shares.max(), abs=1e-6)


def test_the_table_has_names_as_they_are(tmp_path: Path) -> None:
    dataset = load_dataset("digits", limit=10)
    names = ["=1+1.png", 'a,"b".png', "line\nbreak.png", "carriage\rreturn.png", "caf\udce9.png", *map(str, range(5))]
    named = replace(dataset, evaluation=replace(dataset.evaluation, names=ImageNames.of(names)))
    run = RunFolder(tmp_path)
    predictions_table.write(run, np.zeros((10, 10), np.float32), named)
    assert [row["file"] for row in table_of(run)] == [*names[:4], r"caf\udce9.png", *names[5:]]


def test_images_without_names_have_their_number_in_the_table(runs: tuple[RunFolder, RunFolder]) -> None:
    assert [row["file"] for row in table_of(runs[0])] == [f"test image {number}" for number in range(300)]


def test_a_table_that_would_be_huge_has_only_the_probability_of_the_predicted_class(
    tiny: tuple[ImageSet, ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions_table, "MOST_PROBABILITIES", 199)
    dataset = replace(load_dataset("digits"), evaluation=tiny[1])
    run = RunFolder(tmp_path)
    predictions_table.write(run, np.eye(20, 10, dtype=np.float32), dataset)
    rows = table_of(run)
    assert [list(row) for row in rows] == [["file", "label", "predicted", "probability"]] * 20


def test_the_report_names_only_the_first_images_of_a_very_long_list(
    copied: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_galleries, "MOST_NAMED", 7)
    words = re.sub(r"<[^>]+>", " ", report.write(copied).read_text())
    assert "The first 7 of 50 images, most suspicious first" in words
