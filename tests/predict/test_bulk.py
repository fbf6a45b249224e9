"""Labels of many pictures as parquet: the same as those that are printed, each once, however often it was stopped."""

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
from onecycle.predict import chunks
from onecycle.predict.chunks import cut, read
from onecycle.predict.engine import PartLabeller
from onecycle.predict.predictor import SHIPPED
from onecycle.predict.stream import label


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 30 noisy photographs, two of them damaged."""
    folder = tmp_path_factory.mktemp("pictures") / "folder"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(30):
        pixels = PHOTOGRAPHS[number % 8] + rng.integers(-20, 20, (32, 32, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:02}.png")
    (folder / "07.png").write_text("no picture")
    (folder / "21.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def archives(pictures: Path) -> dict[str, Path]:
    """The same, in an archive of each kind."""
    made = {kind: pictures.parent / f"all.{kind}" for kind in ("tar", "tar.gz", "zip")}
    for kind in ("tar", "tar.gz"):
        with tarfile.open(made[kind], "w:gz" if kind == "tar.gz" else "w") as archive:
            archive.add(pictures, "inside")
    with zipfile.ZipFile(made["zip"], "w") as zipped:
        for path in sorted(pictures.iterdir()):
            zipped.write(path, f"inside/{path.name}")
        zipped.writestr("inside/notes.txt", "not read")
    return made


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of an archive have seven pictures."""
    monkeypatch.setattr(chunks, "ABOUT", 7)


def predict(*words: object) -> int:
    return main(["predict", *map(str, words)])


