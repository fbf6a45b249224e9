"""Whether this process, of which others expect something soon, computes, or hangs."""

import threading
import time
from collections.abc import Callable

_LEAST_SECONDS = 0.01  # of a processor, by which a process that computes is told from one that hangs


class Watch:
    """Made by the thread that computes; another one asks whether that `hangs`."""

    def __init__(self) -> None:
        self.expected_soon = False
        self._clock = _clock_of_this_thread()
        self._spent, self._moved = 0.0, time.monotonic()  # by that clock, and when that was

    def hangs(self, seconds: float) -> bool:
        """Whether something was expected, and nothing done, for so long; that is told once."""
        spent, now = self._clock(), time.monotonic()
        if not self.expected_soon or spent - self._spent > _LEAST_SECONDS:
            self._spent, self._moved = spent, now
        elif now - self._moved > seconds:
            self._moved = now
            return True
        return False


def _clock_of_this_thread() -> Callable[[], float]:
    """The seconds for which a processor has worked for this thread; on macOS and Windows, for all of its process."""
    try:
        number = time.pthread_getcpuclockid(threading.get_ident())
    except AttributeError:
        return time.process_time
    return lambda: time.clock_gettime(number)
