"""Prediction by the thousand, and the network that comes with the package, as the command line has them."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from photographs import PHOTOGRAPHS, RECORD, SHOWN
from PIL import Image

import onecycle
from onecycle.cli import main
from onecycle.core.errors import InputError
from onecycle.data import load_dataset, preprocessing
from onecycle.data.batches import Batches
from onecycle.predict import stream
from onecycle.predict.predictor import SHIPPED, Predictor
from onecycle.predict.stream import files_of, label
from onecycle.run import environment
from onecycle.run.export import write_card
from onecycle.train.loop import evaluate


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return onecycle.load()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photographs of CIFAR-10, by their number."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, pixels in enumerate(PHOTOGRAPHS):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


# The network that comes with the package


def test_the_shipped_network_is_small_and_in_half_precision_but_for_its_norms(predictor: Predictor) -> None:
    from onecycle.storage.checkpoint import load_tensors

    assert SHIPPED.stat().st_size <= 14e6
    norms = {name for name, module in predictor.model.named_modules() if "BatchNorm" in type(module).__name__}
    for name, tensor in load_tensors(SHIPPED)[0].items():
        if tensor.is_floating_point():
            assert str(tensor.dtype) == ("torch.float32" if name.rpartition(".")[0] in norms else "torch.float16")


def test_the_shipped_network_is_as_accurate_as_its_recorded_run(real_data: Path) -> None:
    how = environment.recorded_acceleration(RECORD).for_evaluation()
    predictor = Predictor.load(SHIPPED, how)
    dataset = load_dataset(real_data / "cifar-10-binary.tar.gz")
    assert dataset.fingerprint == RECORD.read_result().fingerprint
    batches = Batches(dataset.evaluation, predictor.preprocessing, batch_size=500)
    accuracy = evaluate(predictor.model, batches, acceleration=how).accuracy
    assert abs(accuracy - RECORD.read_result().test_accuracy) <= 0.0005


def test_the_recorded_accuracy_in_half_precision_is_the_runs() -> None:
    record = json.loads((RECORD.path.parent / "shipped_network.json").read_text())
    assert record["recorded"]["accuracy"] == RECORD.read_result().test_accuracy
    assert record["recorded"]["tta_accuracy"] == RECORD.read_result().tta_accuracy
    shipped = record["shipped"]["as onecycle.load computes"]
    for name, accuracy in record["recorded"].items():
        assert abs(shipped[name] - accuracy) <= 0.0005


def test_its_card_is_that_of_the_recorded_run(predictor: Predictor, tmp_path: Path) -> None:
    footnote = "762 of the 60,000 images are JPEG copies"
    card = write_card(RECORD, predictor, tmp_path / SHIPPED.name, footnote=footnote)
    assert (SHIPPED.parent / "README.md").read_text() == card.read_text()


def test_from_python_it_takes_files_arrays_and_pictures(predictor: Predictor, pictures: Path) -> None:
    files = sorted(pictures.iterdir())
    arrays = [np.asarray(Image.open(file)) for file in files]
    for given in (files, [str(file) for file in files], arrays, [Image.open(file) for file in files]):
        predictions = predictor.predict(given)
        assert [prediction.label for prediction in predictions] == SHOWN
        assert predictions[0].top(1) == [(predictions[0].label, predictions[0].probability)]
        assert len(predictions[0].top(99)) == 10
    with pytest.raises(InputError, match="there is no file"):
        predictor.predict(["nowhere.png"])


# The command


def test_a_line_a_file_with_the_likeliest_classes(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(pictures)]) == 0
    out, err = capsys.readouterr()
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[0] for line in lines] == [str(pictures / f"{number}.png") for number in range(8)]
    assert [line[1] for line in lines] == SHOWN
    assert all(len(line) == 7 and line[2].endswith("%") for line in lines)
    assert err.startswith("onecycle: by the network that comes with it (airplane, ") and err.count("\n") == 1


def test_it_works_without_a_run_or_a_checkout(pictures: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "onecycle", "predict", "--top", "1", str(pictures / "4.png")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split("\t")[1] == "cat"
    assert not list(tmp_path.iterdir())


def test_json_is_an_object_a_line(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--json", "--top", "2", str(pictures / "*.png")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(line["file"] for line in lines) == [str(pictures / f"{number}.png") for number in range(8)]
    assert all(len(line["predictions"]) == 2 and line["predictions"][0]["probability"] > 0.3 for line in lines)


def test_csv_has_a_head_and_quotes_names(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'a, "b".png').write_bytes((pictures / "2.png").read_bytes())
    assert main(["predict", "--csv", "--top", "1", str(tmp_path)]) == 0
    head, row = csv.reader(io.StringIO(capsys.readouterr().out))
    assert head == ["file", "class_1", "probability_1"]
    assert row[:2] == [str(tmp_path / 'a, "b".png'), "truck"] and 0.9 < float(row[2]) < 1


def test_what_cannot_be_read_is_named_and_counted_and_keeps_nothing_from_it(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("this is no picture")
    (tmp_path / "cut.png").write_bytes((pictures / "0.png").read_bytes()[:-100])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    bad = [str(tmp_path / name) for name in ("text.png", "cut.png", "empty.jpg", "nowhere.png", "folder", "pipe.png")]
    assert main(["predict", bad[0], str(pictures / "4.png"), *bad[1:], str(tmp_path / "no*.png"), "\n"]) == 2
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    assert line.startswith(f"{pictures / '4.png'}\tcat\t")
    lines = err.splitlines()[1:]
    assert len(lines) == 9 and lines[-1] == "onecycle: 8 of 9 could not be read"
    for name in ("text.png", "cut.png", "empty.jpg", "nowhere.png", "folder", "pipe.png", "no*.png", r"'\n'"):
        assert sum(name in line for line in lines) == 1, name


def test_of_a_folder_only_pictures_are_read_at_any_depth(predictor: Predictor, pictures: Path, tmp_path: Path) -> None:
    content = (pictures / "0.png").read_bytes()
    for name in ("b/x.PNG", "a/y.jpg", "a/deep/z.webp", "top.tif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    for name in (".hidden.png", ".git/no.png", "notes.txt", "b/table.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("not read")
    assert [str(path.relative_to(tmp_path)) for path, _ in label(predictor, [str(tmp_path)])] == [
        "top.tif",
        "a/y.jpg",
        "a/deep/z.webp",
        "b/x.PNG",
    ]


def test_patterns_reach_into_folders(pictures: Path) -> None:
    found = files_of([str(pictures)[:-1] + "?/**/[12].png"])
    assert sorted(path.name for path in found if isinstance(path, Path)) == ["1.png", "2.png"]


def test_a_file_whose_name_is_like_a_pattern_is_that_file(pictures: Path, tmp_path: Path) -> None:
    odd = tmp_path / "cat[1].png"
    odd.write_bytes((pictures / "4.png").read_bytes())
    assert list(files_of([str(odd)])) == [odd]


def test_more_views_are_looked_at_where_they_are_asked_for(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for options in ([], ["--tta"]):
        assert main(["predict", "--json", *options, str(pictures / "1.png"), str(pictures / "2.png")]) == 0
        outputs.append([json.loads(line)["predictions"] for line in capsys.readouterr().out.splitlines()])
    (unsure, sure), (unsure_over_views, sure_over_views) = outputs
    assert unsure[0]["label"] == unsure_over_views[0]["label"] and unsure != unsure_over_views
    assert sure[0]["probability"] == pytest.approx(sure_over_views[0]["probability"], abs=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top", "0", "x.png"], "--top is 0; it must be 1 or more"),
        (["--json", "--csv", "x.png"], "--json and --csv exclude each other"),
        (["--run", "nowhere", "x.png"], "there is no run folder nowhere"),
    ],
)
def test_wrong_options_are_told_in_one_line(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["predict", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_files_are_neither_read_nor_kept_far_ahead(
    predictor: Predictor, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are: what is read but not answered yet stays below two batches."""
    read = 0

    def counted(path: Path) -> bytes:
        nonlocal read
        read += 1
        return content

    content = (pictures / "0.png").read_bytes()
    monkeypatch.setattr(stream, "read_file", counted)
    monkeypatch.setattr(stream, "files_of", lambda _: (Path(f"{number}.png") for number in range(2000)))
    most = 0
    for answered, _ in enumerate(label(predictor, []), start=1):
        most = max(most, read - answered)
    assert answered == read == 2000
    assert most < 600


# Formats


@pytest.mark.parametrize("kind", ["AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP"])
def test_whatever_pillow_reads_is_named(predictor: Predictor, pictures: Path, tmp_path: Path, kind: str) -> None:
    options = {"sizes": [(32, 32)]} if kind == "ICO" else {}
    Image.open(pictures / "2.png").save(tmp_path / "truck", kind, **options)
    assert predictor.predict([tmp_path / "truck"])[0].label == "truck"


def test_what_would_start_another_program_is_not_read(predictor: Predictor, pictures: Path, tmp_path: Path) -> None:
    assert ".eps" not in preprocessing.suffixes()
    Image.open(pictures / "2.png").save(tmp_path / "truck.eps")
    with pytest.raises(InputError, match=r"truck\.eps: not a picture"):
        predictor.predict([tmp_path / "truck.eps"])
