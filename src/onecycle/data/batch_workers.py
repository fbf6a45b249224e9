"""Worker processes that compute batches ahead of training."""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import cycle, islice
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from onecycle.core.errors import PeerError

AHEAD = 2  # batches that each worker computes before they are needed
# A worker exits at most this long after SIGTERM. The main process takes less to finish its step and save a checkpoint.
WORKER_GRACE_SECONDS = 60
WORKER_NICENESS = 15  # a worker gets 1/30 of a busy core, which is enough for batches of 512 images

Task = TypeVar("Task")
Result = TypeVar("Result")


class BatchWorkers(Generic[Task, Result]):
    """`count` processes that call `compute` with tasks, and send the results through pipes.

    torch's DataLoader is not used, because it needs room in /dev/shm for each batch and for its queues. In
    containers, /dev/shm is small: it has 64 MB in Docker. When a batch does not fit, its worker only prints an error,
    and training waits forever.
    """

    def __init__(self, compute: Callable[[Task], Result], count: int) -> None:
        self._workers = [_Worker(compute) for _ in range(count)]
        self._awaited: deque[_Worker] = deque()  # the worker of each result that was not received yet
        # At the end of a program, this closes the workers before multiprocessing waits for its processes.
        Finalize(self, _close, args=(self._workers,), exitpriority=0)

    def results(self, tasks: Iterable[Task]) -> Iterator[Result]:
        """The results of `tasks`, in the order of the tasks. A new iteration drops results that an earlier one left.

        Raises:
            PeerError: when a worker has ended.
            RuntimeError: when `compute` has raised an exception; the message is its traceback.
        """
        while self._awaited:
            self._awaited.popleft().receive()
        assigned = zip(tasks, cycle(self._workers))

        def send(count: int) -> None:
            for task, worker in islice(assigned, count):
                worker.send(task)
                self._awaited.append(worker)

        send(AHEAD * len(self._workers))
        while self._awaited:
            result, failure = self._awaited.popleft().receive()
            send(1)
            if failure:
                raise RuntimeError(failure)
            yield result


class _Worker:
    """A process that calls `compute` with each task that it receives."""

    def __init__(self, compute: Callable[[Any], Any]) -> None:
        # A forked worker shares the memory of the images. A worker from a fork server would copy the images. Since
        # Python 3.14, fork servers are the default.
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(compute, theirs, self._connection), daemon=True)
        self._process.start()
        theirs.close()  # if this copy stayed open, `receive` would wait forever after the worker has ended

    def send(self, task: object) -> None:
        try:
            self._connection.send(task)
        except OSError as error:
            raise self._ended() from error

    def receive(self) -> tuple[Any, str | None]:
        """Receive the result of the oldest pending task: (result, None), or (None, traceback) if `compute` failed."""
        try:
            result: tuple[Any, str | None] = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error
        return result

    def close(self) -> None:
        """Let the worker end after its current task."""
        self._connection.close()

    def _ended(self) -> PeerError:
        self._process.join(5)
        code = self._process.exitcode
        how = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"
        return PeerError(
            f"a worker process that augments images {how}; if the memory was full, use fewer --workers (0 needs least) "
            "or a lower --batch-size"
        )


def _close(workers: Iterable[_Worker]) -> None:
    for worker in workers:
        worker.close()


def _work(compute: Callable[[Any], Any], connection: Connection, other_end: Connection) -> None:
    """Call `compute` with each task from `connection`, until the main process closes the connection or ends."""
    other_end.close()  # otherwise a forked worker's own copy of this end would keep the connection open
    # The threads of a training step wait for each other, so a worker that occupies one core would delay all threads.
    # Batches are computed ahead, so idle CPU time is enough for the workers.
    if hasattr(os, "nice"):
        os.nice(WORKER_NICENESS)
    # A terminal or batch system sends signals to all processes of a run. The workers keep running for a while, because
    # the main process still needs batches to finish its step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_GRACE_SECONDS))
    results: SimpleQueue[tuple[Any, str | None]] = SimpleQueue()
    threading.Thread(target=_send_all, args=(results, connection), daemon=True).start()
    with suppress(EOFError, OSError):
        while True:
            task = connection.recv()
            try:
                results.put((compute(task), None))
            except Exception:
                results.put((None, traceback.format_exc()))


def _send_all(results: "SimpleQueue[tuple[Any, str | None]]", connection: Connection) -> None:
    """Send all `results`. This needs a thread, because sending a batch blocks until the main process receives it."""
    try:
        while True:
            connection.send(results.get())
    finally:
        os._exit(1)  # otherwise the other process would wait forever for a result that cannot be sent
