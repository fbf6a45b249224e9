"""The engine that makes each run of a study a Ray task, on whichever node has the cores."""

import io
import os
import shutil
import sys
import tarfile
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from onecycle.core.errors import InputError
from onecycle.core.files import InUseError, writing
from onecycle.core.signals import watched
from onecycle.distributed.ray_cluster import connected, in_a_line
from onecycle.run import environment
from onecycle.storage.run_folder import RunFolder
from onecycle.study.run import StudyRun

MOST_STARTS = 10  # of a run whose nodes die: it may be what kills them
IN_USE_SECONDS = 600  # how long a run's folder is waited for that its last process, cut off from Ray, is at work on
STOP_SECONDS = 120  # for runs to save their state after Ctrl-C
SEEN_SECONDS = 60  # for a network disk to show here what was written on a node
_WAIT_SECONDS = 0.5  # between two looks for Ctrl-C


@dataclass(frozen=True)
class RunsOnRay:
    """The nodes of the Ray cluster at `address`."""

    address: str | None

    def carry_out(self, runs: Sequence[StudyRun], console: Console) -> Iterator[tuple[StudyRun, InputError | None]]:
        if not runs:
            return
        with (
            connected(self.address),
            _token_in(_folder_of_all(runs)) as token,
            watched() as interruption,
            interruption.deferred(),
        ):
            tasks = _Tasks(token, console)
            _require_nodes(runs[0])
            for run in runs:
                tasks.start(replace(run, folder=run.folder.absolute()))
            while tasks.begun and not interruption.requested:
                yield from tasks.ended()
            if tasks.begun:
                tasks.stop()


@dataclass(frozen=True, kw_only=True)
class _Driver:
    """What a task must know of the process that started it."""

    token: Path  # a file there: who sees it shares the disk with the study
    folder: Path  # that relative names of data begin at
    data: str | None  # $ONECYCLE_DATA
    command: list[str]
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """How a run ended on its node."""

    failure: str | None = None
    packed: bytes | None = None  # its folder, where the node does not share the study's disk


@dataclass
class _Task:
    run: StudyRun
    starts: int
    node: str = "its node"


class _Tasks:
    """The tasks that are begun, and not ended yet."""

    def __init__(self, token: Path, console: Console) -> None:
        import ray

        self.begun: dict[Any, _Task] = {}  # by the generator of what a task tells
        self._ray = ray
        self._say = console
        self._driver = _Driver(
            token=token,
            folder=Path.cwd(),
            data=os.environ.get("ONECYCLE_DATA"),
            command=sys.argv,
            versions=environment.versions(environment.COMPUTING),
        )

    def start(self, run: StudyRun, starts: int = 1) -> None:
        # Ray would start it again by itself, and tell nobody.
        gpus = 1 if run.config.device == "cuda" else 0
        task = self._ray.remote(num_cpus=run.cores, num_gpus=gpus, max_retries=0)(_carried_out)
        self.begun[task.remote(run, self._driver)] = _Task(run, starts)

    def ended(self) -> Iterator[tuple[StudyRun, InputError | None]]:
        """Wait a moment, and take what ended. Runs that were lost are started again."""
        ready, _ = self._ray.wait(list(self.begun), timeout=_WAIT_SECONDS)
        for told in ready:
            task = self.begun[told]
            try:
                outcome = self._ray.get(next(told))
            except self._ray.exceptions.RayError as error:
                del self.begun[told]
                if not self._is_loss(error):
                    yield task.run, InputError(f"an error on {task.node} ended it: {in_a_line(error)}")
                    continue
                if task.starts == MOST_STARTS:
                    yield task.run, InputError(f"it was lost {MOST_STARTS} times, last by {in_a_line(error)}")
                    continue
                self._tell(task.run, f"lost with {task.node}; begins again, or goes on from where it was saved")
                self.start(task.run, task.starts + 1)
                continue
            if isinstance(outcome, str):
                task.node = outcome
                self._tell(task.run, f"begins on {task.node}")
                continue
            del self.begun[told]
            failure = _brought_home(task.run, outcome)
            with suppress(InputError):  # a result that is damaged is named by the study's summary
                if not failure:
                    accuracy = RunFolder(task.run.folder).read_result().test_accuracy
                    self._tell(task.run, f"ends on {task.node} with {accuracy:.2%}")
            yield task.run, failure

    def stop(self) -> None:
        """Interrupt all, and wait until those that run have saved their state."""
        self._say.print("Stopping: runs save their state", highlight=False)
        for told in self.begun:
            self._ray.cancel(told, recursive=False)
        deadline = time.monotonic() + STOP_SECONDS
        while self.begun and time.monotonic() < deadline:
            ready, _ = self._ray.wait(list(self.begun), timeout=_WAIT_SECONDS)
            for told in ready:
                try:
                    outcome = self._ray.get(next(told))
                except (self._ray.exceptions.RayError, StopIteration):
                    del self.begun[told]
                else:
                    if isinstance(outcome, _Outcome):  # it came to its end after all
                        _brought_home(self.begun[told].run, outcome)

    def _is_loss(self, error: Exception) -> bool:
        """Whether the node or the worker is to blame, or was told to end, and not the run."""
        problems = self._ray.exceptions
        return not isinstance(error, problems.RayTaskError) or isinstance(error, problems.TaskCancelledError)

    def _tell(self, run: StudyRun, what: str) -> None:
        self._say.print(f"{run.place}: {run.name}: {what}", highlight=False, markup=False, soft_wrap=True)


