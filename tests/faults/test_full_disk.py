"""Writing that fails: a clear line, a non-zero exit, and what was saved is whole."""

import errno
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from planted import Fault
from small_runs import PATIENCE, SMALL, Place, Reference, bits, two_at_a_time


def assert_told_and_whole(place: Place, code: int, last_line: str, reason: str) -> None:
    assert code == 2, last_line
    assert last_line.startswith("onecycle: ") and reason in last_line
    run = place.run
    if run is not None:
        assert not list(run.path.rglob("*.tmp")), "no half of a file is left"
        if run.saved:
            assert f"What was saved is whole: `onecycle {' '.join(place.resume)}` goes on from there" in last_line


@pytest.mark.parametrize("error", ["ENOSPC", pytest.param("EROFS", marks=pytest.mark.long)])
def test_a_disk_that_takes_no_more_at_any_write_of_a_run(
    reference: Reference,
    new_place: Callable[[object], Place],
    whole: bool,
    figures: dict[str, Any],
    error: str,
) -> None:
    def fail(call: int) -> bool:
        place = new_place(call)
        ended = place.onecycle(*SMALL, faults=[Fault("os.fsync", error, call)], save_seconds=PATIENCE)
        assert_told_and_whole(place, ended.code, ended.last_line, os.strerror(getattr(errno, error)))
        resumed = place.onecycle(*place.resume)
        assert resumed.code == 0, resumed.said
        identical = bits(place) == reference.bits
        shutil.rmtree(place.path)
        return identical

    writes = range(1, reference.place.calls("os.fsync") + 1)
    identical = two_at_a_time(fail, writes if whole and error == "ENOSPC" else random.Random(1).sample(writes, 1))
    figures[f"{error} at a write of a run"] = {"failures": len(identical), "resumed bit-identical": sum(identical)}
    assert all(identical)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Place]]:
    """Makes a real file system of so many KiB."""
    mounted: list[Path] = []

    def mount(kibibytes: int) -> Place:
        path = tmp_path / f"disk-{kibibytes}"
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(path)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this machine lets us mount no file system")
        mounted.append(path)
        return Place(path)

    yield mount
    for path in mounted:
        subprocess.run(["umount", "--lazy", str(path)], check=True)  # orphaned workers may still be in it


def test_a_full_file_system(
    reference: Reference, small_disk: Callable[[int], Place], whole: bool, figures: dict[str, Any]
) -> None:
    run = reference.place.run
    assert run is not None
    needed = sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file()) // 1024
    sizes = range(16, needed, max(16, needed // 24)) if whole else [needed // 2]

    def fill(size: int) -> bool:
        place = small_disk(size)
        ended = place.onecycle(*SMALL)
        assert_told_and_whole(place, ended.code, ended.last_line, "No space left on device")
        subprocess.run(["mount", "-o", "remount,size=64m", str(place.path)], check=True)
        assert place.onecycle(*place.resume).code == 0
        return bits(place) == reference.bits

    identical = two_at_a_time(fill, sizes)
    figures["full file systems, given room"] = {"systems": len(identical), "resumed bit-identical": sum(identical)}
    assert all(identical)


def test_a_folder_that_cannot_be_written_any_more(reference: Reference, small_disk: Callable[[int], Place]) -> None:
    place = small_disk(64 * 1024)
    # Without workers, which would live on for seconds and keep the file system busy.
    fault = Fault("onecycle.run.autosave.RunState.after_step", "kill", 8)
    killed = place.onecycle(*SMALL, "--workers", "0", faults=[fault])
    assert killed.code == -9
    run = place.run
    assert run is not None
    outside = Place(place.path.parent / "outside")
    outside.path.mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(place.path)], check=True)
    refused = outside.onecycle("train", "--resume", str(run.path))
    assert refused.code == 2
    assert "Read-only file system" in refused.last_line and "make it writable" in refused.last_line
    subprocess.run(["mount", "-o", "remount,rw", str(place.path)], check=True)
    assert place.onecycle(*place.resume).code == 0
    assert bits(place) == reference.bits


@pytest.mark.long
def test_a_limit_on_the_size_of_files(reference: Reference, place: Place) -> None:
    """As a quota has it: what is small can be written, a checkpoint cannot."""
    limited = place.onecycle(*SMALL, faults=[Fault("onecycle.run.autosave.RunState.after_step", "limit", 8)])
    assert_told_and_whole(place, limited.code, limited.last_line, "File too large")
    assert "checkpoint.safetensors cannot be written" in limited.last_line
    assert place.onecycle(*place.resume).code == 0
    assert bits(place) == reference.bits


def test_a_folder_that_vanishes_is_told(reference: Reference, place: Place) -> None:
    ended = place.onecycle(*SMALL, faults=[Fault("onecycle.run.autosave.RunState.after_step", "vanish", 8)])
    assert ended.code == 2
    assert "checkpoint.safetensors cannot be written (No such file or directory); its folder is gone" in ended.last_line
    assert "goes on" not in ended.last_line
