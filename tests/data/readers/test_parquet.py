import io
import json
import shutil
from collections.abc import Callable, Sequence
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from onecycle.cli import main
from onecycle.core.errors import InputError
from onecycle.data import load_dataset
from onecycle.data.check import check
from onecycle.data.image_files import to_square

WRITTEN = Path(__file__).parent / "files" / "datasets-5.2.0"
TRAIN, TEST = "train-00000-of-00001.parquet", "test-00000-of-00001.parquet"
FEATURES = {
    "image": {"_type": "Image"},
    "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
}


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (6, 7, 3), dtype=np.uint8))


def encoded(number: int, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture(number).save(buffer, format)
    return buffer.getvalue()


def write(
    path: Path,
    numbers: Sequence[int],
    labels: Sequence[Any],
    features: dict[str, Any] | None = FEATURES,
    contents: Sequence[bytes | None] = (),
    **others: Any,
) -> Path:
    """Write a table as `datasets` documents it: a struct of bytes and path, a label, and the features in the schema."""
    images = [{"bytes": content, "path": "x.png"} for content in contents or map(encoded, numbers)]
    columns = {"image": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])), "label": labels}
    table = pa.table({**columns, **others})
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set with four training images and two test images."""
    write(tmp_path / "set" / "data" / TRAIN, range(4), [0, 1, 0, 1])
    write(tmp_path / "set" / "data" / TEST, range(4, 6), [1, 0])
    return tmp_path / "set"


def test_files_that_datasets_wrote_hold_the_same_images_and_labels() -> None:
    found = load_dataset(WRITTEN, input_size=7)
    assert (found.name, found.evaluated_on) == ("datasets-5.2.0", "test")
    assert found.notes == ("Left out: 1 label without images (eel)",)
    assert found.validation
    for images, numbers, labels in (
        (found.train, range(6), [0, 1, 0, 1, 1, 0]),
        (found.validation, range(6, 8), [0, 1]),
        (found.evaluation, range(8, 10), [1, 0]),
    ):
        assert images.classes == ("cat", "dog")
        assert images.labels.tolist() == labels
        assert (images.images == [to_square(picture(number), 7) for number in numbers]).all()
    assert found.train.names
    assert found.train.names[4] == "train-00001-of-00002.parquet, row 0"


def test_check_names_the_format_the_classes_and_the_images(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(WRITTEN)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Hugging Face parquet files from {WRITTEN / 'data'}"
    assert [line.split() for line in lines if line.startswith(("cat", "dog"))] == [
        ["cat", "3", "1", "1"],
        ["dog", "3", "1", "1"],
    ]
    assert "  1 label without images (eel)" in lines
    assert lines[-1] == "Safe to train on"


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train.parquet", "dev.parquet", "test.parquet"], ["train", "validation", "test"]),
        (["plain_text/training-1.parquet", "plain_text/eval.parquet"], ["train", "test"]),
        (["train/0000.parquet", "validation/0000.parquet"], ["train", "validation"]),
        (["data/my_train_file.parquet", "data/Valid 2.parquet"], ["train", "validation"]),
        (["birds.parquet", "more.parquet"], ["train", "train"]),
    ],
)
def test_the_split_is_a_word_of_the_name_as_on_the_hub(names: list[str], splits: list[str], tmp_path: Path) -> None:
    for name in names:
        write(tmp_path / name, range(4), [0, 1, 0, 1])
    counts = check(tmp_path).counts
    expected = {split: 4 * splits.count(split) for split in splits}
    if splits == ["train", "train"]:  # a fifth is drawn for testing, and at least one of each class
        expected = {"train": 6, "test": 2}
    assert {split: sum(of_split) for split, of_split in counts.items()} == expected


def test_a_file_without_a_test_split_gives_images_for_testing_by_name(tmp_path: Path) -> None:
    found = load_dataset(write(tmp_path / "birds.parquet", range(10), [0, 1] * 5))
    assert (found.name, len(found.train), len(found.evaluation)) == ("birds", 8, 2)
    assert found.drawn and all(name.startswith("birds.parquet, row ") for name in found.drawn)


def test_labels_may_be_texts_or_numbers_without_names(data: Path) -> None:
    for labels, classes in ((["b", "a", "b", "c"], ("a", "b", "c")), ([7, 300, 7, 7], ("7", "300"))):
        write(data / "data" / TRAIN, range(4), labels, None)
        write(data / "data" / TEST, range(2), labels[:2], None)
        found = load_dataset(data)
        assert found.train.classes == classes
        assert [classes[label] for label in found.train.labels] == [str(label) for label in labels]
    table = pa.table({"x": pa.array([encoded(0), encoded(1)] * 2), "y": pa.array(["a", "b"] * 2).dictionary_encode()})
    pq.write_table(table, data / "plain.parquet")
    assert load_dataset(data / "plain.parquet").train.classes == ("a", "b")


def test_jpegs_and_gray_images_of_any_size_are_converted_like_files(data: Path) -> None:
    gray = io.BytesIO()
    picture(1).convert("L").resize((50, 40)).save(gray, "PNG")
    contents = [encoded(0, "JPEG"), gray.getvalue(), encoded(2, "WEBP"), encoded(3)]
    write(data / "data" / TRAIN, range(4), [0, 1, 0, 1], contents=contents)
    images = load_dataset(data).train.images
    for content, image in zip(contents, images, strict=True):
        assert (image == to_square(Image.open(io.BytesIO(content)), 32)).all()
    assert [name for what, names in check(data).converted.items() if what.startswith("L:") for name in names] == [
        f"{data / 'data' / TRAIN}, row 1"
    ]


@pytest.mark.parametrize(("coarse", "classes"), [(False, ("apple", "bee")), (True, ("fruit", "insect"))])
def test_cifar_100_of_the_hub_has_fine_and_coarse_labels(
    coarse: bool, classes: tuple[str, ...], tmp_path: Path
) -> None:
    features = {
        "image": {"_type": "Image"},
        "fine_label": {"names": ["apple", "bee"], "_type": "ClassLabel"},
        "coarse_label": {"names": ["fruit", "insect"], "_type": "ClassLabel"},
    }
    image = {"bytes": encoded(0), "path": None}
    labels = [0, 1, 0, 1]
    table = pa.table({"image": [image] * 4, "fine_label": labels, "coarse_label": labels})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "cifar.parquet")
    assert load_dataset(tmp_path / "cifar.parquet", coarse=coarse).train.classes == classes


def test_coarse_labels_are_refused_without_their_column(data: Path) -> None:
    with pytest.raises(InputError, match=f"--coarse is for CIFAR-100, and .*{TRAIN} has no column coarse_label"):
        load_dataset(data, coarse=True)


def test_a_changed_file_is_read_again_and_an_unchanged_one_comes_from_the_cache(data: Path) -> None:
    before = load_dataset(data).train
    write(data / "data" / TRAIN, range(10, 14), [0, 1, 0, 1])
    after = load_dataset(data).train
    assert (before.images != after.images).any(axis=(1, 2, 3)).all()
    assert load_dataset(data).train.fingerprint == after.fingerprint


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "cannot be read to its end"),
        (lambda path: path.write_bytes(b"PAR1"), "cannot be read to its end"),
        (lambda path: path.write_bytes(b""), "cannot be read to its end"),
        (lambda path: path.write_bytes(b"PAR1" + bytes(500) + path.read_bytes()[504:]), f"{TRAIN}"),
        (lambda path: path.unlink(), "has no parquet file for training, such as train-00000-of-00001.parquet"),
        (
            lambda path: path.rename(path.with_name("train-00000-of-00003.parquet")),
            "train-00001-of-00003.parquet is miss",
        ),
        (lambda path: path.rename(path.with_name("train-test.parquet")), r"words for several splits \(test, train\)"),
        (
            lambda path: write(path, range(4), [0, 1, -1, 1]),
            "row 2 has the label -1, which stands for an unknown class",
        ),
        (lambda path: write(path, range(4), [0, 1, 2, 1]), "row 2 has the label 2, but there are only 2 class names"),
        (lambda path: write(path, range(4), [0, 1, None, 1]), "row 2: has no label; remove the rows without a label"),
        (lambda path: write(path, range(4), [0, 0, 0, 0]), f"{TEST}, row 0 has the label dog, which no image of train"),
        (
            lambda path: write(path, range(4), [0.5, 1, 0, 1]),
            "has no column with labels; it must have one column of labels",
        ),
        (lambda path: write(path, range(0), pa.array([], pa.int64())), "train has no images"),
        (lambda path: write(path, range(4), ["a", "b"] * 2), "other columns or class names|has other"),
        (
            lambda path: write(path, range(4), [0, 1] * 2, {**FEATURES, "label": {"_type": "ClassLabel", "names": 3}}),
            "class names in its schema are not a list",
        ),
        (
            lambda path: write(
                path, range(4), [0, 1] * 2, {**FEATURES, "label": {"_type": "ClassLabel", "names": ["a", "A"]}}
            ),
            "has other columns or class names than",
        ),
        (
            lambda path: write(path, range(4), [0, 1] * 2, other=[1, 2] * 2, features=None),
            "other columns or class names",
        ),
        (
            lambda path: write(path, range(4), [0, 1] * 2, second=[b"x"] * 4, features=None),
            "the columns image, second with im",
        ),
        (lambda path: pq.write_table(pa.table({"label": [0, 1]}), path), "has no column with images; it must have one"),
        (lambda path: pq.write_table(pa.table({"image": [b"x"]}), path), "has no column with labels"),
        (
            lambda path: pq.write_table(pa.table({"image": [b"x"], "a": [1], "b": [2]}), path),
            "the columns a, b with labels",
        ),
        (
            lambda path: pq.write_table(
                pa.table({"image": [b"x"], "label": [1]}).replace_schema_metadata({"huggingface": "{"}), path
            ),
            "the huggingface metadata of its schema is damaged",
        ),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(
    damage: Callable[[Path], object], message: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(data / "data" / TRAIN)
    with pytest.raises(InputError, match=message) as refused:
        load_dataset(data)
    assert "\n" not in str(refused.value)
    assert main(["check", str(data)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_images_that_cannot_be_used_are_listed_with_their_rows(data: Path) -> None:
    contents = [encoded(0), b"not an image", None, encoded(3)[:60]]
    path = write(data / "data" / TRAIN, range(4), [0, 1, 0, 1], contents=contents)
    reasons = [
        f"{path}, row 1: not an image (12 bytes); replace or remove it",
        f"{path}, row 2: there is no image, perhaps only its path; embed the images, as push_to_hub does",
    ]
    with pytest.raises(InputError) as refused:
        load_dataset(data)
    assert f"3 of 6 images cannot be used: {'; '.join(reasons)}; {path}, row 3: the image cannot be" in str(
        refused.value
    )
    found = check(data)
    assert found.problems[:2] == tuple(reasons)
    assert found.dangers() == ["3 images cannot be used"]


def test_an_image_of_too_many_bytes_is_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onecycle.data.readers.parquet.LARGEST_FILE", 100)
    with pytest.raises(InputError, match=f"{TRAIN}, row 0: has .* bytes; the limit is 100"):
        load_dataset(data)


def test_files_that_are_not_read_are_named(data: Path) -> None:
    (data / "data" / "notes.txt").touch()
    (data / "data" / ".gitattributes").touch()
    shutil.copy(data / "data" / TRAIN, data / "data" / "unused.parquet")
    assert check(data).left_out == (
        "1 file of another kind (notes.txt)",
        "1 parquet file whose name has no split (unused.parquet)",
    )


def test_parquet_beside_pictures_is_refused_with_the_way_out(data: Path) -> None:
    (data / "cats").mkdir()
    picture(0).save(data / "cats" / "0.png")
    with pytest.raises(InputError) as refused:
        load_dataset(data)
    assert str(refused.value) == (
        f"{data}: holds several data sets: Hugging Face parquet files (data), image files (in the folder itself)"
        "; give the path of one of them, or move the others away"
    )
    assert len(load_dataset(data / "data").train) == 4


def test_two_configurations_in_one_folder_are_refused(data: Path) -> None:
    shutil.copytree(data / "data", data / "small")
    with pytest.raises(InputError, match=r"Hugging Face parquet files \(data\), Hugging Face parquet files \(small\)"):
        load_dataset(data)


def test_a_missing_pyarrow_is_reported_with_the_command_that_installs_it(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = util.find_spec
    monkeypatch.setattr("onecycle.core.extras.find_spec", lambda name: None if name == "pyarrow" else found(name))
    with pytest.raises(InputError, match=r"this needs pyarrow; run pip install 'onecycle\[parquet\]'$"):
        load_dataset(data)
