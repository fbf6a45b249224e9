import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from onecycle.core.errors import InputError
from onecycle.core.files import flush, locked, replacing, taking_turns


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(RuntimeError), replacing(path):
        raise RuntimeError  # before anything was written
    assert path.read_text() == "old"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_written_is_flushed_before_it_is_named_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        order.append(f"flush {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def noted_replace(source: Path, target: Path) -> None:
        order.append(f"name {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    (tmp_path / "file").write_text("old")
    with replacing(tmp_path / "file", keep=tmp_path / "before", check=lambda _: order.append("check")) as temporary:
        temporary.write_text("new")
    assert order == [f"flush {temporary.name}", "check", "name before", "name file", f"flush {tmp_path.name}"]
    assert ((tmp_path / "before").read_text(), (tmp_path / "file").read_text()) == ("old", "new")


def test_what_does_not_pass_its_check_is_not_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def refuse(temporary: Path) -> None:
        raise InputError(f"{temporary.name} is damaged")

    with pytest.raises(InputError), replacing(path, keep=tmp_path / "before", check=refuse) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "way_out"), [(errno.ENOSPC, "make room there"), (errno.EACCES, "make it writable"), (errno.EIO, "look")]
)
def test_an_error_while_writing_is_one_line_with_a_way_out(tmp_path: Path, number: int, way_out: str) -> None:
    path = tmp_path / "file"
    told = f"file cannot be written .{os.strerror(number)}.; {way_out}"
    with pytest.raises(InputError, match=told), replacing(path):
        raise OSError(number, os.strerror(number))
    assert list(tmp_path.iterdir()) == []


def hold(folder: Path) -> None:
    with locked(folder):
        (folder / "held").touch()
        time.sleep(60)


def test_a_lock_is_held_against_other_processes_until_its_process_is_dead(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(tmp_path,))
    process.start()
    while not (tmp_path / "held").exists():
        assert process.is_alive()
        time.sleep(0.01)
    told = f"is in use by process {process.pid}; wait for it, or stop it first"
    with pytest.raises(InputError, match=told), locked(tmp_path):
        pass
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
    assert not (tmp_path / ".lock").exists()


def take(path: Path) -> None:
    with taking_turns(path, lambda: None):
        (path.parent / "taken").touch()
        time.sleep(60)


def test_a_turn_comes_when_the_process_before_is_dead(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=take, args=(tmp_path / "turn",))
    process.start()
    while not (tmp_path / "taken").exists():
        assert process.is_alive()
        time.sleep(0.01)
    waited = []

    def kill() -> None:
        waited.append(process.is_alive())
        process.kill()

    with taking_turns(tmp_path / "turn", kill):
        process.join()
    with taking_turns(tmp_path / "turn", kill):
        pass
    assert waited == [True]
    assert not (tmp_path / "turn").exists()


def test_a_folder_that_is_gone_cannot_be_locked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="its folder is gone"), locked(tmp_path / "gone"):
        pass


@pytest.mark.parametrize(
    ("number", "on_folder", "on_file"),
    [(errno.EINVAL, "tolerated", "raised"), (errno.ENOSPC, "raised", "raised")],
    ids=["a file system that cannot flush folders", "a full disk"],
)
def test_only_a_folder_that_cannot_be_flushed_is_tolerated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, on_folder: str, on_file: str
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    def outcome(path: Path) -> str:
        try:
            flush(path)
        except OSError:
            return "raised"
        return "tolerated"

    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr(os, "fsync", fail)
    assert (outcome(tmp_path), outcome(file)) == (on_folder, on_file)
