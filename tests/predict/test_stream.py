"""`onecycle predict` on many files, and the network that comes with the package."""

import csv
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from out_of_distribution import auroc_in
from photographs import PHOTOGRAPHS, RECORD, SHOWN
from PIL import Image

import onecycle
from onecycle.cli import main
from onecycle.core.errors import InputError
from onecycle.core.out_of_distribution import energy_scores_of
from onecycle.data import image_files, load_dataset
from onecycle.data.batches import Batches
from onecycle.data.readers.left_out import LeftOut
from onecycle.predict import stream
from onecycle.predict.predictor import SHIPPED, Predictor
from onecycle.predict.stream import NamedFile, files_of, predict_files
from onecycle.report.model_card import write_card
from onecycle.report.page import percent
from onecycle.run import environment
from onecycle.run.finished import evaluate_shipped
from onecycle.train.loop import evaluate


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return onecycle.load()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with eight CIFAR-10 photographs, `0.png` to `7.png`."""
    folder = tmp_path_factory.mktemp("photographs")
    for number, pixels in enumerate(PHOTOGRAPHS):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


# The network that comes with the package


def test_the_shipped_network_is_small_and_in_half_precision_except_its_norms(predictor: Predictor) -> None:
    from onecycle.storage.checkpoint import load_tensors

    assert SHIPPED.stat().st_size <= 14e6
    norms = {name for name, module in predictor.model.named_modules() if "BatchNorm" in type(module).__name__}
    for name, tensor in load_tensors(SHIPPED)[0].items():
        if tensor.is_floating_point():
            assert str(tensor.dtype) == ("torch.float32" if name.rpartition(".")[0] in norms else "torch.float16")


def test_the_shipped_network_is_as_accurate_as_its_recorded_run(real_data: Path) -> None:
    plan = environment.recorded_plan(RECORD).for_evaluation()
    predictor = Predictor.load(SHIPPED, plan)
    dataset = load_dataset(real_data / "cifar-10-binary.tar.gz")
    assert dataset.fingerprint == RECORD.read_result().fingerprint
    batches = Batches(dataset.evaluation, predictor.preprocessing, batch_size=500)
    accuracy = evaluate(predictor.model, batches, plan=plan).accuracy
    assert abs(accuracy - RECORD.read_result().eval_accuracy) <= 0.0005


def test_half_precision_keeps_the_recorded_accuracy() -> None:
    record = json.loads((RECORD.path.parent / "shipped_network.json").read_text())
    assert record["recorded"]["accuracy"] == RECORD.read_result().eval_accuracy
    assert record["recorded"]["tta_accuracy"] == RECORD.read_result().tta_accuracy
    shipped = record["shipped"]["as onecycle.load computes"]
    for name, accuracy in record["recorded"].items():
        assert abs(shipped[name] - accuracy) <= 0.0005


def test_its_card_is_that_of_the_recorded_run(predictor: Predictor, tmp_path: Path) -> None:
    footnote = "762 of the 60,000 images are JPEG copies"
    corruptions = json.loads((RECORD.path.parent / "corruptions.json").read_text())
    assert corruptions["weights"] == hashlib.sha256(SHIPPED.read_bytes()).hexdigest()
    auroc = auroc_in(RECORD.path.parent / "out_of_distribution.json", Predictor.load(SHIPPED))
    assert auroc, "it was measured for these weights"
    card = write_card(
        RECORD, predictor, tmp_path / SHIPPED.name, footnote=footnote, corruptions=corruptions, auroc=auroc
    )
    assert (SHIPPED.parent / "README.md").read_text() == card.read_text()


def test_its_card_has_the_figures_of_every_corruption_and_quality() -> None:
    card = (SHIPPED.parent / "README.md").read_text()
    record = json.loads((RECORD.path.parent / "corruptions.json").read_text())
    assert (record["evaluated_on"], len(record["corruptions"])) == ("test", 19)
    assert set(record["jpeg"]) == {"95", "75", "50"}
    rows = {"clean": [record["clean"]], "mean over corruptions": [record["mean_over_corruptions"]]}
    rows |= {f"JPEG of quality {quality}": [found] for quality, found in record["jpeg"].items()}
    rows |= {kind.replace("_", " "): found for kind, found in record["corruptions"].items()}
    for name, figures in rows.items():
        (row,) = (line for line in card.splitlines() if line.startswith((f"| {name} |", f"| {name},")))
        for found, cell in zip(figures, row.split("|")[2:-1], strict=True):
            error = 100 * found["expected_calibration_error"]
            assert cell.strip(" ") == f"{percent(found['accuracy'], 1)} ({error:.1f})"


def test_its_energy_threshold_keeps_95_percent_of_the_test_images(predictor: Predictor) -> None:
    scores = energy_scores_of(RECORD.read_predictions().logits)
    assert predictor.energy_threshold is not None and len(scores) == 10_000
    assert 9500 <= (scores >= predictor.energy_threshold).sum() <= 9501


def test_predict_takes_files_arrays_and_pillow_images(predictor: Predictor, photographs: Path) -> None:
    files = sorted(photographs.iterdir())
    arrays = [np.asarray(Image.open(file)) for file in files]
    for images in (files, [str(file) for file in files], arrays, [Image.open(file) for file in files]):
        predictions = predictor.predict(images)
        assert [prediction.class_name for prediction in predictions] == SHOWN
        assert predictions[0].top(1) == [(predictions[0].class_name, predictions[0].probability)]
        assert len(predictions[0].top(99)) == 10
    with pytest.raises(InputError, match="there is no file"):
        predictor.predict(["nowhere.png"])


@pytest.mark.long
def test_evaluate_without_a_run_agrees_with_the_recorded_accuracy(
    real_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--data", str(real_data / "cifar-10-binary.tar.gz")]) == 0
    evaluated, verdict = capsys.readouterr().out.splitlines()
    assert evaluated.startswith("test accuracy 0.93") and "accuracy with test-time augmentation 0.94" in evaluated
    assert verdict == "agrees with the recorded result"


def test_the_accuracy_beside_the_shipped_network_is_that_of_the_recorded_run() -> None:
    result = RECORD.read_result()
    recorded = {"accuracy": result.eval_accuracy, "tta_accuracy": result.tta_accuracy}
    assert json.loads(SHIPPED.with_suffix(".json").read_text()) == recorded


def test_evaluate_without_a_run_reports_a_different_accuracy(
    predictor: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    images = [*zip(SHOWN, PHOTOGRAPHS, strict=True), *zip(predictor.classes, noise, strict=True)]
    for split in ("train", "test"):
        for number, (name, pixels) in enumerate(images):
            (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
    assert main(["evaluate", "--data", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert 8 <= round(18 * float(out.split()[2].rstrip(","))) <= 12, "all 8 photographs are correct; noise is by chance"
    recorded = "test accuracy 0.9334, accuracy with test-time augmentation 0.9436"
    assert err == f"differs from the recorded result: {recorded}\n"


def test_the_shipped_network_is_not_evaluated_on_other_classes() -> None:
    with pytest.raises(InputError, match=r"other classes than the included network \(airplane, .*\); use CIFAR-10"):
        evaluate_shipped("digits")


# The `onecycle predict` command


def test_text_output_has_one_line_per_file_with_the_most_likely_classes(
    photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(photographs)]) == 0
    out, err = capsys.readouterr()
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[0] for line in lines] == [str(photographs / f"{number}.png") for number in range(8)]
    assert [line[1] for line in lines] == SHOWN
    for line in lines:
        assert len(line) == 7 or line[7:] == ["unlike anything it was trained on"]
        assert line[2].endswith("%")
    assert err.startswith("onecycle: using the included network (airplane, ") and err.count("\n") == 1


def test_predict_works_without_a_run_or_a_checkout(photographs: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "onecycle", "predict", "--top", "1", str(photographs / "4.png")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split("\t")[1] == "cat"
    assert not list(tmp_path.iterdir())


def test_json_output_has_one_object_per_line(
    predictor: Predictor, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "--json", "--top", "2", str(photographs / "*.png")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(line["file"] for line in lines) == [str(photographs / f"{number}.png") for number in range(8)]
    assert all(len(line["predictions"]) == 2 and line["predictions"][0]["probability"] > 0.3 for line in lines)
    assert all(line["in_distribution"] is (line["energy_score"] >= predictor.energy_threshold) for line in lines)


def test_csv_output_has_a_header_and_quotes_names(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'a, "b".png').write_bytes((photographs / "2.png").read_bytes())
    assert main(["predict", "--csv", "--top", "1", str(tmp_path)]) == 0
    header, row = csv.reader(io.StringIO(capsys.readouterr().out))
    assert header == ["file", "class_1", "probability_1", "in_distribution", "energy_score"]
    assert row[:2] == [str(tmp_path / 'a, "b".png'), "truck"] and 0.9 < float(row[2]) < 1
    assert row[3] == "true" and float(row[4]) > 3


def test_noise_is_printed_as_unlike_anything_that_the_network_was_trained_on(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    for options in ([], ["--tta"]):
        assert main(["predict", *options, "--top", "1", str(tmp_path), str(photographs / "4.png")]) == 0
        first, second = (line.split("\t") for line in capsys.readouterr().out.splitlines())
        assert len(first) == 4 and first[-1] == "unlike anything it was trained on"
        assert len(second) == 3 and second[1] == "cat"
    assert main(["predict", "--json", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["in_distribution"] is False
    assert main(["predict", "--csv", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split(",")[-2] == "false"


def test_a_network_without_a_threshold_says_nothing_about_it(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "black.png")
    older = replace(predictor, energy_threshold=None)
    monkeypatch.setattr("onecycle.predict.predictor.load", lambda *_, **__: older)
    assert main(["predict", "--top", "1", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.split("\t")) == 3
    assert main(["predict", "--json", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["in_distribution"] is None
    assert main(["predict", "--csv", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split(",")[-2] == ""


UNPRINTABLE = ["\x1b[31mred.png", "\x1b]0;title\x07.png", "a\u202egnp.png", "\x9b31m.png"]


@pytest.mark.parametrize("name", UNPRINTABLE)
@pytest.mark.parametrize("form", ["--csv", "--json", None])
def test_a_terminal_gets_no_control_characters_from_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, form: str | None, name: str
) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["predict", *filter(None, [form]), "--top", "1", str(tmp_path)]) == 0
    assert all(letter.isprintable() or letter in "\t\n" for letter in capsys.readouterr().out)


LINES = ["a\rb.png", "a\nb.png", "a\r\nb.png", "a\r"]


@pytest.mark.parametrize("name", [*UNPRINTABLE, *LINES, "=cmd|' !A0.png", "@sum.png", "-1.png", "+1.png"])
def test_a_program_gets_exact_names_from_csv(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name, "PNG")
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "--csv", "--top", "1", "./" + name]) == 0
    _, row = csv.reader(io.StringIO(capsys.readouterr().out, newline=""))
    assert row[0] == name


def test_unreadable_files_are_named_and_counted_and_the_others_are_predicted(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("this is not an image")
    (tmp_path / "truncated.png").write_bytes((photographs / "0.png").read_bytes()[:-100])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    names = ("text.png", "truncated.png", "empty.jpg", "nowhere.png", "folder", "pipe.png")
    bad = [str(tmp_path / name) for name in names]
    assert main(["predict", bad[0], str(photographs / "4.png"), *bad[1:], str(tmp_path / "no*.png"), "\n"]) == 2
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    assert line.startswith(f"{photographs / '4.png'}\tcat\t")
    lines = err.splitlines()[1:]
    assert len(lines) == 9 and lines[-1] == "onecycle: 8 of 9 files could not be read"
    for name in (*names, "no*.png", r"'\n'"):
        assert sum(name in line for line in lines) == 1, name


def test_folders_are_searched_for_images_at_any_depth(predictor: Predictor, photographs: Path, tmp_path: Path) -> None:
    content = (photographs / "0.png").read_bytes()
    for name in ("b/x.PNG", "a/y.jpg", "a/deep/z.webp", "top.tif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    for name in (".hidden.png", ".git/no.png", "notes.txt", "b/table.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("not read")
    assert [str(path.relative_to(tmp_path)) for path, _ in predict_files(predictor, [str(tmp_path)])] == [
        "top.tif",
        "a/y.jpg",
        "a/deep/z.webp",
        "b/x.PNG",
    ]


def test_files_in_folders_that_are_not_images_are_named_on_standard_error(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = (photographs / "0.png").read_bytes()
    for name in ("1.png", "a/@eaDir/1.png/THUMB.png", "a/Thumbs.db", ".hidden.png", "a/IMG_1.CR2", "IMG_2.CR2", "no"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "a" / "gone").symlink_to("nowhere.png")
    (tmp_path / "a" / "around").symlink_to(tmp_path)
    assert main(["predict", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{tmp_path}/1.png\t") and out.count("\n") == 1
    assert err.splitlines()[1:] == [
        "onecycle: left out 2 files .cr2, not an image format that is read "
        f"({tmp_path}/IMG_2.CR2, {tmp_path}/a/IMG_1.CR2)",
        f"onecycle: left out 1 file without a suffix such as .jpg ({tmp_path}/no)",
        f"onecycle: left out 1 link to a folder that contains it ({tmp_path}/a/around)",
        f"onecycle: left out 1 link without a target ({tmp_path}/a/gone)",
    ]


def test_a_folder_without_an_image_is_unreadable_and_the_message_names_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "IMG_1.CR2").touch()
    (file,) = files_of([str(tmp_path)])
    assert file.problem == (
        f"{tmp_path}: no image found; check the name. "
        "Left out: 1 file .cr2, not an image format that is read (IMG_1.CR2)"
    )


def test_a_link_without_a_target_that_looks_like_an_image_is_unreadable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    assert main(["predict", str(tmp_path)]) == 2
    assert f"there is no file {tmp_path}/gone.png" in capsys.readouterr().err


def test_links_in_folders_are_followed(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").symlink_to(photographs)
    (tmp_path / "image.png").symlink_to(photographs / "0.png")
    found = [str(file.path.relative_to(tmp_path)) for file in files_of([str(tmp_path)])]
    assert found == ["image.png", *(f"folder/{number}.png" for number in range(8))]


def test_patterns_search_folders(photographs: Path) -> None:
    found = files_of([str(photographs)[:-1] + "?/**/[12].png"])
    assert sorted(file.path.name for file in found if file.problem is None) == ["1.png", "2.png"]


@pytest.mark.parametrize("name", ["p [1]", "[abc]", "a*b?", "deep [1]/inner [x]"])
def test_an_existing_folder_at_the_start_of_a_pattern_is_taken_literally(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / "p 1").mkdir()  # what `p [1]` matches as a pattern
    for folder in (name, "p 1"):
        (tmp_path / folder / "1.png").touch()
    assert list(files_of([str(tmp_path / name / "*.png")])) == [NamedFile(tmp_path / name / "1.png")]
    monkeypatch.chdir(tmp_path)
    assert list(files_of([f"{name}/[0-9].*", f"./{name}/**/*.png"])) == [NamedFile(Path(name) / "1.png")] * 2


@pytest.mark.parametrize("pattern", ["*", "**", "**/*", "?*/", "[ab] [12]"])
def test_folders_that_match_a_pattern_are_searched_and_each_file_comes_once(pattern: str, tmp_path: Path) -> None:
    for name in ("a 1/1.png", "a 1/deep/2.png", "b 2/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b 2" / "IMG_1.CR2").touch()
    left_out = LeftOut()
    found = files_of([f"{tmp_path}/{pattern}"], left_out)
    assert [str(file.path.relative_to(tmp_path)) for file in found] == ["a 1/1.png", "a 1/deep/2.png", "b 2/3.png"]
    folder = tmp_path if pattern == "**" else tmp_path / "b 2"
    (line,) = left_out.lines()
    assert f"({folder}/" in line and line.endswith("IMG_1.CR2)")


def test_a_matching_folder_without_an_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "1.png").touch()
    image, empty = files_of([f"{tmp_path}/*"])
    assert image == NamedFile(tmp_path / "1.png")
    assert empty.problem == f"{tmp_path}/empty: no image found; check the name"


def test_an_existing_file_whose_name_looks_like_a_pattern_is_that_file(photographs: Path, tmp_path: Path) -> None:
    odd = tmp_path / "cat[1].png"
    odd.write_bytes((photographs / "4.png").read_bytes())
    assert list(files_of([str(odd)])) == [NamedFile(odd)]


def test_tta_changes_only_the_probabilities_of_uncertain_images(
    photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = []
    for options in ([], ["--tta"]):
        assert main(["predict", "--json", *options, str(photographs / "1.png"), str(photographs / "2.png")]) == 0
        outputs.append([json.loads(line)["predictions"] for line in capsys.readouterr().out.splitlines()])
    (uncertain, certain), (uncertain_with_tta, certain_with_tta) = outputs
    assert uncertain[0]["class_name"] == uncertain_with_tta[0]["class_name"] and uncertain != uncertain_with_tta
    assert certain[0]["probability"] == pytest.approx(certain_with_tta[0]["probability"], abs=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top", "0", "x.png"], "--top is 0; it must be 1 or more"),
        (["--json", "--csv", "x.png"], "--json and --csv exclude each other"),
        (["--run", "nowhere", "x.png"], "there is no run folder nowhere"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["predict", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_files_are_neither_read_nor_kept_far_ahead(
    predictor: Predictor, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any time, at most about two batches of files are read but not yet predicted."""
    read = 0

    def count_read(path: Path) -> bytes:
        nonlocal read
        read += 1
        return content

    content = (photographs / "0.png").read_bytes()
    monkeypatch.setattr(stream, "read_file", count_read)
    monkeypatch.setattr(stream, "files_of", lambda *_: (NamedFile(Path(f"{number}.png")) for number in range(2000)))
    most = 0
    for predicted, _ in enumerate(predict_files(predictor, []), start=1):
        most = max(most, read - predicted)
    assert predicted == read == 2000
    assert most < 600


