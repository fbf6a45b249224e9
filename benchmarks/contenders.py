"""Processes that take turns computing steps, so that other load on the machine slows all of them alike."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from onecycle.compute import hardware
from onecycle.compute.plan import EAGER


class Contender:
    """A process that computes steps on request, and otherwise waits idly. Its program uses `Turns`."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def take_turn(self, steps: int) -> list[float]:
        """Let the process compute `steps` steps, and return the seconds of each."""
        seconds: list[float] = self._request(str(steps))
        return seconds

    def end(self) -> dict[str, Any]:
        """End the process, and return its peak memory and its compute plan."""
        ending: dict[str, Any] = self._request("end")
        self._process.wait()
        return ending

    def _request(self, request: str) -> Any:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(request + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"a contender failed: {' '.join(map(str, self._process.args))}")
        return json.loads(answer)


class Turns:
    """The counterpart of `Contender` inside the contender's process. It counts the steps, and waits between turns."""

    def __init__(self, answers: TextIO) -> None:
        self._answers = answers
        self._seconds: list[float] = []
        self.plan = EAGER
        self._wait()

    def step_done(self, seconds: float | None = None) -> None:
        """Report a step, and return when the next step may start.

        `seconds` is the duration of the step. By default it is the time since the last return.
        """
        self._seconds.append(time.perf_counter() - self._started if seconds is None else seconds)
        self._left -= 1
        if self._left == 0:
            self._answer(self._seconds)
            self._seconds = []
            self._wait()
        self._started = time.perf_counter()

    def _wait(self) -> None:
        request = sys.stdin.readline().strip()
        if request in ("end", ""):
            memory = hardware.peak_memory_gib()
            self._answer({"peak_memory_gib": memory, "compute_plan": self.plan.to_json()})
            os._exit(0)  # sys.exit raises an exception, which a training library may catch
        self._left = int(request)
        self._started = time.perf_counter()

    def _answer(self, value: object) -> None:
        self._answers.write(json.dumps(value) + "\n")
        self._answers.flush()
