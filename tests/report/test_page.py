import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from reported_runs import change_classes

from onecycle import report
from onecycle.cli import main
from onecycle.core.errors import InputError
from onecycle.core.statistics import accuracy_interval
from onecycle.report import page_galleries
from onecycle.report.page import Page, counted
from onecycle.report.templating import file_name
from onecycle.storage.records import FittedTemperature, Interpretation
from onecycle.storage.run_folder import RunFolder

BASELINE = Path(__file__).parents[2] / "results" / "baseline-cifar10"


def text_of(path: Path) -> str:
    """The text of the page, without styles, scripts and tags."""
    html = re.sub(r"<(style|script).*?</\1>", "", path.read_text(), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", html).replace("&nbsp;", " ").split())


def test_the_report_states_the_result_of_the_run(runs: tuple[RunFolder, RunFolder]) -> None:
    run = runs[0]
    result, words = run.read_result(), text_of(run.report)
    arrays = run.read_arrays(run.predictions)
    wrong = int((arrays["logits"].argmax(axis=1) != arrays["labels"]).sum())
    assert f"{result.eval_accuracy:.2%}".replace("%", " %") + " on the embedded digits" in words
    low, high = accuracy_interval(300 - wrong, 300)
    interval = f"{low:.2%} to {high:.2%}".replace("%", " %")
    assert (
        f"{300 - wrong} of 300 test images were classified correctly (95 % interval {interval}) after 2 epochs" in words
    )
    assert result.fingerprint in words and "seed 0" in words
    assert "onecycle train --config" in words
    assert f"{result.parameters:,} parameters" in words and "Layer by layer" in words


def test_it_is_written_again_from_the_folder_alone_to_the_same_bytes(copy_of: RunFolder) -> None:
    before = report.write(copy_of).read_bytes()
    copy_of.weights.unlink()
    copy_of.report.unlink()
    assert main(["report", "--run", str(copy_of.path)]) == 0
    assert copy_of.report.read_bytes() == before


def test_bytes_that_are_not_utf_8_are_shown_as_escapes(copy_of: RunFolder) -> None:
    recorded = copy_of.read_json(copy_of.environment)
    command = "onecycle train --data 'caf\udce9'"  # how Python represents the byte E9 of a file name
    copy_of.write_json(copy_of.environment, {**recorded, "command": command})
    moved = RunFolder(copy_of.path.rename(copy_of.path.with_name("runs-\udce9")))
    page = text_of(report.write(moved))
    assert r"onecycle train --data &#39;caf\udce9&#39;" in page and r"runs-\udce9/config.json" in page


def test_a_run_without_a_report_gets_one_later_with_the_same_interpretation(copy_of: RunFolder) -> None:
    before = copy_of.read_arrays(copy_of.interpretation)
    copy_of.interpretation.unlink()
    copy_of.report.unlink()
    assert main(["report", "--run", str(copy_of.path)]) == 0
    after = copy_of.read_arrays(copy_of.interpretation)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_run_without_weights_gets_a_page_without_interpretation(copy_of: RunFolder) -> None:
    copy_of.interpretation.unlink()
    copy_of.weights.unlink()
    assert main(["report", "--run", str(copy_of.path)]) == 0
    words = text_of(copy_of.report)
    assert "Calibration" in words and "Data issues" not in words


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_run_that_was_stopped_gets_a_page_that_says_so(copy_of: RunFolder, epochs: int) -> None:
    history = copy_of.read_history()
    for path in (copy_of.result, copy_of.predictions, copy_of.interpretation, copy_of.weights, copy_of.history):
        path.unlink()
    if epochs:
        copy_of.write_history(history[:epochs])
    copy_of.write_json(copy_of.stopped, {"why": "It was interrupted by SIGTERM."})
    words = text_of(report.write(copy_of))
    assert "This run is not complete" in words
    assert f"{epochs} of 2 epochs are done" in words and "It was interrupted by SIGTERM." in words
    assert ("Accuracy by epoch" in words) == bool(epochs)


def test_an_older_run_gets_a_page(tmp_path: Path) -> None:
    """An older run has older field names. It has no interpretation, no margins and no table of the network."""
    older = RunFolder(tmp_path / "run")
    shutil.copytree(BASELINE, older.path)
    for path in (older.interpretation, older.training_margins, older.network):
        path.unlink(missing_ok=True)
    assert main(["report", "--run", str(older.path)]) == 0
    accuracy = json.loads((BASELINE / "result.json").read_text())["test_accuracy"]
    assert f"{accuracy:.2%}".replace("%", " %") in text_of(older.report)


def test_without_its_data_a_run_gets_a_page_without_interpretation_and_a_message(
    copy_of: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_of.interpretation.unlink()
    copy_of.report.unlink()
    assert main(["report", "--run", str(copy_of.path), "--data", str(tmp_path / "nowhere")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "report.html is written without the interpretation: " in line and "nowhere" in line
    assert "Calibration" in text_of(copy_of.report)


def test_a_thousand_misclassified_images_fit_even_if_they_are_noise(copy_of: RunFolder) -> None:
    generator = np.random.default_rng(0)
    arrays = copy_of.read_arrays(copy_of.interpretation)
    noise = generator.integers(0, 256, (1000, 32, 32, 3), dtype=np.uint8)
    images = len(copy_of.read_arrays(copy_of.predictions)["labels"])
    arrays |= {
        "misclassified": generator.integers(0, images, 1000),
        "misclassified_images": noise,
        "heatmaps": generator.integers(0, 256, (1000, 4, 4), dtype=np.uint8),
        "label_issue_images": noise[:100],
        "train_label_issue_images": noise[:100],
        "train_label_issues": np.arange(2500) % 300,
        "train_label_issue_labels": np.zeros(2500, np.int64),
        "train_label_issue_margins": np.zeros(2500, np.float32),
        "train_label_issue_predictions": np.ones(100, np.int64),
        "label_issues": generator.integers(0, images, 500),
        "duplicate_images": np.stack([noise[:100], noise[100:200]], axis=1),
    }
    copy_of.write_arrays(copy_of.interpretation, **Interpretation.from_arrays(arrays).to_arrays())
    assert report.write(copy_of).stat().st_size < 3_000_000


def test_class_names_are_escaped(copy_of: RunFolder) -> None:
    arrays = copy_of.read_arrays(copy_of.misclassified)
    hostile = ['<script>alert("1")</script>', "$x$ & 'y'", *(f"class {number}" for number in range(8))]
    copy_of.write_arrays(copy_of.misclassified, **{**arrays, "classes": np.array(hostile)})
    page = report.write(copy_of).read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_long_class_names_do_not_fill_the_page(copy_of: RunFolder) -> None:
    arrays = copy_of.read_arrays(copy_of.misclassified)
    names = np.array([f"{number} " + "very long name " * 20 for number in range(10)])
    before = report.write(copy_of).stat().st_size
    copy_of.write_arrays(copy_of.misclassified, **{**arrays, "classes": names})
    assert report.write(copy_of).stat().st_size < before + 150_000


def test_a_confusion_matrix_of_a_hundred_classes_is_a_plot(copy_of: RunFolder) -> None:
    change_classes(copy_of, [f"c{n}" for n in range(100)])
    page = report.write(copy_of).read_text()
    assert 'class="matrix' not in page and "predicted as c" in page


def test_of_a_hundred_classes_the_worst_are_shown_and_the_others_folded(copy_of: RunFolder) -> None:
    change_classes(copy_of, [f"c{n}" for n in range(100)])
    shown, folded = Page(copy_of).worst_classes()
    recalls = [found.recall for _, found, _ in (*shown, *folded)]
    assert (len(shown), len(folded)) == (10, 90)
    known = [recall for recall in recalls if recall is not None]
    assert known == sorted(known) and set(recalls[len(known) :]) == {None}, "classes without images come last"
    words = text_of(report.write(copy_of))
    assert "The 10 of 100 classes with the lowest recall:" in words
    assert words.index("The other 90 classes") < words.index("Confusion matrix")


@pytest.mark.parametrize("count", [2, 10, 20])
def test_few_classes_have_the_order_of_the_confusion_matrix(copy_of: RunFolder, count: int) -> None:
    names = [f"c{n}" for n in range(count)]
    change_classes(copy_of, names)
    shown, folded = Page(copy_of).worst_classes()
    assert [name for name, _, _ in shown] == names and not folded
    assert "The other" not in text_of(report.write(copy_of))


@pytest.mark.parametrize(
    ("name", "html"),
    [
        ("test/cat/IMG_1.jpg", "test/<wbr>cat/<wbr>IMG_<wbr>1.<wbr>jpg"),
        ("a&b/<i>.png", "a&amp;b/<wbr>&lt;i&gt;.<wbr>png"),
        ("x" * 100, f'<span title="{"x" * 100}">{"x" * 31}…{"x" * 32}</span>'),
    ],
)
def test_file_names_below_images_are_escaped_breakable_and_short(name: str, html: str) -> None:
    assert file_name(name) == html


@pytest.mark.parametrize(("count", "words"), [(1, "1 epoch"), (2, "2 epochs"), (2000, "2,000 epochs")])
def test_a_noun_is_in_the_plural_unless_there_is_one(count: int, words: str) -> None:
    assert counted(count, "epoch") == words


def test_a_refused_resume_keeps_the_page_that_says_how_to_resume(copy_of: RunFolder, tmp_path: Path) -> None:
    copy_of.result.unlink()
    copy_of.write_json(copy_of.stopped, {"why": "It was interrupted by SIGTERM."})
    before = report.write(copy_of).read_bytes()
    assert main(["train", "--resume", str(copy_of.path), "--data", str(tmp_path / "nowhere")]) == 2
    assert copy_of.report.read_bytes() == before and copy_of.stopped.exists()


def test_a_damaged_record_is_reported_in_one_line(copy_of: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    copy_of.interpretation.write_bytes(b"PK\x03\x04 and nothing more")
    before = copy_of.report.read_bytes()
    assert main(["report", "--run", str(copy_of.path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("onecycle: ") and "interpretation.npz is damaged or of another kind" in line
    assert copy_of.report.read_bytes() == before, "the old page stays"


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run folder"):
        RunFolder.open(tmp_path)
    assert main(["report", "--run", str(tmp_path / "nothing")]) == 2


def test_a_run_that_an_error_ends_gets_a_page_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("out of memory")

    command = ["train", "--recipe", "quick", "--widths", "8", "8", "8", "--data", "digits", "--limit", "60"]
    with monkeypatch.context() as patch:
        patch.setattr("onecycle.run.progress.RunProgress.epoch", fail)
        with pytest.raises(MemoryError):
            main([*command, "--epochs", "2", "--batch-size", "30", "--out", str(tmp_path)])
    (path,) = tmp_path.iterdir()
    run = RunFolder(path)
    assert "It ended with an error: MemoryError: out of memory." in text_of(run.report)
    assert main(["train", "--resume", str(path)]) == 0
    assert "It ended with an error" not in text_of(run.report) and not run.stopped.exists()


def test_the_most_confident_incorrect_predictions_come_first_at_any_temperature(
    copy_of: RunFolder,
) -> None:
    assert "The probabilities are not calibrated; onecycle calibrate does that." in text_of(report.write(copy_of))
    for temperature in (0.2, 5.0):
        fitted = FittedTemperature(temperature=temperature, images=30, source="second network")
        copy_of.write_json(copy_of.result, replace(copy_of.read_result(), calibration=fitted).to_json())
        page = Page(copy_of)
        gallery = page_galleries.misclassified(page)
        assert gallery
        shown = [float(tile.lines[0].rpartition(" ")[2].rstrip("%").rstrip()) for tile in gallery.tiles]
        assert shown == sorted(shown, reverse=True)
        wrong = page.probabilities[page.predictions != page.labels].max(axis=1)
        assert shown[0] == pytest.approx(100 * wrong.max(), abs=0.06)
