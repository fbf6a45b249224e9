import gc
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest

from onecycle.core.errors import PeerError
from onecycle.data.batch_workers import AHEAD, BatchWorkers

# Python 3.12 warns about a fork in a process with threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

LARGE = 2**20  # more numbers than a pipe holds


def numbers(task: int) -> np.ndarray:
    return np.full(LARGE, task, np.uint8)


def process_id(task: int) -> int:
    return os.getpid()


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def has_ended(pid: int) -> bool:
    """Whether a child process of this process has ended, or was already waited for."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("tasks", [0, 1, 2, 7])
def test_results_come_in_the_order_of_the_tasks(count: int, tasks: int) -> None:
    workers = BatchWorkers(numbers, count)
    for _ in range(2):
        results = list(workers.results(range(tasks)))
        assert [int(result[0]) for result in results] == list(range(tasks))
        assert all(result.shape == (LARGE,) and result.flags.writeable for result in results)


def test_workers_are_started_once_and_work_ahead() -> None:
    workers = BatchWorkers(process_id, 2)
    first, second = (list(workers.results(range(6))) for _ in range(2))
    assert first == second == first[:2] * 3
    assert len({*first, os.getpid()}) == 3


def test_each_worker_computes_ahead_of_the_caller(tmp_path) -> None:
    workers = BatchWorkers(lambda task: (tmp_path / str(task)).touch(), 1)
    results = workers.results(range(10))
    next(results)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 1 + AHEAD)


def test_a_new_iteration_drops_what_an_earlier_one_left() -> None:
    workers = BatchWorkers(numbers, 2)
    assert [int(result[0]) for result in islice(workers.results(range(10, 20)), 3)] == [10, 11, 12]
    assert [int(result[0]) for result in workers.results(range(4))] == [0, 1, 2, 3]


def test_an_exception_in_a_worker_is_raised_here_and_ends_no_worker() -> None:
    workers = BatchWorkers(lambda task: 1 // (task - 2), 2)
    with pytest.raises(RuntimeError, match="(?s)Traceback.*ZeroDivisionError"):
        list(workers.results(range(5)))
    assert list(workers.results([3, 1])) == [1, -1]


@pytest.mark.parametrize("when", ["at once", "while it is awaited"])
def test_a_killed_worker_is_reported_in_one_line(when: str) -> None:
    def die(task: int) -> int:
        if when == "while it is awaited" and task == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return os.getpid()

    workers = BatchWorkers(die, 2)
    with pytest.raises(PeerError, match="was killed by SIGKILL; .*use fewer --workers") as lost:
        if when == "at once":
            pid = next(workers.results(range(1)))
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: has_ended(pid))
        list(workers.results(range(8)))
    assert "\n" not in str(lost.value)


def test_a_worker_that_ends_by_itself_is_reported() -> None:
    with pytest.raises(PeerError, match="ended with exit code 7"):
        list(BatchWorkers(lambda task: os._exit(7), 1).results(range(2)))


def test_a_result_that_cannot_be_sent_is_reported() -> None:
    with pytest.raises(PeerError, match="ended with exit code 1"):
        list(BatchWorkers(lambda task: lambda: task, 1).results(range(2)))


def test_the_workers_end_when_nothing_needs_them_any_more() -> None:
    workers = BatchWorkers(process_id, 3)
    pids = list(workers.results(range(3)))
    del workers
    gc.collect()
    wait_until(lambda: all(map(has_ended, pids)))


PROGRAM = """
import os, signal, sys
from onecycle.data.batch_workers import BatchWorkers
workers = BatchWorkers(lambda task: os.getpid(), 2)
print(*workers.results(range(2)), flush=True)  # at its end, the program still has its workers
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are listed in /proc on Linux only")
@pytest.mark.parametrize("ending", ["by itself", "killed"])
def test_the_workers_end_with_the_program(ending: str) -> None:
    program = subprocess.run([sys.executable, "-c", PROGRAM, ending], capture_output=True, text=True, timeout=60)
    assert (program.returncode, program.stderr) == (-9 if ending == "killed" else 0, "")
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in program.stdout.split()))


WITHOUT_SHARED_MEMORY = """
mount -t tmpfs -o size=4k tmpfs /dev/shm && head -c 4096 /dev/zero > /dev/shm/full && exec "$@"
"""


def test_workers_need_no_shared_memory() -> None:
    alone = ["unshare", "--mount", "sh", "-c", WITHOUT_SHARED_MEMORY, "sh"]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let the tests mount a file system")
    results = "print(*map(len, BatchWorkers(lambda task: bytes(task), 2).results([3, 10**7])))"
    program = [sys.executable, "-c", f"from onecycle.data.batch_workers import BatchWorkers; {results}"]
    done = subprocess.run([*alone, *program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3 10000000\n", "")
