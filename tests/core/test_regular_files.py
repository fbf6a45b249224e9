import os
from collections.abc import Callable
from pathlib import Path

import pytest

from onecycle.core.errors import InputError, StorageError
from onecycle.core.files import locked, reading, replacing
from onecycle.core.regular_files import make_folder, read_regular

LIMIT = 100  # bytes


def a_link(path: Path) -> None:
    path.with_name("victim").write_text("precious")
    path.symlink_to("victim")


def a_link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.mkdir()


def a_large_file(path: Path) -> None:
    path.write_bytes(bytes(LIMIT + 1))


def a_huge_sparse_file(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


LINKS = [a_link, a_link_to_a_device, a_dangling_link]


@pytest.mark.parametrize("make", [*LINKS, a_pipe, a_folder, a_large_file, a_huge_sparse_file])
def test_only_regular_files_of_a_bounded_size_are_read(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "file"
    make(path)
    with pytest.raises(InputError, match=f"^{path} is damaged or of another kind .*; restore") as error, reading(path):
        read_regular(path, LIMIT)
    assert "\n" not in str(error.value)


def test_a_regular_file_is_read_also_below_a_linked_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(bytes(LIMIT))
    (tmp_path / "link").symlink_to("folder")
    assert read_regular(tmp_path / "link" / "file", LIMIT) == bytes(LIMIT)


def test_a_small_file_needs_no_more_memory_than_its_size(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(LIMIT))
    assert read_regular(tmp_path / "file", 2**50) == bytes(LIMIT)


@pytest.mark.parametrize("make", [*LINKS, a_pipe, a_folder])
def test_a_lock_that_is_no_regular_file_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / ".lock")
    before = sorted(tmp_path.iterdir())
    message = f"^{tmp_path / '.lock'} cannot be written .*; (remove|check) it$"
    with pytest.raises(StorageError, match=message), locked(tmp_path):
        pass
    assert sorted(tmp_path.iterdir()) == before
    assert make is not a_link or (tmp_path / "victim").read_text() == "precious"


def test_a_lock_that_is_a_hard_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    os.link(tmp_path / "victim", tmp_path / ".lock")
    with pytest.raises(StorageError, match="it is a hard link to another file.; remove it$"), locked(tmp_path):
        pass
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.parametrize("make", [*LINKS, a_pipe])
def test_a_file_replaces_what_is_no_file_and_leaves_its_target(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "file"
    make(path)
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert path.is_file() and not path.is_symlink()
    assert path.read_text() == "new"
    assert make is not a_link or (tmp_path / "victim").read_text() == "precious"


def test_the_names_of_temporary_files_cannot_be_foreseen(tmp_path: Path) -> None:
    names = set()
    for _ in range(2):
        with replacing(tmp_path / "file") as temporary:
            names.add(temporary.name)
            assert temporary.is_file(), "made exclusively before anything is written"
    assert len(names) == 2


@pytest.mark.parametrize("make", [*LINKS, a_pipe, a_large_file])
def test_a_folder_is_not_made_where_something_else_is(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "plots")
    with pytest.raises(OSError):
        make_folder(tmp_path / "plots")
    make_folder(tmp_path / "other")
    make_folder(tmp_path / "other")
    assert (tmp_path / "other").is_dir()


def test_a_link_to_a_folder_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "plots").symlink_to("elsewhere")
    with pytest.raises(OSError, match="it is a symbolic link"):
        make_folder(tmp_path / "plots")


@pytest.mark.parametrize("make", LINKS)
def test_links_are_refused_where_the_system_cannot_open_without_following(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    monkeypatch.setattr("onecycle.core.regular_files._SAFELY", 0)  # as on Windows
    make(tmp_path / "file")
    with pytest.raises(OSError, match="it is a symbolic link"):
        read_regular(tmp_path / "file", LIMIT)