def _require_nodes(run: StudyRun) -> None:
    """Refuse runs that would wait for ever.

    Raises:
        InputError: when no node has the cores, or the GPU, that a run asks for.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if run.config.device == "cuda":
        nodes = [node for node in nodes if node.get("GPU", 0) >= 1]
        if not nodes:
            raise InputError("--device is cuda, and no node has a GPU that Ray knows of; give --device cpu")
    most = max(int(node.get("CPU", 0)) for node in nodes)
    if most < run.cores:
        raise InputError(f"a run asks for {run.cores} cores, and no node has more than {most}; give --cores {most}")


def _folder_of_all(runs: Sequence[StudyRun]) -> Path:
    return Path(os.path.commonpath([run.folder.absolute().parent for run in runs]))


@contextmanager
def _token_in(folder: Path) -> Iterator[Path]:
    """A file in `folder` whose name no other has, nor had: a network disk remembers which names it did not find."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for stray in folder.glob(".shared-*"):
            stray.unlink(missing_ok=True)
        token = folder / f".shared-{uuid.uuid4().hex}"
        token.touch()
    try:
        yield token
    finally:
        token.unlink(missing_ok=True)


def _carried_out(run: StudyRun, driver: _Driver) -> Iterator[str | _Outcome]:
    """The task: tells on which node it begins, then how the run ended."""
    import ray

    node = ray.util.get_node_ip_address()
    yield node
    if driver.versions != (here := environment.versions(environment.COMPUTING)):
        others = ", ".join(f"{name} {here[name]} for {version}" for name, version in driver.versions.items())
        yield _Outcome(failure=f"node {node} has other versions: {others}; install the same")
        return
    if run.config.device != "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # which this task did not ask for
    if driver.data:
        os.environ.setdefault("ONECYCLE_DATA", driver.data)  # where the node does not say where its own are
    if driver.folder.is_dir():
        os.chdir(driver.folder)
    sys.argv = driver.command  # which the run's environment.json tells
    if driver.token.exists():
        yield _Outcome(failure=failure_of(run))
        return
    with tempfile.TemporaryDirectory() as away:
        folder = Path(away, run.folder.name)
        failure = failure_of(replace(run, folder=folder))
        yield _Outcome(failure=failure, packed=None if failure else _packed(folder))


def failure_of(run: StudyRun) -> str | None:
    """Carry out the run, and return why that failed, if it did.

    A worker that Ray has given up, as its node lost its connection, may still be at work on it: it is waited for.
    """
    deadline = time.monotonic() + IN_USE_SECONDS
    while True:
        try:
            if not run.is_done():
                run.carry_out(Console(force_terminal=False))
            return None
        except InUseError as error:
            if time.monotonic() > deadline:
                return str(error)
            time.sleep(1)
        except InputError as error:
            return str(error)


def _brought_home(run: StudyRun, outcome: _Outcome) -> InputError | None:
    """Why a run that ended on a node has no whole folder here; None where it has."""
    if outcome.failure:
        return InputError(outcome.failure)
    try:
        if outcome.packed is not None:
            _unpack(outcome.packed, run.folder)
        deadline = time.monotonic() + SEEN_SECONDS
        while not run.is_done():
            if time.monotonic() > deadline:
                return InputError(f"it ended well, but {run.folder} does not show it here; check the disk")
            time.sleep(_WAIT_SECONDS)
    except InputError as error:
        return error
    return None


def _packed(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(folder, ".")
    return buffer.getvalue()


def _unpack(packed: bytes, folder: Path) -> None:
    """Put a packed folder in the place of `folder`, whole."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    with writing(folder):
        shutil.rmtree(temporary, ignore_errors=True)
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(temporary, filter="data")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
