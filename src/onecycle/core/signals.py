"""SIGINT (Ctrl-C) and SIGTERM: work ends where nothing is lost, and the process says so with the usual exit code."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PASSED_ON_SECONDS = 2.0  # within which a launcher passes on what a terminal has sent to all its processes


class Interrupted(KeyboardInterrupt):
    """This process was told to stop. The message, if there is one, says what is left and how to go on."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number = number

    @property
    def exit_code(self) -> int:
        """130 for SIGINT, 143 for SIGTERM: 128 and the signal's number, as a shell has it."""
        return 128 + self.number


class Interruption:
    """What became of the signals since `watched`: asked between two steps whether to stop."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._came = 0.0
        self._deferred = False
        self._together = False
        self._agreed: int | None = None

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal does not stop anything by itself: `check` does, where work can be left, and the end.

        Raises:
            Interrupted: at the end, when a signal has come.
        """
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.check()

    @property
    def requested(self) -> bool:
        """Whether a signal has come; where several processes stop together, whether they have agreed to."""
        return (self._agreed if self._together else self._number) is not None

    def check(self) -> None:
        """Stop here if that is requested.

        Raises:
            Interrupted: then.
        """
        number = self._agreed if self._together else self._number
        if number is not None:
            raise Interrupted(number)

    def _take(self, number: int, _: FrameType | None) -> None:
        if self._number is not None:  # a second one: at once. What is written is whole or has no name yet.
            if self._together and time.monotonic() - self._came < PASSED_ON_SECONDS:
                return
            if os.isatty(2):
                os.write(2, b"\x1b[?25h")  # a bar may have hidden the cursor
            os._exit(128 + number)
        self._number, self._came = number, time.monotonic()
        if not self._deferred:
            raise Interrupted(number)


_watching: Interruption | None = None


@contextmanager
def watched() -> Iterator[Interruption]:
    """Inside, SIGINT and SIGTERM raise `Interrupted`, or wait where they are deferred; a second one ends the process.

    Within itself it is the same one. Only the main thread can watch; in another one signals are left as they are.
    """
    global _watching
    if _watching:
        yield _watching
        return
    if threading.current_thread() is not threading.main_thread():
        yield Interruption()
        return
    _watching = Interruption()
    before = {
        number: signal.signal(number, _watching._take)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN  # as a shell starts what runs in the background
    }
    try:
        yield _watching
    finally:
        _watching = None
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def together() -> Iterator[None]:
    """Inside, a signal that is deferred stops nothing until the processes of a run have agreed by `agree`."""
    if _watching:
        _watching._together = True
    try:
        yield
    finally:
        if _watching:
            _watching._together = False


@contextmanager
def held() -> Iterator[None]:
    """Inside, a first signal changes nothing: this process ends soon."""
    if _watching:
        _watching._deferred = True
    try:
        yield
    finally:
        if _watching:
            _watching._deferred = False


def received() -> int:
    """The number of the signal that has come to this process, or 0."""
    return (_watching and _watching._number) or 0


def agreed() -> bool:
    """Whether all processes of the run stop, as `agree` said."""
    return bool(_watching and _watching._agreed)


def agree(number: int) -> None:
    """All processes of the run stop, as the one that the signal `number` has come to."""
    if _watching:
        _watching._agreed = number
