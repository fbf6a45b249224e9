"""Carry out the runs of a study as Ray tasks, on the nodes of a cluster."""

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

from onecycle.core.errors import InputError, OnecycleError
from onecycle.core.files import InUseError, writing
from onecycle.core.formatting import percent
from onecycle.core.signals import watched
from onecycle.distributed.ray_cluster import connected, one_line
from onecycle.run import environment
from onecycle.storage.run_folder import RunFolder
from onecycle.study.run import StudyOutcome, StudyRun

MOST_STARTS = 10  # start a run at most this many times; if its nodes keep dying, the run may be the cause
IN_USE_SECONDS = 600  # wait this long for a process that lost its connection to Ray and still works on the run
STOP_SECONDS = 120  # after Ctrl-C, wait this long for the runs to save a checkpoint
VISIBLE_SECONDS = 60  # wait at most this long for a network disk to show the files that a node has written
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class RayStudyEngine:
    """Carries out runs on the nodes of the Ray cluster at `address`."""

    address: str | None

    def carry_out(self, runs: Sequence[StudyRun], console: Console) -> Iterator[StudyOutcome]:
        if not runs:
            return
        with (
            connected(self.address),
            _token_in(_common_folder(runs)) as token,
            watched() as interruption,
            interruption.deferred(),
        ):
            tasks = _Tasks(token, console)
            _require_nodes(runs[0])
            for run in runs:
                tasks.start(replace(run, folder=run.folder.absolute()))
            while tasks.active and not interruption.requested:
                yield from tasks.ended()
            if tasks.active:
                tasks.stop()


@dataclass(frozen=True, kw_only=True)
class _Driver:
    """What a task needs to know about the process that started it."""

    token: Path  # a node that sees this file shares the study's disk
    folder: Path  # the current folder of the process that started the task; relative paths of data sets start here
    data: str | None  # the value of $ONECYCLE_DATA
    command: list[str]
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class _Ending:
    """How a run ended on its node."""

    failure: str | None = None
    packed: bytes | None = None  # the run folder, if the node does not share the study's disk


@dataclass
class _Task:
    run: StudyRun
    starts: int
    node: str = "its node"


class _Tasks:
    """The tasks that have started but have not ended."""

    def __init__(self, token: Path, console: Console) -> None:
        import ray

        self.active: dict[Any, _Task] = {}  # the key is the generator that Ray returned for the task
        self._ray = ray
        self._console = console
        self._driver = _Driver(
            token=token,
            folder=Path.cwd(),
            data=os.environ.get("ONECYCLE_DATA"),
            command=sys.argv,
            versions=environment.versions(environment.COMPUTING),
        )

    def start(self, run: StudyRun, starts: int = 1) -> None:
        # Ray must not retry tasks itself, because it would not report the retries.
        gpus = 1 if run.config.device == "cuda" else 0
        task = self._ray.remote(num_cpus=run.cores, num_gpus=gpus, max_retries=0)(_carry_out)
        self.active[task.remote(run, self._driver)] = _Task(run, starts)

    def ended(self) -> Iterator[StudyOutcome]:
        """Wait a moment, and yield the runs that have ended. Lost runs are started again."""
        ready, _ = self._ray.wait(list(self.active), timeout=_POLL_SECONDS)
        for generator in ready:
            task = self.active[generator]
            try:
                message = self._ray.get(next(generator))
            except self._ray.exceptions.RayError as error:
                del self.active[generator]
                if not self._is_loss(error):
                    yield StudyOutcome(task.run, f"an error on {task.node} ended it: {one_line(error)}")
                    continue
                if task.starts == MOST_STARTS:
                    yield StudyOutcome(task.run, f"it was lost {MOST_STARTS} times; the last error: {one_line(error)}")
                    continue
                self._print(task.run, f"lost with {task.node}; starts again from its last checkpoint, if any")
                self.start(task.run, task.starts + 1)
                continue
            if isinstance(message, str):
                task.node = message
                self._print(task.run, f"starts on {task.node}")
                continue
            del self.active[generator]
            failure = _failure_at_home(task.run, message)
            with suppress(OnecycleError):  # if the result is damaged, the study's summary reports it
                if not failure:
                    accuracy = RunFolder(task.run.folder).read_result().eval_accuracy
                    self._print(task.run, f"ends on {task.node} with {percent(accuracy)}")
            yield StudyOutcome(task.run, failure)

    def stop(self) -> None:
        """Interrupt all tasks, and wait until they have saved a checkpoint."""
        self._console.out("Stopping: every run saves a checkpoint", highlight=False)
        for generator in self.active:
            self._ray.cancel(generator, recursive=False)
        deadline = time.monotonic() + STOP_SECONDS
        while self.active and time.monotonic() < deadline:
            ready, _ = self._ray.wait(list(self.active), timeout=_POLL_SECONDS)
            for generator in ready:
                try:
                    message = self._ray.get(next(generator))
                except (self._ray.exceptions.RayError, StopIteration):
                    del self.active[generator]
                else:
                    if isinstance(message, _Ending):  # the run ended before Ray canceled its task
                        _failure_at_home(self.active[generator].run, message)

    def _is_loss(self, error: Exception) -> bool:
        """Whether the task was lost or canceled. False if the task itself failed."""
        problems = self._ray.exceptions
        return not isinstance(error, problems.RayTaskError) or isinstance(error, problems.TaskCancelledError)

    def _print(self, run: StudyRun, event: str) -> None:
        self._console.out(f"{run.place}: {run.name}: {event}", highlight=False)


