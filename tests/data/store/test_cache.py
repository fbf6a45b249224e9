import os
import time
from pathlib import Path

import numpy as np
import pytest

from onecycle.core.errors import InputError, StorageError
from onecycle.data.store.cache import cache_folder, cached


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _write(folder: Path) -> None:
    (folder / "value").write_text("7")


def _read(folder: Path) -> int:
    return int((folder / "value").read_text())


def test_an_entry_is_written_once_and_then_only_read() -> None:
    def never(folder: Path) -> None:
        raise AssertionError("written twice")

    assert cached("key", _write, _read) == 7
    assert cached("key", never, _read) == 7


@pytest.mark.parametrize("damage", ["not a number", None])
def test_a_damaged_entry_is_written_again(damage: str | None) -> None:
    cached("key", _write, _read)
    value = cache_folder() / "images" / "key" / "value"
    value.write_text(damage) if damage else value.unlink()
    assert cached("key", _write, _read) == 7
    assert value.read_text() == "7"


def test_an_entry_with_an_empty_array_is_written_again() -> None:
    def write(folder: Path) -> None:
        np.save(folder / "labels.npy", np.arange(3))

    def read(folder: Path) -> list[int]:
        return np.load(folder / "labels.npy").tolist()

    cached("key", write, read)
    (cache_folder() / "images" / "key" / "labels.npy").write_bytes(b"")
    assert cached("key", write, read) == [0, 1, 2]


def test_what_a_killed_process_left_long_ago_is_removed() -> None:
    images = cache_folder() / "images"
    for name, days in (("partial-old", 8), ("partial-new", 1)):
        (images / name).mkdir(parents=True)
        os.utime(images / name, (time.time() - days * 86400,) * 2)
    cached("key", _write, _read)
    assert sorted(entry.name for entry in images.iterdir()) == ["key", "partial-new"]


@pytest.mark.parametrize("failure", [InputError("a broken image"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_behind(failure: BaseException) -> None:
    def fails(folder: Path) -> None:
        _write(folder)
        raise failure

    with pytest.raises(type(failure)):
        cached("key", fails, _read)
    assert list((cache_folder() / "images").iterdir()) == []


def test_of_two_writers_the_slower_uses_the_entry_of_the_faster() -> None:
    def write_slowly(folder: Path) -> None:
        (folder / "value").write_text("8")
        cached("key", _write, _read)

    assert cached("key", write_slowly, _read) == 7
    assert [entry.name for entry in (cache_folder() / "images").iterdir()] == ["key"]


def test_the_error_of_an_unwritable_cache_names_the_remedies(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="cannot be written .*; make room there, or set XDG_CACHE_HOME"):
        cached("key", _write, _read)
