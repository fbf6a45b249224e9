"""Handle SIGINT (Ctrl-C) and SIGTERM: stop at a point where nothing is lost, with the usual exit code."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# With several processes, a second signal within this time is ignored. A launcher may have forwarded the first signal,
# so that it arrives twice.
FORWARDED_SECONDS = 2.0


class Interrupted(KeyboardInterrupt):
    """A signal stops this process. The message, if any, says how to resume."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number = number

    @property
    def exit_code(self) -> int:
        """128 plus the number of the signal, as in a shell: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.number


class Interruption:
    """The signals received in a `watched` block. Training asks between two steps whether to stop."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._came = 0.0
        self._deferred = False
        self._together = False
        self._agreed: int | None = None

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside the block, a signal takes effect only at the next `check`, or when the block ends.

        Raises:
            Interrupted: at the end of the block, if a stop was requested.
        """
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.check()

    @property
    def requested(self) -> bool:
        """Whether to stop. A single process stops after a signal. Several processes stop after all have agreed."""
        return (self._agreed if self._together else self._number) is not None

    def check(self) -> None:
        """Raise `Interrupted` if a stop was requested.

        Raises:
            Interrupted: if `requested` is true.
        """
        number = self._agreed if self._together else self._number
        if number is not None:
            raise Interrupted(number)

    def _take(self, number: int, _: FrameType | None) -> None:
        if self._number is not None:  # a second signal ends the process; this leaves only temporary files incomplete
            if self._together and time.monotonic() - self._came < FORWARDED_SECONDS:
                return
            if os.isatty(2):
                os.write(2, b"\x1b[?25h")  # a progress bar may have hidden the cursor
            os._exit(128 + number)
        self._number, self._came = number, time.monotonic()
        if not self._deferred:
            raise Interrupted(number)


_watching: Interruption | None = None


@contextmanager
def watched() -> Iterator[Interruption]:
    """Inside the block, SIGINT and SIGTERM raise `Interrupted`. A `deferred` block delays this.

    A second signal ends the process at once. A nested block yields the same `Interruption`. Signals are handled in the
    main thread only.
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
        if signal.getsignal(number) is not signal.SIG_IGN  # a background job ignores SIGINT, and must go on ignoring it
    }
    try:
        yield _watching
    finally:
        _watching = None
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def together() -> Iterator[None]:
    """Inside the block, a deferred signal takes effect only after all processes of the run have agreed to stop."""
    if _watching:
        _watching._together = True
    try:
        yield
    finally:
        if _watching:
            _watching._together = False


@contextmanager
def held() -> Iterator[None]:
    """Inside the block, the process's first signal is recorded, but does not raise `Interrupted`.

    The process is about to end anyway. A second signal still ends the process at once. If a job has several
    processes, a signal that comes within `FORWARDED_SECONDS` of the first has no effect.
    """
    if _watching:
        _watching._deferred = True
    try:
        yield
    finally:
        if _watching:
            _watching._deferred = False


def received() -> int:
    """The number of the signal that this process has received, or 0."""
    return (_watching and _watching._number) or 0


def agreed() -> bool:
    """Whether the processes of the run have agreed to stop."""
    return bool(_watching and _watching._agreed)


def agree(number: int) -> None:
    """Record that all processes of the run stop because of the signal `number`."""
    if _watching:
        _watching._agreed = number