# Image file formats


@pytest.mark.parametrize("kind", sorted({*image_files.FORMATS, "MPO"} - {"DIB", "PSD"}))  # Pillow writes no PSD
def test_every_supported_format_is_predicted(
    predictor: Predictor, photographs: Path, tmp_path: Path, kind: str
) -> None:
    Image.open(photographs / "2.png").save(tmp_path / "truck", kind)
    assert predictor.predict([tmp_path / "truck"])[0].class_name == "truck"


@pytest.mark.parametrize("kind", ["EPS", "PNG", "JPEG"])
def test_a_format_that_opens_what_lies_inside_is_refused(
    predictor: Predictor, photographs: Path, tmp_path: Path, kind: str
) -> None:
    """Pillow's reader of IPTC would hand an EPS to Ghostscript, which would run the code in it."""

    def field(record: int, number: int, content: bytes) -> bytes:
        return struct.pack(">BBBBBI", 0x1C, record, number, 132, 0, len(content)) + content

    inside = io.BytesIO()
    Image.open(photographs / "2.png").save(inside, kind)
    size = [field(3, number, struct.pack(">H", 32)) for number in (20, 30)]
    fields = [field(3, 60, bytes([1, 0])), *size, field(3, 120, bytes([5])), field(8, 10, inside.getvalue())]
    (tmp_path / "truck.jpg").write_bytes(b"".join(fields))
    with pytest.raises(InputError, match=r"truck\.jpg: not an image"):
        predictor.predict([tmp_path / "truck.jpg"])


def test_a_format_that_starts_another_program_is_refused(
    predictor: Predictor, photographs: Path, tmp_path: Path
) -> None:
    assert ".eps" not in image_files.suffixes()
    Image.open(photographs / "2.png").save(tmp_path / "truck.eps")
    with pytest.raises(InputError, match=r"truck\.eps: not an image"):
        predictor.predict([tmp_path / "truck.eps"])