def _require_nodes(run: StudyRun) -> None:
    """Check that the cluster has a node that can carry out the run.

    Raises:
        InputError: when no node has the cores or the GPU that a run needs.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if run.config.device == "cuda":
        nodes = [node for node in nodes if node.get("GPU", 0) >= 1]
        if not nodes:
            raise InputError("--device is cuda, but Ray knows no node with a GPU; use --device cpu")
    most = max(int(node.get("CPU", 0)) for node in nodes)
    if most < run.cores:
        raise InputError(f"each run needs {run.cores} cores, but no node has more than {most}; use --cores {most}")


def _common_folder(runs: Sequence[StudyRun]) -> Path:
    return Path(os.path.commonpath([run.folder.absolute().parent for run in runs]))


@contextmanager
def _token_in(folder: Path) -> Iterator[Path]:
    """Create an empty file with a random name in `folder`, and remove it after the block.

    A network disk may cache that a file does not exist. It has no such cache entry for a new random name.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(".shared-*"):
            old.unlink(missing_ok=True)
        token = folder / f".shared-{uuid.uuid4().hex}"
        token.touch()
    try:
        yield token
    finally:
        token.unlink(missing_ok=True)


def _carry_out(run: StudyRun, driver: _Driver) -> Iterator[str | _Ending]:
    """The Ray task. Yields the address of its node, then how the run ended."""
    import ray

    node = ray.util.get_node_ip_address()
    yield node
    if driver.versions != (here := environment.versions(environment.COMPUTING)):
        others = ", ".join(
            f"{name} {here[name]} instead of {version}"
            for name, version in driver.versions.items()
            if version != here[name]
        )
        yield _Ending(failure=f"node {node} has other versions: {others}; install the same versions")
        return
    if run.config.device != "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # this task did not request a GPU
    if driver.data:
        os.environ.setdefault("ONECYCLE_DATA", driver.data)  # a setting of the node takes precedence
    if driver.folder.is_dir():
        os.chdir(driver.folder)
    sys.argv = driver.command  # the run's environment.json records this command
    if driver.token.exists():
        yield _Ending(failure=failure_of(run))
        return
    with tempfile.TemporaryDirectory() as away:
        folder = Path(away, run.folder.name)
        failure = failure_of(replace(run, folder=folder))
        yield _Ending(failure=failure, packed=None if failure else _pack(folder))


def failure_of(run: StudyRun) -> str | None:
    """Carry out the run. Returns the reason if the run failed, otherwise None.

    A worker that lost its connection to Ray may still be working on the run. This function waits for that worker.
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
        except OnecycleError as error:
            return str(error)


def _failure_at_home(run: StudyRun, ending: _Ending) -> str | None:
    """Unpack the run folder if the node sent it, and check that the run is complete on this machine.

    Returns the reason if the run failed or is incomplete, otherwise None.
    """
    if ending.failure:
        return ending.failure
    try:
        if ending.packed is not None:
            _unpack(ending.packed, run.folder)
        deadline = time.monotonic() + VISIBLE_SECONDS
        while not run.is_done():
            if time.monotonic() > deadline:
                return f"it ended normally, but {run.folder} is not complete on this machine; check the shared disk"
            time.sleep(_POLL_SECONDS)
    except OnecycleError as error:
        return str(error)
    return None


def _pack(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(folder, ".")
    return buffer.getvalue()


def _unpack(packed: bytes, folder: Path) -> None:
    """Replace `folder` with the folder in `packed`."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    with writing(folder):
        shutil.rmtree(temporary, ignore_errors=True)
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(temporary, filter="data")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
