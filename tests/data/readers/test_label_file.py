"""Images whose labels are in a table, as pandas, spreadsheets, Kaggle and Hugging Face write them."""

import csv
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pytest
from image_folders import write_images
from PIL import Image

from onecycle.cli import main
from onecycle.core.errors import InputError
from onecycle.data import Dataset, load_dataset
from onecycle.data.check import check
from onecycle.data.readers.label_file import FOUND_NAMES

CLASSES = ("ant", "bee", "cät")
EACH = 5  # images


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """The images in class folders. Their numbers in all classes are different, and sort like the classes."""
    return write_images(tmp_path / "folders", dict.fromkeys(CLASSES, EACH))


@pytest.fixture
def table(folders: Path) -> pandas.DataFrame:
    """The rows of all images of `photos`, in random order."""
    rows = [
        {"file": f"{label}-{path.name}", "label": label}
        for label in CLASSES
        for path in sorted((folders / label).iterdir())
    ]
    return pandas.DataFrame(rows).sample(frac=1, random_state=0)


@pytest.fixture
def photos(folders: Path, table: pandas.DataFrame, tmp_path: Path) -> Path:
    """The images of `folders` without class folders."""
    (tmp_path / "photos").mkdir()
    for file in table.file:
        shutil.copy(folders / file.replace("-", "/", 1), tmp_path / "photos" / file)
    return tmp_path / "photos"


def assert_same(found: Dataset, expected: Dataset) -> None:
    assert [images.fingerprint for images in found.by_split.values()] == [
        images.fingerprint for images in expected.by_split.values()
    ]


