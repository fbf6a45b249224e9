import json

import pytest

from onecycle.data.readers.entries import BROKEN_LINK, Entry
from onecycle.data.readers.left_out import LeftOut


def _left_out(*names: str) -> LeftOut:
    left_out = LeftOut()
    for name in names:
        left_out.add_entry(Entry(tuple(name.split("/")), False, bytes))
    return left_out


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["a/1.CR2"], "1 file .cr2, not an image format that is read (a/1.CR2)"),
        (
            ["a/1.cr2", "a/2.CR2", "b/3.cr2"],
            "3 files .cr2, not an image format that is read (a/1.cr2, a/2.CR2, b/3.cr2)",
        ),
        (["1.cr2"] * 1000, "1,000 files .cr2, not an image format that is read (1.cr2, 1.cr2, 1.cr2, …)"),
        (["README"], "1 file without a suffix such as .jpg (README)"),
        (["Mr. Smith at the sea", "v1.0 of Monday"], "2 files without a suffix such as .jpg (Mr. Smith at the sea, v"),
        (["a\n.txt"], r"1 file .txt, not an image format that is read ('a\n.txt')"),
        (["\udcff.txt"], r"1 file .txt, not an image format that is read ('\udcff.txt')"),
        (["a.png", "b.jpg"], "2 images beside the class folders (a.png, b.jpg)"),
    ],
)
def test_files_are_counted_by_reason_and_the_first_are_named(names: list[str], line: str) -> None:
    (found,) = _left_out(*names).lines()
    assert found.startswith(line)


def test_a_folder_is_not_counted_and_the_problem_of_an_entry_is_its_reason() -> None:
    left_out = LeftOut()
    left_out.add_entry(Entry(("a",), True, bytes))
    assert not left_out
    left_out.add_entry(Entry(("a", "1.png"), False, bytes, BROKEN_LINK))
    assert left_out.lines() == ["1 link without a target (a/1.png)"]


def test_the_most_frequent_reason_comes_first() -> None:
    lines = _left_out("a.txt", "a.nef", "b.nef").lines()
    assert [line.split(",")[0] for line in lines] == ["2 files .nef", "1 file .txt"]


def test_a_million_suffixes_need_no_memory() -> None:
    left_out = _left_out(*(f"img.{number}" for number in range(10_000)))
    first, *others = left_out.lines()
    assert first == "9,980 files of another kind (img.20, img.21, img.22, …)"
    assert len(others) == 20


def test_counts_of_several_archives_are_added_with_the_names_of_the_archives() -> None:
    both = LeftOut()
    for archive, names in (("one.zip", ("a.txt", "b.txt")), ("two.tar", ("c.txt", "d.txt"))):
        both.include(_left_out(*names), f"{archive}:")
    assert both.lines() == [
        "4 files .txt, not an image format that is read (one.zip:a.txt, one.zip:b.txt, two.tar:c.txt, …)"
    ]


def test_counts_are_saved_as_json() -> None:
    left_out = _left_out("a.txt", "\udcff", "b")
    assert LeftOut.from_json(json.loads(json.dumps(left_out.to_json()))) == left_out


def test_a_message_says_what_is_left_out_if_anything_is() -> None:
    assert LeftOut().appended_to("there is no image") == "there is no image"
    assert _left_out("a", "b.txt").appended_to("there is no image") == (
        "there is no image. Left out: 1 file without a suffix such as .jpg (a); "
        "1 file .txt, not an image format that is read (b.txt)"
    )
