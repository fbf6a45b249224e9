"""When a write fails, the error is one clear line, the exit code is 2, and the last checkpoint is intact."""

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
from small_runs import PATIENCE, SMALL, Reference, Workspace, bits, two_at_a_time


def assert_reported_and_intact(workspace: Workspace, code: int, last_line: str, reason: str) -> None:
    assert code == 2, last_line
    assert last_line.startswith("onecycle: ") and reason in last_line
    run = workspace.run
    if run is not None:
        assert not list(run.path.rglob("*.tmp")), "no temporary file is left"
        if run.has_checkpoint:
            resume = f"`onecycle {' '.join(workspace.resume)}` continues the run from there"
            assert f"The last checkpoint is intact: {resume}" in last_line


@pytest.mark.parametrize("error", ["ENOSPC", pytest.param("EROFS", marks=pytest.mark.long)])
def test_a_run_whose_disk_is_full_at_any_write_resumes_to_the_same_bits(
    reference: Reference,
    new_workspace: Callable[[object], Workspace],
    whole: bool,
    figures: dict[str, Any],
    error: str,
) -> None:
    def fail(call: int) -> bool:
        workspace = new_workspace(call)
        ended = workspace.onecycle(*SMALL, faults=[Fault("os.fsync", error, call)], save_seconds=PATIENCE)
        assert_reported_and_intact(workspace, ended.code, ended.last_line, os.strerror(getattr(errno, error)))
        resumed = workspace.onecycle(*workspace.resume)
        assert resumed.code == 0, resumed.output
        identical = bits(workspace) == reference.bits
        shutil.rmtree(workspace.path)
        return identical

    writes = range(1, reference.workspace.calls("os.fsync") + 1)
    identical = two_at_a_time(fail, writes if whole and error == "ENOSPC" else random.Random(1).sample(writes, 1))
    figures[f"{error} at a write of a run"] = {"failures": len(identical), "resumed bit-identical": sum(identical)}
    assert all(identical)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Workspace]]:
    """A function that mounts a real file system of the given size in KiB."""
    mounted: list[Path] = []

    def mount(kibibytes: int) -> Workspace:
        path = tmp_path / f"disk-{kibibytes}"
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(path)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this machine does not let the tests mount a file system")
        mounted.append(path)
        return Workspace(path)

    yield mount
    for path in mounted:
        subprocess.run(["umount", "--lazy", str(path)], check=True)  # orphaned workers may still use the file system


def test_a_run_on_a_full_file_system_resumes_once_there_is_room(
    reference: Reference, small_disk: Callable[[int], Workspace], whole: bool, figures: dict[str, Any]
) -> None:
    run = reference.workspace.run
    assert run is not None
    needed = sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file()) // 1024
    sizes = range(16, needed, max(16, needed // 24)) if whole else [needed // 2]

    def fill(size: int) -> bool:
        workspace = small_disk(size)
        ended = workspace.onecycle(*SMALL)
        assert_reported_and_intact(workspace, ended.code, ended.last_line, "No space left on device")
        subprocess.run(["mount", "-o", "remount,size=64m", str(workspace.path)], check=True)
        assert workspace.onecycle(*workspace.resume).code == 0
        return bits(workspace) == reference.bits

    identical = two_at_a_time(fill, sizes)
    figures["full file systems, given room"] = {"systems": len(identical), "resumed bit-identical": sum(identical)}
    assert all(identical)


def test_a_folder_that_became_read_only_is_refused(
    reference: Reference, small_disk: Callable[[int], Workspace]
) -> None:
    workspace = small_disk(64 * 1024)
    # The run has no workers. They would outlive it by seconds, and a file system in use cannot be made read-only.
    fault = Fault("onecycle.run.autosave.RunState.after_step", "kill", 8)
    killed = workspace.onecycle(*SMALL, "--workers", "0", faults=[fault])
    assert killed.code == -9
    run = workspace.run
    assert run is not None
    outside = Workspace(workspace.path.parent / "outside")
    outside.path.mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(workspace.path)], check=True)
    refused = outside.onecycle("train", "--resume", str(run.path))
    assert refused.code == 2
    assert "Read-only file system" in refused.last_line and "make it writable" in refused.last_line
    subprocess.run(["mount", "-o", "remount,rw", str(workspace.path)], check=True)
    assert workspace.onecycle(*workspace.resume).code == 0
    assert bits(workspace) == reference.bits


@pytest.mark.long
def test_a_run_whose_checkpoint_exceeds_the_file_size_limit_resumes_without_it(
    reference: Reference, workspace: Workspace
) -> None:
    """The limit acts like a disk quota: the run can write small files but no checkpoint."""
    limited = workspace.onecycle(*SMALL, faults=[Fault("onecycle.run.autosave.RunState.after_step", "limit", 8)])
    assert_reported_and_intact(workspace, limited.code, limited.last_line, "File too large")
    assert "checkpoint.safetensors cannot be written" in limited.last_line
    assert workspace.onecycle(*workspace.resume).code == 0
    assert bits(workspace) == reference.bits


def test_a_run_folder_that_vanishes_is_reported(reference: Reference, workspace: Workspace) -> None:
    ended = workspace.onecycle(*SMALL, faults=[Fault("onecycle.run.autosave.RunState.after_step", "vanish", 8)])
    assert ended.code == 2
    assert (
        "checkpoint.safetensors cannot be written (No such file or directory); its folder is missing" in ended.last_line
    )
    assert "continues the run" not in ended.last_line
