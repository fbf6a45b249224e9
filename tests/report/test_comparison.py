import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from onecycle.cli import main
from onecycle.core.errors import InputError
from onecycle.report.comparison import Comparison
from onecycle.storage.run_folder import RunFolder


def is_correct(run: RunFolder) -> np.ndarray:
    arrays = run.read_arrays(run.predictions)
    return arrays["logits"].argmax(axis=1) == arrays["labels"]


def test_the_same_run_twice_differs_by_exactly_zero(
    runs: tuple[RunFolder, RunFolder], copy_of: RunFolder, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    assert main(["compare", "--run", str(runs[0].path), str(copy_of.path), "--out", str(page)]) == 0
    words = " ".join(re.sub(r"<[^>]+>", " ", page.read_text()).split())
    assert "No difference: both classify the same images correctly" in words
    assert "B minus A 0 0 to 0 0 0 1 no difference" in words
    assert "Images on which the runs disagree None." in words


def test_a_difference_is_that_of_a_paired_test_on_the_images(runs: tuple[RunFolder, RunFolder]) -> None:
    first, second = map(is_correct, runs)
    ((name, found),) = Comparison([run.path for run in runs]).differences()
    only_second, only_first = int((second & ~first).sum()), int((first & ~second).sum())
    assert name == "B"
    assert found.mean == pytest.approx(second.mean() - first.mean())
    assert (found.only_ours, found.only_theirs) == (only_second, only_first)
    assert found.p_value == pytest.approx(binomtest(only_second, only_second + only_first).pvalue)
    assert found.significant == (found.p_value < 0.05)


def test_the_images_on_which_they_disagree_are_shown_with_their_pixels(runs: tuple[RunFolder, RunFolder]) -> None:
    count, gallery = Comparison([run.path for run in runs]).disagreements()
    assert count == int((is_correct(runs[0]) != is_correct(runs[1])).sum()) > 0
    assert gallery is not None and len(gallery.tiles) == min(count, 200)
    for tile in gallery.tiles:
        image = int(tile.name.split()[-1])
        assert is_correct(runs[0])[image] != is_correct(runs[1])[image]


def test_images_of_another_size_are_left_out(runs: tuple[RunFolder, RunFolder], copy_of: RunFolder) -> None:
    other = RunFolder(copy_of.path.parent / "other")
    shutil.copytree(runs[1].path, other.path)
    arrays = other.read_arrays(other.interpretation)
    for name, values in arrays.items():
        if name.endswith("images"):
            arrays[name] = np.zeros((*values.shape[:-3], 16, 16, 3), np.uint8)
    other.write_arrays(other.interpretation, **arrays)
    count, gallery = Comparison([copy_of.path, other.path]).disagreements()
    assert count == Comparison([run.path for run in runs]).disagreements()[0]
    assert gallery is not None and 0 < len(gallery.tiles) < count


def test_settings_that_differ_are_listed(runs: tuple[RunFolder, RunFolder]) -> None:
    assert Comparison([run.path for run in runs]).settings() == [("seed", [0, 1])]


def test_runs_on_other_images_are_not_compared_image_by_image(
    runs: tuple[RunFolder, RunFolder], copy_of: RunFolder, tmp_path: Path
) -> None:
    copy_of.interpretation.unlink()  # it refers to all images
    arrays = copy_of.read_arrays(copy_of.predictions)
    copy_of.write_arrays(copy_of.predictions, logits=arrays["logits"][:200], labels=arrays["labels"][:200])
    page = tmp_path / "page.html"
    assert main(["compare", "--run", str(runs[0].path), str(copy_of.path), "--out", str(page)]) == 0
    assert "not compared image by image" in page.read_text()


@pytest.mark.parametrize("count", [1, 7])
def test_two_to_six_runs_can_be_compared(
    runs: tuple[RunFolder, RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    paths = [str(runs[0].path)] * count
    assert main(["compare", "--run", *paths, "--out", str(tmp_path / "page.html")]) == 2
    assert capsys.readouterr().err == f"onecycle: {count} runs are given; give 2 to 6 run folders to compare\n"
    assert not (tmp_path / "page.html").exists()


def test_a_comparison_of_no_runs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="0 runs are given; give 2 to 6 run folders to compare"):
        Comparison([])
    monkeypatch.chdir(tmp_path)
    assert main(["compare"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--run requires an argument" in line
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_not_complete_is_refused(
    runs: tuple[RunFolder, RunFolder], copy_of: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_of.result.unlink()
    assert main(["compare", "--run", str(runs[0].path), str(copy_of.path)]) == 2
    assert "is not complete; resume it, or compare other runs" in capsys.readouterr().err
    shutil.rmtree(copy_of.path)
    assert main(["compare", "--run", str(runs[0].path), str(copy_of.path)]) == 2
    assert "there is no run folder" in capsys.readouterr().err
