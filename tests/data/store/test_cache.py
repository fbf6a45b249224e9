from pathlib import Path

import pytest

from onecycle.core.errors import InputError
from onecycle.data.store.cache import cache_folder, cached


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _write(folder: Path) -> None:
    (folder / "value").write_text("7")


def _read(folder: Path) -> int:
    return int((folder / "value").read_text())


def test_what_was_written_once_is_only_read_afterwards() -> None:
    def never(folder: Path) -> None:
        raise AssertionError("written twice")

    assert cached("key", _write, _read) == 7
    assert cached("key", never, _read) == 7


@pytest.mark.parametrize("damage", ["not a number", None])
def test_a_damaged_entry_is_made_again(damage: str | None) -> None:
    cached("key", _write, _read)
    value = cache_folder() / "images" / "key" / "value"
    value.write_text(damage) if damage else value.unlink()
    assert cached("key", _write, _read) == 7
    assert value.read_text() == "7"


@pytest.mark.parametrize("failure", [InputError("a broken image"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_behind(failure: BaseException) -> None:
    def fails(folder: Path) -> None:
        _write(folder)
        raise failure

    with pytest.raises(type(failure)):
        cached("key", fails, _read)
    assert list((cache_folder() / "images").iterdir()) == []


def test_the_second_of_two_processes_uses_what_the_first_wrote() -> None:
    def while_another_was_faster(folder: Path) -> None:
        (folder / "value").write_text("8")
        cached("key", _write, _read)

    assert cached("key", while_another_was_faster, _read) == 7
    assert [entry.name for entry in (cache_folder() / "images").iterdir()] == ["key"]


def test_a_cache_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(InputError, match="cannot be written .*; make room there, or set XDG_CACHE_HOME"):
        cached("key", _write, _read)