def assert_refused(data: Path, message: str, *options: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(data), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("onecycle: ") and message in line and len(line) < 1000


def test_a_table_that_pandas_wrote_gives_the_same_sets_as_class_folders(
    photos: Path, folders: Path, table: pandas.DataFrame
) -> None:
    expected = load_dataset(folders)
    table.to_csv(photos / "labels.csv", index=False)
    found = load_dataset(photos, labels=str(photos / "labels.csv"))
    assert_same(found, expected)
    assert found.train.classes == CLASSES
    assert sorted(found.drawn or ()) == sorted(name.replace("/", "-") for name in expected.drawn or ())
    assert found.source == f"image folder {photos} with labels from {photos}/labels.csv (columns file and label)"
    assert not any("Left out" in note for note in found.notes)
    assert_same(load_dataset(photos, labels="labels.csv"), expected)  # relative to the images
    assert_same(load_dataset(photos), expected)  # found by its name


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        (("filename", "class"), {"index": True}),
        (("File Name", "Label"), {"index": False}),
        (("image_id", "category"), {"index": False, "quoting": csv.QUOTE_ALL}),
        (("path", "target"), {"index": False, "lineterminator": "\r\n"}),
        (("Image", "level"), {"index": False, "encoding": "utf-8-sig"}),
        (("id", "breed"), {"index": False, "sep": ";"}),
        (("img_path", "class_name"), {"index": False, "sep": "\t"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_common_names_of_columns_and_forms_of_csv_are_read(
    photos: Path, folders: Path, table: pandas.DataFrame, columns: tuple[str, str], options: dict[str, object]
) -> None:
    table.set_axis(list(columns), axis=1).to_csv(photos / "labels.csv", **options)
    found = load_dataset(photos)
    assert_same(found, load_dataset(folders))
    assert f"(columns {columns[0]} and {columns[1]})" in found.source


def test_names_with_commas_quotes_and_line_breaks_are_read(tmp_path: Path) -> None:
    names = ['a,"b".png', "line\nbreak.png", " é 1.png", "x;y.png"]
    write_images(tmp_path / "from", {"images": 4})
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, name in enumerate(names):
        shutil.copy(tmp_path / "from" / "images" / f"{number:02}.png", photos / name)
    pandas.DataFrame({"file": names, "label": ["a, b", "c", "a, b", "c"]}).to_csv(photos / "labels.csv", index=False)
    found = load_dataset(photos)
    assert found.train.classes == ("a, b", "c")
    assert len(found.train) + len(found.evaluation) == 4


@pytest.mark.parametrize("folder", ["train", "train_images", "."])
def test_the_table_of_a_competition_gives_ids_without_suffix(tmp_path: Path, folder: str) -> None:
    """Kaggle's CIFAR-10 has trainLabels.csv, train/ID.png and test/ID.png. The test images have no labels."""
    write_images(tmp_path / "from", {"images": 10})
    (tmp_path / "kaggle" / folder).mkdir(parents=True, exist_ok=True)
    for number in range(10):
        shutil.copy(
            tmp_path / "from" / "images" / f"{number:02}.png", tmp_path / "kaggle" / folder / f"{number + 1}.png"
        )
    if folder == "train":
        shutil.copytree(tmp_path / "kaggle" / "train", tmp_path / "kaggle" / "test")
        for path in (tmp_path / "kaggle" / "test").iterdir():
            Image.new("RGB", (20, 20)).save(path)
    labels = ["frog" if number % 2 else "truck" for number in range(10)]
    pandas.DataFrame({"id": range(1, 11), "label": labels}).to_csv(tmp_path / "kaggle" / "trainLabels.csv", index=False)
    found = load_dataset(tmp_path / "kaggle")
    assert found.train.classes == ("frog", "truck")
    assert [len(images) for images in found.by_split.values()] == [8, 2]
    assert all(images.images.any(axis=(1, 2, 3)).all() for images in found.by_split.values())
    left_out = [note for note in found.notes if "Left out" in note]
    expected = "10 images without a row in trainLabels.csv (test/1.png, test/10.png, test/2.png, …)"
    assert left_out == ([f"Left out: {expected}"] if folder == "train" else [])


def test_a_column_of_splits_gives_the_sets(photos: Path, table: pandas.DataFrame, tmp_path: Path) -> None:
    splits = {"00": "Train", "01": "train", "02": "train", "03": "valid", "04": "TEST"}
    table["split"] = [splits[file.split("-")[1][:2]] for file in table.file]
    for file, label, split in table.itertuples(index=False):
        folder = tmp_path / "sets" / {"valid": "val"}.get(split, split.lower()) / label
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / file, folder / file)
    table.to_csv(photos / "labels.csv", index=False)
    found = load_dataset(photos)
    assert_same(found, load_dataset(tmp_path / "sets"))
    assert list(found.by_split) == ["train", "validation", "test"]
    assert "(columns file, label and split)" in found.source


def test_without_a_column_of_splits_the_folders_give_the_sets(folders: Path, tmp_path: Path) -> None:
    rows = []
    for split in ("train", "test"):
        (tmp_path / "photos" / split).mkdir(parents=True)
        for path in sorted(folders.glob("*/*.png")):
            if (path.stem == "04") == (split == "test"):
                name = f"{split}/{path.parent.name}-{path.name}"
                shutil.copy(path, tmp_path / "photos" / name)
                rows.append({"file_name": name, "label": path.parent.name})
    pandas.DataFrame(rows).to_csv(tmp_path / "photos" / "labels.csv", index=False)
    found = load_dataset(tmp_path / "photos")
    assert (found.drawn, len(found.train), len(found.evaluation)) == (None, 12, 3)


@pytest.mark.parametrize(
    "prefix", ["images/", "./images/", "images\\", "photos/images/", "{absolute}/images/", "../photos/images/"]
)
@pytest.mark.parametrize("place", ["in the data", "beside the data"])
def test_paths_are_relative_to_the_table_or_to_the_data(
    folders: Path, photos: Path, table: pandas.DataFrame, tmp_path: Path, prefix: str, place: str
) -> None:
    shutil.move(photos, tmp_path / "images")
    photos.mkdir()
    shutil.move(tmp_path / "images", photos)
    (photos / "images" / "extra").mkdir()
    shutil.copy(photos / "images" / "ant-00.png", photos / "images" / "extra")
    file = (photos if place == "in the data" else tmp_path) / "all.csv"
    table.file = [prefix.format(absolute=photos) + name for name in table.file]
    table.to_csv(file, index=False)
    relative_to_the_table = {"photos/images/": "beside the data", "../photos/images/": "in the data"}
    if relative_to_the_table.get(prefix, place) != place:
        with pytest.raises(
            InputError, match=r"all\.csv, line 2: (there is no image '|'\.\./.*' is outside of the data)"
        ):
            load_dataset(photos, labels=str(file))
    else:
        found = load_dataset(photos, labels=str(file))
        assert_same(found, load_dataset(folders))
        assert "1 image without a row in all.csv (images/extra/ant-00.png)" in found.notes[-1]


def _zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    return folder.with_suffix(".zip")


def _tar(folder: Path) -> Path:
    with tarfile.open(folder.with_suffix(".tar.gz"), "w:gz") as archive:
        archive.add(folder, "outer")
    return folder.with_suffix(".tar.gz")


def _outer(folder: Path) -> Path:
    shutil.copytree(folder, folder.parent / "outer" / "photos")
    return folder.parent / "outer"


@pytest.mark.parametrize("form", [_zip, _tar, _outer])
@pytest.mark.parametrize("name", ["labels.csv", "TrainLabels.csv"])
def test_a_table_is_found_in_an_archive_and_in_the_only_folder(
    photos: Path, folders: Path, table: pandas.DataFrame, form: Callable[[Path], Path], name: str
) -> None:
    table.to_csv(photos / name, index=False)
    source = form(photos)
    expected = load_dataset(folders)
    assert_same(load_dataset(source), expected)
    assert_same(load_dataset(source), expected)  # from the cache
    assert not any("Left out" in note for note in load_dataset(source).notes)
    assert check(source).counts == {"train": (4, 4, 4), "test": (1, 1, 1)}
    inside = name if form == _zip else f"{'outer' if form == _tar else 'photos'}/{name}"
    assert_same(load_dataset(source, labels=inside), expected)


def test_a_table_beside_archives_of_images_is_read(photos: Path, folders: Path, table: pandas.DataFrame) -> None:
    archives = photos.parent / "archives"
    archives.mkdir()
    for label in CLASSES:
        with tarfile.open(archives / f"{label[0]}.tar", "w") as archive:
            for path in photos.glob(f"{label}-*"):
                archive.add(path, path.name)
    table.to_csv(archives / "labels.csv", index=False)
    found = load_dataset(archives)
    assert_same(found, load_dataset(folders))
    assert not any("Left out" in note for note in found.notes)


def test_a_table_beside_one_archive_is_read(photos: Path, folders: Path, table: pandas.DataFrame) -> None:
    competition = photos.parent / "competition"
    competition.mkdir()
    (photos / "notes.csv").write_text("a,b")
    shutil.make_archive(str(competition / "train"), "zip", photos)
    table.to_csv(competition / "trainLabels.csv", index=False)
    found = load_dataset(competition)
    assert_same(found, load_dataset(folders))
    (note,) = [note for note in found.notes if "Left out" in note]
    assert "notes.csv" in note, "the table is not counted in its place"


def test_a_hidden_table_is_read(photos: Path, folders: Path, table: pandas.DataFrame) -> None:
    (photos / ".labels").mkdir()
    (photos / "notes.csv").write_text("a,b")
    table.to_csv(photos / ".labels" / "mine.csv", index=False)
    found = load_dataset(photos, labels=str(photos / ".labels" / "mine.csv"))
    assert_same(found, load_dataset(folders))
    assert any("notes.csv" in note for note in found.notes)


def test_a_table_in_a_renamed_archive_is_named_by_its_path_inside(
    photos: Path, folders: Path, table: pandas.DataFrame
) -> None:
    table.to_csv(photos / "labels.csv", index=False)
    archive = _zip(photos)
    before = load_dataset(archive)
    after = load_dataset(archive.rename(archive.with_name("renamed.zip")))
    assert before.fingerprint == after.fingerprint
    assert "renamed.zip with labels from labels.csv" in after.source


def test_a_changed_table_is_read_again(photos: Path, table: pandas.DataFrame) -> None:
    table.to_csv(photos / "labels.csv", index=False)
    before = load_dataset(photos)
    other = table.assign(
        label=np.where(table.label == "ant", "bee", np.where(table.label == "bee", "ant", table.label))
    )
    other.to_csv(photos / "labels.csv", index=False)
    after = load_dataset(photos)
    assert before.train.fingerprint != after.train.fingerprint
    table.to_csv(photos.parent / "labels.csv", index=False)
    assert load_dataset(photos, labels=str(photos.parent / "labels.csv")).fingerprint == before.fingerprint


def test_two_layouts_at_once_are_refused_unless_the_option_says_which(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_dataset(folders)
    rows = [{"file": f"{path.parent.name}/{path.name}", "label": path.stem} for path in folders.glob("*/*.png")]
    pandas.DataFrame(rows).to_csv(folders / "labels.csv", index=False)
    message = (
        f"{folders}: has two layouts, class folders and labels in {folders}/labels.csv; use --labels labels.csv to "
        "read these labels, or --labels none to read the folders"
    )
    assert_refused(folders, message, capsys=capsys)
    with pytest.raises(InputError, match="has two layouts, class folders and labels in"):
        load_dataset(_zip(folders))
    assert load_dataset(folders, labels="none").fingerprint == before.fingerprint
    assert load_dataset(folders, labels="labels.csv").train.classes == ("00", "01", "02", "03", "04")
    # A table of something else is no layout.
    (folders / "labels.csv").write_text("ClassId,Name\n0,ant\n1,bee\n")
    again = load_dataset(folders)
    assert again.fingerprint == before.fingerprint
    assert "1 file .csv, not an image format that is read (labels.csv)" in again.notes[-1]


HEADER = "file,label"
ROW = "ant-00.png,a"
NOT_TEXT = "labels.csv: is not text in UTF-8; save it as a CSV file in UTF-8"
BAD_TABLES: list[tuple[list[str] | bytes, str]] = [
    (b"", "labels.csv: the file is empty; it needs columns such as file and label"),
    ([HEADER], "labels.csv: has no rows below its first line; add a row for each image"),
    (
        ["name,label", ROW],
        "labels.csv: has no column of files among its columns 'name', 'label'; call one of them 'file'",
    ),
    (["file,a,b", "1.png,2,3"], "has no column of labels among its columns 'file', 'a', 'b'; call one of them 'label'"),
    (["file,label,Label", "1.png,a,b"], "labels.csv: has two columns 'label'; remove or rename one"),
    ([HEADER, ROW, "x.png,b"], "labels.csv, line 3: there is no image 'x.png' in "),
    ([HEADER, "x.png,b", "y.png,c"], "line 2: there is no image 'x.png' in "),
    ([HEADER, "x.png,b", "y.png,c"], "; correct the 2 rows without an image"),
    ([HEADER, ROW, "ant-01.png,b", "ant-00.png,b"], "line 4: 'ant-00.png' has the label 'b', but 'a' in line 2; keep"),
    (["file,label,split", f"{ROW},train", f"{ROW},test"], "line 3: 'ant-00.png' has the split 'test', but 'train' in"),
    ([HEADER, "../secret.png,a"], "line 2: '../secret.png' is outside of the data; give its path inside"),
    ([HEADER, "images/../../x.png,a"], "line 2: 'images/../../x.png' is outside of the data; give its path inside"),
    ([HEADER, "/etc/passwd,a"], "line 2: '/etc/passwd' is outside of the data; give its path inside"),
    ([HEADER, "C:\\x\\1.png,a"], "line 2: 'C:\\\\x\\\\1.png' is outside of the data; give its path inside"),
    ([HEADER, "ant-00.png,"], "line 2: the label is empty; fill it in, or remove the line"),
    ([HEADER, " ,a"], "line 2: the file is empty; fill it in, or remove the line"),
    ([HEADER, "ant-00.png"], "line 2: the number of cells is 1, but the first line has 2; correct it"),
    (["file,label,split", f"{ROW},holdout"], "line 2: the split is 'holdout'; it must be train, val or test"),
    (["file,label,split", f"{ROW},"], "line 2: the split is ''; it must be train, val or test"),
    (["file,label,split", f"{ROW},val"], "no row has the split train; set the split of the training images to train"),
    (["file,label,split", f"{ROW},train", "ant-01.png,b,val"], "the label 'b' is in the validation set, but not in"),
    ([HEADER, ROW, "ant-01.png,a"], "there is only one class, 'a'; a classifier needs at least two"),
    ([HEADER, ROW, "ant-01.png,A"], "the labels 'A' and 'a' differ in case only; rename or merge them"),
    ([HEADER, ROW, "ant-01.png,b"], "class 'a' has only one image, but training and testing need one each; add more"),
    ([HEADER, f"{ROW}\x07", "ant-01.png,b"], "the class name 'a\\x07' cannot be printed; rename it"),
    ([HEADER, f"{ROW}\0", "ant-01.png,b"], "the class name 'a\\x00' cannot be printed; rename it"),
    ([HEADER, '"ant-00.png,a'], "is not a line of a CSV file (unexpected end of data); correct it"),
    ([HEADER, ROW + "a" * 200_000], "line 2: is not a line of a CSV file (field larger than field limit"),
    ([HEADER + ",x" * 1_000_000, ROW], "labels.csv: has 1,000,002 columns, but an image needs only a file and a label"),
    (b"file,label\nant-00.png,\xff\xfe\n", NOT_TEXT),
    (bytes(range(256)) * 100, NOT_TEXT),
    ("file,label\n".encode("utf-16"), NOT_TEXT),
]


@pytest.mark.parametrize(("content", "message"), BAD_TABLES, ids=[message[:40] for _, message in BAD_TABLES])
def test_a_bad_table_is_refused_in_one_line(
    photos: Path, content: list[str] | bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "labels.csv").write_bytes(content if isinstance(content, bytes) else "\n".join(content).encode())
    assert_refused(photos, message, "--labels", str(photos / "labels.csv"), capsys=capsys)


def test_a_bad_table_in_an_archive_is_refused_in_one_line(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "labels.csv").write_text("file,label\nant-00.png,a\n../x.png,b\n")
    message = "photos.zip:labels.csv, line 3: '../x.png' is outside of the data; give its path inside"
    assert_refused(_zip(photos), message, "--labels", "labels.csv", capsys=capsys)
    (photos / "labels.csv").write_text("file,label\nant-00.png,\n")
    message = "photos.zip:labels.csv, line 2: the label is empty; fill it in, or remove the line; --labels none ignores"
    assert_refused(_zip(photos), message, capsys=capsys)


def test_a_name_of_several_images_is_refused(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folders.parent / "labels.csv").write_text("id,label\n00,a\n01,b\n")
    message = "labels.csv, line 2: '00' may be 'ant/00.png' or 'bee/00.png'; give more of its path"
    assert_refused(folders, message, "--labels", str(folders.parent / "labels.csv"), capsys=capsys)


@pytest.mark.parametrize("form", [lambda folder: folder, _zip])
def test_a_missing_table_is_refused(
    photos: Path, form: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source = form(photos)
    message = f"--labels: there is no file missing.csv, neither here nor in {source}; check the path"
    assert_refused(source, message, "--labels", "missing.csv", capsys=capsys)


def test_a_table_here_and_another_one_in_the_data_are_refused(
    photos: Path,
    table: pandas.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (photos, tmp_path):
        table.to_csv(folder / "labels.csv", index=False)
    assert len(load_dataset(photos, labels="labels.csv").train) == 12
    table[:6].to_csv(tmp_path / "labels.csv", index=False)
    message = f"--labels: labels.csv names one file from here and another one from {photos}; give the full path"
    assert_refused(photos, message, "--labels", "labels.csv", capsys=capsys)


def test_a_table_here_and_another_one_in_an_archive_are_refused(
    photos: Path, table: pandas.DataFrame, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(photos.parent)
    table.to_csv(photos / "labels.csv", index=False)
    archive = _zip(photos)
    table.assign(label="ant").to_csv("labels.csv", index=False)
    assert_refused(archive, "names one file from here and another one from", "--labels", "labels.csv", capsys=capsys)
    table.to_csv("labels.csv", index=False)
    assert main(["check", str(archive), "--labels", "labels.csv"]) == 0


def test_a_damaged_archive_is_no_fault_of_a_table(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = _tar(photos)
    archive.write_bytes(archive.read_bytes()[:-700])
    assert main(["check", str(archive)]) == 2
    assert "--labels none ignores" not in capsys.readouterr().err


@pytest.mark.parametrize("data", ["digits", "cifar10"])
def test_a_data_set_with_labels_of_its_own_takes_no_table(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = f"--labels is 'labels.csv', but {data} has labels; give your own images with --data"
    assert_refused(Path(data), message, "--labels", "labels.csv", capsys=capsys)


def test_repeated_rows_and_blank_lines_count_once(photos: Path, table: pandas.DataFrame, folders: Path) -> None:
    twice = pandas.concat([table, table]).to_csv(index=False)
    (photos / "labels.csv").write_text(twice.replace("bee-00.png,bee\n", "bee-00.png,bee\n\n") + "\n\n")
    assert_same(load_dataset(photos), load_dataset(folders))


def test_the_names_that_are_found_are_documented() -> None:
    text = (Path(__file__).parents[3] / "docs" / "your-own-images.md").read_text()
    assert all(name in text.lower() for name in FOUND_NAMES)
