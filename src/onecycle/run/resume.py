"""A run that goes on in several processes: who of them has its folder, and what the others need of it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from onecycle.core.config import Config
from onecycle.core.errors import InputError, LostError
from onecycle.core.files import NotWrittenError
from onecycle.distributed import agreement, job, ranks
from onecycle.run import environment
from onecycle.storage.checkpoint import load_state
from onecycle.storage.run_folder import RunFolder, interrupted

_NOTHING = [-1, 0]


def begun_by_this_job(config: Config) -> Path | None:
    """The folder of the run that an earlier start of the same job, on this machine, began and did not end."""
    if job.may_have_begun():
        for folder in interrupted(config.out):
            with suppress(InputError):
                if (
                    environment.recorded_job(folder) == job.name()
                    and folder.read_config().defining_values() == config.defining_values()
                ):
                    return folder.path
    return None


def require_alike(*, resumes: bool) -> None:
    """Refuse processes of which some go on with a run and some begin one.

    Raises:
        InputError: with the ranks that do either.
    """
    agreement.require_alike({"--resume": "given" if resumes else "not given"})


@contextmanager
def shared_folder(path: Path | None) -> Iterator[RunFolder]:
    """The folder `path` of a run to go on with; a copy of what is needed of it where another process has the newest.

    That process leads. It may be on another machine, which shares no disk with this one.

    Raises:
        InputError: when none of the processes has it.
    """
    here = ranks.current()
    if here.size == 1:
        assert path, "a process that is alone was given one, or found it"
        yield RunFolder.open(path)
        return
    require_alike(resumes=True)
    saved = here.of_all(_saved(path))
    if max(saved) == _NOTHING:
        raise InputError(f"there is no run folder {path} on any of the machines")
    here.leader = saved.index(max(saved))
    name = here.from_leader(lambda: str(path))
    if here.leads:
        assert path, "who has the newest state has a folder"
        folder = RunFolder.open(path)
        _exchange(folder)
        yield folder
    else:
        with scratch() as folder:
            _exchange(folder)
            try:
                yield folder
            except (NotWrittenError, LostError):
                raise
            except InputError as error:
                raise InputError(str(error).replace(str(folder.path), name)) from error


@contextmanager
def scratch() -> Iterator[RunFolder]:
    """A run folder for a process that does not lead, whose files nobody keeps."""
    with TemporaryDirectory(prefix="onecycle-") as path:
        yield RunFolder.create(Path(path))


def _exchange(folder: RunFolder) -> None:
    here = ranks.current()
    for file in (folder.config, folder.environment, folder.lr_finder, folder.checkpoint, folder.checkpoint_before):
        content = here.bytes_from_leader(file.read_bytes() if here.leads and file.exists() else b"")
        if content and not here.leads:
            file.write_bytes(content)


def _saved(path: Path | None) -> list[int]:
    """How many epochs and, within another, steps the run in `path` had come to when it was saved last."""
    if path is None or not RunFolder(path).config.is_file():
        return _NOTHING
    folder = RunFolder(path)
    state = load_state(folder.checkpoint, folder.checkpoint_before)
    if state is None:
        return [0, 0]
    last_step = state.progress["last_step"]
    return [len(state.progress["history"]), last_step["step"] + 1 if last_step else 0]
