import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from onecycle.core.errors import InputError, StorageError
from onecycle.core.files import InUseError, file_identity, flush, locked, replacing, waiting_for_lock


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(RuntimeError), replacing(path):
        raise RuntimeError  # raised before anything is written
    assert path.read_text() == "old"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_content_is_flushed_before_the_rename_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        order.append(f"flush {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def recorded_replace(source: Path, target: Path) -> None:
        order.append(f"rename to {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    (tmp_path / "file").write_text("old")
    with replacing(tmp_path / "file", keep=tmp_path / "before", check=lambda _: order.append("check")) as temporary:
        temporary.write_text("new")
    assert order == [f"flush {temporary.name}", "check", "rename to before", "rename to file", f"flush {tmp_path.name}"]
    assert ((tmp_path / "before").read_text(), (tmp_path / "file").read_text()) == ("old", "new")


def test_a_file_that_fails_its_check_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def refuse(temporary: Path) -> None:
        raise InputError(f"{temporary.name} is damaged")

    with pytest.raises(InputError), replacing(path, keep=tmp_path / "before", check=refuse) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "make room there"), (errno.EACCES, "make it writable"), (errno.EIO, "check it")],
)
def test_a_write_error_is_one_line_with_advice(tmp_path: Path, number: int, advice: str) -> None:
    path = tmp_path / "file"
    message = f"^{path} cannot be written .{os.strerror(number)}.; {advice}$"
    with pytest.raises(StorageError, match=message), replacing(path):
        raise OSError(number, os.strerror(number))
    assert list(tmp_path.iterdir()) == []


def _rewrite(path: Path) -> None:
    path.write_text("NEW")


def _replace(path: Path) -> None:
    path.with_name("other").write_text("NEW")
    path.with_name("other").rename(path)


def _repoint(path: Path) -> None:
    path.unlink()
    path.symlink_to("second")


def _rewrite_target(path: Path) -> None:
    path.resolve().write_text("NEW")


@pytest.mark.parametrize("change", [_rewrite, _replace, _repoint, _rewrite_target])
@pytest.mark.parametrize("is_link", [False, True])
def test_a_file_that_changed_but_has_its_old_size_and_time_is_another_one(
    tmp_path: Path, change: Callable[[Path], None], is_link: bool
) -> None:
    path = tmp_path / "file"
    for name in ("first", "second", "file"):
        (tmp_path / name).write_text("old")
        os.utime(tmp_path / name, ns=(10**18, 10**18))
    if is_link:
        path.unlink()
        path.symlink_to("first")
    before = file_identity(path)
    assert file_identity(path) == before
    deadline = time.monotonic() + 10  # the clock of the file system may be coarser than the test is fast
    while file_identity(path) == before and time.monotonic() < deadline:
        change(path)
        os.utime(path, ns=(10**18, 10**18))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (3, 10**18)
    assert file_identity(path) != before


def hold_folder(folder: Path) -> None:
    with locked(folder):
        (folder / "held").touch()
        time.sleep(60)


def test_a_lock_excludes_other_processes_until_its_process_dies(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=hold_folder, args=(tmp_path,))
    process.start()
    while not (tmp_path / "held").exists():
        assert process.is_alive()
        time.sleep(0.01)
    message = f"^process {process.pid} is using {tmp_path}; wait for it, or stop it first$"
    with pytest.raises(InUseError, match=message), locked(tmp_path):
        pass
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
    assert not (tmp_path / ".lock").exists()


def hold_file(path: Path) -> None:
    with waiting_for_lock(path, lambda: None):
        (path.parent / "held").touch()
        time.sleep(60)


def test_a_waiting_process_gets_the_lock_when_its_holder_dies(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=hold_file, args=(tmp_path / "lock",))
    process.start()
    while not (tmp_path / "held").exists():
        assert process.is_alive()
        time.sleep(0.01)
    waited = []

    def kill() -> None:
        waited.append(process.is_alive())
        process.kill()

    with waiting_for_lock(tmp_path / "lock", kill):
        process.join()
    with waiting_for_lock(tmp_path / "lock", kill):
        pass
    assert waited == [True]
    assert not (tmp_path / "lock").exists()


def test_a_missing_folder_cannot_be_locked(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="its folder is missing"), locked(tmp_path / "missing"):
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