def test_the_tables_hold_what_is_printed_to_the_last_bit(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(pictures, "--out", tmp_path / "out", "--top", "2") == 2
    out, err = capsys.readouterr()
    assert out == f"30 pictures, in {tmp_path / 'out'}\n"
    assert err == f"onecycle: 2 of 30 could not be read: {tmp_path / 'out' / 'unreadable'}\n"
    rows = pq.read_table(tmp_path / "out" / "predictions").to_pylist()
    told = dict(label(onecycle.load(), [str(pictures)]))
    for row in rows:
        best = told.pop(Path(row["file"])).top(2)  # type: ignore[union-attr]
        assert [(each["label"], each["probability"]) for each in row["predictions"]] == best
        assert (row["member"], row["label"], row["probability"]) == (None, *best[0])
    unreadable = pq.read_table(tmp_path / "out" / "unreadable").to_pylist()
    assert {Path(row["file"]): row["reason"] for row in unreadable} == {
        path: str(error) for path, error in told.items()
    }


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_an_archive_is_labelled_as_its_folder_is(
    pictures: Path, archives: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    assert predict(pictures, archives[kind], "--out", tmp_path / "out") == 2
    rows = pq.read_table(tmp_path / "out" / "predictions").to_pylist()
    of_files = {Path(row["file"]).name: row["predictions"] for row in rows if row["member"] is None}
    of_members = {Path(row["member"]).name: row["predictions"] for row in rows if row["member"] is not None}
    assert of_files == of_members and len(rows) == 2 * len(of_files) == 56
    assert {row["file"] for row in rows if row["member"]} == {str(archives[kind])}
    unreadable = pq.read_table(tmp_path / "out" / "unreadable").to_pylist()
    assert sorted(Path(row["member"] or row["file"]).name for row in unreadable) == ["07.png"] * 2 + ["21.png"] * 2
    # The folder has one part, and each seven of the archive's 30.
    assert len(list((tmp_path / "out" / "predictions").iterdir())) == 1 + 5


def test_parts_of_files_are_whole_batches_and_name_every_file_once(tmp_path: Path) -> None:
    for number in range(2100):
        (tmp_path / f"{number:04}.png").touch()
    parts = list(cut([str(tmp_path)], at_once=62))
    assert [part.pictures for part in parts] == [992, 992, 116] and 992 % 62 == 0
    files = [piece.path for part in parts for piece in part.pieces]
    assert files == sorted(map(str, tmp_path.iterdir()))


@pytest.mark.usefixtures("small_parts")
def test_an_archive_is_read_through_a_few_times_only(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(1000):
            archive.writestr(f"{number}.png", b"")
    parts = list(cut([str(tmp_path / "many.zip")], at_once=250))
    assert len(parts) == 16
    assert [piece.first for part in parts for piece in part.pieces] == list(range(0, 1000, 63))
    names = [picture.member for part in parts for picture in read(part)]
    assert names == [f"{number}.png" for number in range(1000)]


def test_what_is_no_picture_no_archive_or_not_there_is_listed_with_the_reason(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.tar").write_bytes(b"\0" * 100)
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("notes.txt", "nothing to see")
    (tmp_path / "none").mkdir()
    odd = tmp_path / os.fsdecode(b"\xff.png")
    odd.write_bytes((pictures / "00.png").read_bytes())
    bad = [tmp_path / "cut.tar", tmp_path / "empty.zip", tmp_path / "none", tmp_path / "nowhere.png", ""]
    assert predict(*bad, odd, pictures / "00.png", "--out", tmp_path / "out") == 2
    unreadable = pq.read_table(tmp_path / "out" / "unreadable").to_pylist()
    reasons = [
        "not a .zip, .tar",
        "there are no pictures",
        "there are no pictures",
        "there is no file",
        "name is empty",
    ]
    for row, reason in zip(unreadable, reasons, strict=True):
        assert reason in row["reason"]
    files = pq.read_table(tmp_path / "out" / "predictions")["file"].to_pylist()
    assert files == [ascii(str(odd)), str(pictures / "00.png")], "a name that is no text is escaped"


@pytest.mark.usefixtures("small_parts")
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


def test_a_folder_of_other_labels_is_not_touched(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert predict(pictures / "00.png", "--out", out) == 0
    capsys.readouterr()
    for options, told in (
        ((pictures / "01.png",), "another sources"),
        ((pictures / "00.png", "--top", "1"), "another top"),
        ((pictures / "00.png", "--tta", "--top", "1"), "another tta and top"),
    ):
        assert predict(*options, "--out", out) == 2
        assert capsys.readouterr().err == f"onecycle: {out} holds labels with {told}; give another --out\n"
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    assert predict(pictures, "--out", other) == 2
    assert "holds thesis.txt and no listing.parquet" in capsys.readouterr().err
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]


def test_a_part_that_does_not_hold_what_was_listed_is_found(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(pictures, "--out", tmp_path) == 2
    capsys.readouterr()
    shutil.copy(tmp_path / "unreadable" / "part-000000.parquet", tmp_path / "predictions" / "part-000000.parquet")
    assert predict(pictures, "--out", tmp_path) == 2
    assert "does not hold what was listed; remove it" in capsys.readouterr().err


@pytest.mark.usefixtures("small_parts")
def test_an_archive_that_changed_and_pictures_that_vanished_are_told(archives: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(archives["zip"], tmp_path / "all.zip")
    part = list(cut([str(tmp_path / "all.zip")], at_once=250))[-1]
    labeller = PartLabeller(SHIPPED.read_bytes(), tta=False, top=1)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("00.png", b"")
    with pytest.raises(InputError, match=r"all\.zip has other pictures than when it was listed"):
        labeller.label(part)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("inside/-.png", b"added at its front")
        for number in range(30):
            archive.writestr(f"inside/{number:02}.png", b"")
    with pytest.raises(InputError, match=r"all\.zip has other pictures than when it was listed"):
        labeller.label(part)
    (tmp_path / "all.zip").unlink()
    with pytest.raises(InputError, match=r"all\.zip and all else of part 4 cannot be seen from"):
        labeller.label(part)


def test_pictures_of_a_part_are_read_as_they_are_asked_for(archives: dict[str, Path]) -> None:
    (part,) = cut([str(archives["tar"])], at_once=250)
    (piece,) = part.pieces
    assert piece[:3] == (str(archives["tar"]), 0, 30)
    few = list(islice(read(part), 3))
    assert [picture.member for picture in few] == [f"inside/{number:02}.png" for number in range(3)]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--engine", "ray"], "give --out, too"),
        (["--address", "host:1", "--out", "x"], "give --engine ray, too"),
        (["--csv", "--out", "x"], "leave out --csv"),
        (["--json", "--out", "x"], "leave out --json"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "picture.png", *options]) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("engine", "missing"), [("local", "pyarrow"), ("ray", "pyarrow and ray")])
def test_without_pyarrow_or_ray_it_is_told_what_to_install(engine: str, missing: str, tmp_path: Path) -> None:
    words = ["predict", "x.png", "--out", str(tmp_path / "out"), "--engine", engine]
    program = (
        "import sys; sys.modules['ray'] = sys.modules['pyarrow'] = None\n"
        f"from onecycle.cli import main; sys.exit(main({words}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"onecycle: this needs {missing}; pip install 'onecycle[cluster]'\n")
    assert not (tmp_path / "out").exists()


def test_nothing_else_waits_for_ray_or_pyarrow(pictures: Path) -> None:
    program = (
        "import sys; from onecycle.cli import main; import onecycle.study.study, onecycle.study.ray\n"
        f"main(['predict', {str(pictures / '00.png')!r}])\n"
        "slow = {'ray', 'pyarrow', 'pandas'} & sys.modules.keys()\n"
        "sys.exit(f'imported {slow}' if slow else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_listing_says_what_it_lists(pictures: Path, tmp_path: Path) -> None:
    assert predict(pictures, "--out", tmp_path) == 2
    about = json.loads(pq.read_schema(tmp_path / "listing.parquet").metadata[b"onecycle"])
    assert about["sources"] == [str(pictures)] and len(about["network"]) == 64
