"""A watchdog that detects a stalled process."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LEAST_CPU_SECONDS = 0.01  # a thread has made progress once it has used more CPU time than this


class Watchdog:
    """Watches the thread that creates it. Another thread calls `has_stalled` from time to time.

    Inside a block `with armed()`, the watchdog is armed. While the thread waits for other processes, a block
    `with paused()` disarms the watchdog.
    """

    def __init__(self) -> None:
        self._armed, self._pauses = False, 0
        self._cpu_seconds = _cpu_clock_of_this_thread()
        # At the last progress, the thread had used `_spent` CPU seconds, and the clock showed `_progressed`.
        self._spent, self._progressed = 0.0, time.monotonic()

    @contextmanager
    def armed(self) -> Iterator[None]:
        self._armed = True
        try:
            yield
        finally:
            self._armed = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1

    def has_stalled(self, seconds: float) -> bool:
        """Whether the thread has made no progress for more than `seconds` while the watchdog was armed.

        A thread that makes progress uses CPU time. After True is returned, the seconds count from 0 again.
        """
        spent, now = self._cpu_seconds(), time.monotonic()
        if not self._armed or self._pauses or spent - self._spent > _LEAST_CPU_SECONDS:
            self._spent, self._progressed = spent, now
        elif now - self._progressed > seconds:
            self._progressed = now
            return True
        return False


def _cpu_clock_of_this_thread() -> Callable[[], float]:
    """A function that returns the CPU seconds of this thread, or of the whole process if threads have no CPU clock."""
    try:
        number = time.pthread_getcpuclockid(threading.get_ident())
    except AttributeError:
        return time.process_time
    return lambda: time.clock_gettime(number)
