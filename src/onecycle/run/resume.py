"""Find the run folder to resume, and share its files among several processes."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from onecycle.core.config import Config
from onecycle.core.errors import InputError, OnecycleError, PeerError, StorageError
from onecycle.core.files import reading
from onecycle.core.regular_files import read_regular
from onecycle.distributed import consistency, job
from onecycle.distributed.process_group import ProcessGroup
from onecycle.run import environment
from onecycle.storage.checkpoint import MOST_TENSOR_BYTES, load_checkpoint
from onecycle.storage.run_folder import RunFolder, interrupted

_NOTHING = [-1, 0]


def started_by_this_job(config: Config) -> Path | None:
    """Find the unfinished run with this configuration that this torchrun job began before the job was restarted.

    Returns the run folder on this machine, or None if there is no such run.
    """
    if job.may_have_started_before():
        for folder in interrupted(config.out):
            with suppress(OnecycleError):
                if environment.recorded_job(folder) == job.name() and config.leads_to(folder.read_config()):
                    return folder.path
    return None


def require_same_start(group: ProcessGroup, *, resumes: bool) -> None:
    """Check that either all processes resume a run, or all processes start a new run.

    Raises:
        InputError: when some processes resume and others start a run. The error lists their ranks.
    """
    consistency.require_consistent({"--resume": "given" if resumes else "not given"}, group)


@contextmanager
def shared_folder(path: Path | None, group: ProcessGroup) -> Iterator[RunFolder]:
    """The run folder to resume: `path` on the main process, and a temporary copy on the other processes.

    The process whose folder has the newest checkpoint becomes the main process. The other processes may be on machines
    without access to the main process's disk.

    Raises:
        InputError: when no process has the folder.
    """
    if group.size == 1:
        assert path, "a single process knows its folder"
        yield RunFolder.open(path)
        return
    require_same_start(group, resumes=True)
    progress = group.all_gather_object(_progress(path))
    if max(progress) == _NOTHING:
        raise InputError(f"there is no run folder {path} on any of the machines; check the name")
    group.main_rank = progress.index(max(progress))
    name = group.broadcast_object(lambda: str(path))
    if group.is_main_process:
        assert path, "the process with the newest checkpoint has a folder"
        folder = RunFolder.open(path)
        _broadcast_files(folder, group)
        yield folder
    else:
        with scratch() as folder:
            _broadcast_files(folder, group)
            try:
                yield folder
            except (StorageError, PeerError):
                raise
            except OnecycleError as error:
                raise InputError(str(error).replace(str(folder.path), name)) from error


@contextmanager
def scratch() -> Iterator[RunFolder]:
    """A temporary run folder for a process other than the main one."""
    with TemporaryDirectory(prefix="onecycle-") as path:
        yield RunFolder.create(Path(path))


def _broadcast_files(folder: RunFolder, group: ProcessGroup) -> None:
    is_main = group.is_main_process
    for file in (folder.config, folder.environment, folder.lr_finder, folder.checkpoint, folder.checkpoint_before):
        content = group.broadcast_bytes(_content(file) if is_main and file.exists() else b"")
        if content and not is_main:
            file.write_bytes(content)


def _content(file: Path) -> bytes:
    with reading(file):
        return read_regular(file, MOST_TENSOR_BYTES)


def _progress(path: Path | None) -> list[int]:
    """The progress of the last checkpoint in `path` as [epochs, steps], for comparison between processes."""
    if path is None or not RunFolder(path).config.is_file():
        return _NOTHING
    folder = RunFolder(path)
    checkpoint = load_checkpoint(folder.checkpoint, folder.checkpoint_before)
    if checkpoint is None:
        return [0, 0]
    with reading(checkpoint.path):
        last_step = checkpoint.progress["last_step"]
        return [len(checkpoint.progress["history"]), int(last_step["step"]) + 1 if last_step else 0]
