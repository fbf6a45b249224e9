"""Bulk prediction writes each image once, with the prediction of `predict_files`, even after an interruption."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from photographs import PHOTOGRAPHS
from PIL import Image

import onecycle
from onecycle.cli import main
from onecycle.core.errors import InputError
from onecycle.data.store.decode import Unreadable
from onecycle.predict import chunks
from onecycle.predict.bulk import ChunkPredictor
from onecycle.predict.chunks import read_images, split_into_chunks
from onecycle.predict.predictor import SHIPPED, Prediction
from onecycle.predict.stream import predict_files


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 30 noisy photographs, two of them damaged."""
    folder = tmp_path_factory.mktemp("images") / "folder"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(30):
        pixels = PHOTOGRAPHS[number % 8] + rng.integers(-20, 20, (32, 32, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:02}.png")
    (folder / "07.png").write_text("not an image")
    (folder / "21.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def archives(images: Path) -> dict[str, Path]:
    """The folder `images` as an archive of each kind."""
    made = {kind: images.parent / f"all.{kind}" for kind in ("tar", "tar.gz", "zip")}
    for kind in ("tar", "tar.gz"):
        with tarfile.open(made[kind], "w:gz" if kind == "tar.gz" else "w") as archive:
            archive.add(images, "inside")
    with zipfile.ZipFile(made["zip"], "w") as zipped:
        for path in sorted(images.iterdir()):
            zipped.write(path, f"inside/{path.name}")
        zipped.writestr("inside/notes.txt", "not read")
    return made


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit the chunks of an archive to seven images."""
    monkeypatch.setattr(chunks, "CHUNK_IMAGES", 7)


def predict(*words: object) -> int:
    return main(["predict", *map(str, words)])


def test_the_tables_equal_the_printed_predictions_to_the_last_bit(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(images, "--out", tmp_path / "out", "--top", "2") == 2
    out, err = capsys.readouterr()
    assert out == f"the results of 30 images are in {tmp_path / 'out'}\n"
    assert err == f"onecycle: 2 of 30 images could not be read; see {tmp_path / 'out' / 'unreadable'}\n"
    rows = pq.read_table(tmp_path / "out" / "predictions").to_pylist()
    expected = dict(predict_files(onecycle.load(), [str(images)]))
    for row in rows:
        prediction = expected.pop(Path(row["file"]))
        assert isinstance(prediction, Prediction)
        best = [(name, np.float32(probability)) for name, probability in prediction.top(2)]
        assert [(each["class_name"], each["probability"]) for each in row["predictions"]] == best
        assert (row["member"], row["class_name"], row["probability"]) == (None, *best[0])
        assert row["in_distribution"] is prediction.in_distribution
        assert row["energy_score"] == np.float32(prediction.energy_score)
    unreadable = pq.read_table(tmp_path / "out" / "unreadable").to_pylist()
    assert {Path(row["file"]): Unreadable(row["reason"]) for row in unreadable} == expected


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_an_archive_is_predicted_like_its_folder(
    images: Path, archives: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    assert predict(images, archives[kind], "--out", tmp_path / "out") == 2
    rows = pq.read_table(tmp_path / "out" / "predictions").to_pylist()
    of_files = {Path(row["file"]).name: row["predictions"] for row in rows if row["member"] is None}
    of_members = {Path(row["member"]).name: row["predictions"] for row in rows if row["member"] is not None}
    assert of_files == of_members and len(rows) == 2 * len(of_files) == 56
    assert {row["file"] for row in rows if row["member"]} == {str(archives[kind])}
    unreadable = pq.read_table(tmp_path / "out" / "unreadable").to_pylist()
    assert sorted(Path(row["member"] or row["file"]).name for row in unreadable) == ["07.png"] * 2 + ["21.png"] * 2
    # The folder is one chunk. The 30 images of the archive are five chunks of at most seven images.
    assert len(list((tmp_path / "out" / "predictions").iterdir())) == 1 + 5


def test_files_that_are_not_images_are_named_also_by_a_repeated_command(
    archives: dict[str, Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("00.png", "01.png"):
        (folder / name).symlink_to(images / name)
    (folder / "IMG_1.CR2").touch()
    for _ in range(2):
        assert predict(folder, archives["zip"], "--out", tmp_path / "out") == 2
        *lines, unreadable = capsys.readouterr().err.splitlines()
        assert "2 of 32 images could not be read" in unreadable
        assert lines == [
            f"onecycle: left out 1 file .cr2, not an image format that is read ({folder}/IMG_1.CR2)",
            f"onecycle: left out 1 file .txt, not an image format that is read ({archives['zip']}:inside/notes.txt)",
        ]


def test_chunks_of_files_are_multiples_of_the_batch_and_hold_every_file_once(tmp_path: Path) -> None:
    for number in range(2100):
        (tmp_path / f"{number:04}.png").touch()
    made = list(split_into_chunks([str(tmp_path)], batch_size=62))
    assert [chunk.images for chunk in made] == [992, 992, 116] and 992 % 62 == 0
    files = [file.path for chunk in made for file in chunk.files]
    assert files == sorted(map(str, tmp_path.iterdir()))


@pytest.mark.usefixtures("small_chunks")
def test_an_archive_is_split_into_few_chunks_because_each_reads_it_again(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(1000):
            archive.writestr(f"{number}.png", b"")
    made = list(split_into_chunks([str(tmp_path / "many.zip")], batch_size=250))
    assert len(made) == 16
    assert [file.first for chunk in made for file in chunk.files] == list(range(0, 1000, 63))
    names = [image.member for chunk in made for image in read_images(chunk)]
    assert names == [f"{number}.png" for number in range(1000)]


def test_missing_and_damaged_sources_are_listed_as_unreadable_with_the_reason(images: Path, tmp_path: Path) -> None:
    (tmp_path / "truncated.tar").write_bytes(b"\0" * 100)
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("notes.txt", "no image")
    (tmp_path / "none").mkdir()
    odd = tmp_path / os.fsdecode(b"\xff.png")
    odd.write_bytes((images / "00.png").read_bytes())
    bad = [tmp_path / "truncated.tar", tmp_path / "empty.zip", tmp_path / "none", tmp_path / "nowhere.png", ""]
    assert predict(*bad, odd, images / "00.png", "--out", tmp_path / "out") == 2
    unreadable = pq.read_table(tmp_path / "out" / "unreadable").to_pylist()
    reasons = [
        "not a .zip, .tar",
        "no image found",
        "no image found",
        "there is no file",
        "name is empty",
    ]
    for row, reason in zip(unreadable, reasons, strict=True):
        assert reason in row["reason"]
    files = pq.read_table(tmp_path / "out" / "predictions")["file"].to_pylist()
    assert files == [ascii(str(odd)), str(images / "00.png")], "a name that is not text is escaped"


@pytest.mark.parametrize("name", [b"\xff.zip", b"a" * 300 + b".zip"], ids=["not text", "too long"])
def test_an_archive_with_a_bad_name_is_unreadable_and_the_others_are_predicted(
    images: Path, tmp_path: Path, name: bytes
) -> None:
    archive = tmp_path / os.fsdecode(name)
    if len(name) < 256:
        archive.write_bytes(b"no archive")
    assert predict(archive, images / "00.png", "--out", tmp_path / "out") == 2
    (row,) = pq.read_table(tmp_path / "out" / "unreadable").to_pylist()
    assert row["reason"].isprintable()
    assert pq.read_table(tmp_path / "out" / "predictions")["file"].to_pylist() == [str(images / "00.png")]


def test_a_removed_part_is_predicted_again(images: Path, tmp_path: Path) -> None:
    assert predict(images, "--out", tmp_path / "out") == 2
    shutil.rmtree(tmp_path / "out" / "unreadable")
    assert predict(images, "--out", tmp_path / "out") == 2
    assert pq.read_table(tmp_path / "out" / "unreadable").num_rows == 2


@pytest.mark.usefixtures("small_chunks")
def test_the_same_command_goes_on_where_it_was_stopped(archives: dict[str, Path], tmp_path: Path) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert predict(archives["tar"], "--out", whole) == 2
    shutil.copytree(whole, again)
    for name in ("part-000001", "part-000003"):
        (again / "predictions" / f"{name}.parquet").unlink()
    (again / "predictions" / ".part-000003.parquet.1.tmp").write_text("half")
    kept = again / "predictions" / "part-000000.parquet"
    before = kept.stat().st_mtime_ns
    assert predict(archives["tar"], "--out", again) == 2
    assert kept.stat().st_mtime_ns == before
    for file in whole.rglob("*.parquet"):
        assert (again / file.relative_to(whole)).read_bytes() == file.read_bytes()
    assert pq.read_table(again / "predictions").num_rows == 28


def test_a_folder_with_other_predictions_is_not_changed(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert predict(images / "00.png", "--out", out) == 0
    capsys.readouterr()
    for options, differing in (
        ((images / "01.png",), "sources"),
        ((images / "00.png", "--top", "1"), "top"),
        ((images / "00.png", "--tta", "--top", "1"), "tta and top"),
    ):
        assert predict(*options, "--out", out) == 2
        assert (
            capsys.readouterr().err
            == f"onecycle: {out} holds predictions with different {differing}; use another --out\n"
        )
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    assert predict(images, "--out", other) == 2
    assert "holds thesis.txt but no listing.parquet" in capsys.readouterr().err
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]


def test_a_chunk_that_does_not_hold_the_listed_images_is_refused(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(images, "--out", tmp_path) == 2
    capsys.readouterr()
    shutil.copy(tmp_path / "unreadable" / "part-000000.parquet", tmp_path / "predictions" / "part-000000.parquet")
    assert predict(images, "--out", tmp_path) == 2
    assert "does not hold the images that were listed; remove it" in capsys.readouterr().err


@pytest.mark.usefixtures("small_chunks")
def test_a_changed_archive_and_vanished_images_are_refused(archives: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(archives["zip"], tmp_path / "all.zip")
    chunk = list(split_into_chunks([str(tmp_path / "all.zip")], batch_size=250))[-1]
    chunk_predictor = ChunkPredictor(SHIPPED.read_bytes(), tta=False, top=1)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("00.png", b"")
    with pytest.raises(InputError, match=r"the images of .*all\.zip have changed since they were listed"):
        chunk_predictor.predict(chunk)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("inside/-.png", b"added at the front")
        for number in range(30):
            archive.writestr(f"inside/{number:02}.png", b"")
    with pytest.raises(InputError, match=r"the images of .*all\.zip have changed since they were listed"):
        chunk_predictor.predict(chunk)
    (tmp_path / "all.zip").unlink()
    with pytest.raises(InputError, match=r"finds neither .*all\.zip nor any other file of chunk 4"):
        chunk_predictor.predict(chunk)


def test_the_images_of_a_chunk_are_read_one_by_one(archives: dict[str, Path]) -> None:
    (chunk,) = split_into_chunks([str(archives["tar"])], batch_size=250)
    (file,) = chunk.files
    assert file[:3] == (str(archives["tar"]), 0, 30)
    few = list(islice(read_images(chunk), 3))
    assert [image.member for image in few] == [f"inside/{number:02}.png" for number in range(3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "ray"], "--engine ray writes files; add --out"),
        (["--address", "host:1", "--out", "x"], "add --engine ray"),
        (["--csv", "--out", "x"], "--out writes parquet; remove --csv"),
        (["--json", "--out", "x"], "--out writes parquet; remove --json"),
    ],
)
def test_contradicting_options_are_refused(
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "image.png", *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("engine", "missing"), [("local", "pyarrow"), ("ray", "pyarrow and ray")])
def test_a_missing_pyarrow_or_ray_is_reported_with_the_command_that_installs_it(
    engine: str, missing: str, tmp_path: Path
) -> None:
    words = ["predict", "x.png", "--out", str(tmp_path / "out"), "--engine", engine]
    program = (
        "import sys; sys.modules['ray'] = sys.modules['pyarrow'] = None\n"
        f"from onecycle.cli import main; sys.exit(main({words}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    message = f"onecycle: this needs {missing}; run pip install 'onecycle[cluster]'\n"
    assert (done.returncode, done.stderr) == (2, message)
    assert not (tmp_path / "out").exists()


def test_other_commands_do_not_import_ray_or_pyarrow(images: Path) -> None:
    program = (
        "import sys; from onecycle.cli import main; import onecycle.study.study, onecycle.study.ray\n"
        f"main(['predict', {str(images / '00.png')!r}])\n"
        "slow = {'ray', 'pyarrow', 'pandas'} & sys.modules.keys()\n"
        "sys.exit(f'imported {slow}' if slow else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_listing_has_its_settings_as_metadata(images: Path, tmp_path: Path) -> None:
    assert predict(images, "--out", tmp_path) == 2
    settings = json.loads(pq.read_schema(tmp_path / "listing.parquet").metadata[b"onecycle"])
    assert settings["sources"] == [str(images)] and len(settings["network"]) == 64
