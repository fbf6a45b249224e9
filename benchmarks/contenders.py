"""Processes that do steps in turns, so that whatever else slows the machine slows them all."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from onecycle.compute import hardware
from onecycle.compute.plan import PLAIN


class Contender:
    """A process that does steps when it is asked to, and waits idly otherwise. Its program answers by `Turns`."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str] = os.environ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def take_turn(self, steps: int) -> list[float]:
        """The seconds of each of so many steps."""
        seconds: list[float] = self._ask(str(steps))
        return seconds

    def end(self) -> dict[str, Any]:
        """What the process tells of itself as it goes."""
        told: dict[str, Any] = self._ask("end")
        self._process.wait()
        return told

    def _ask(self, request: str) -> Any:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(request + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"a contender failed: {' '.join(map(str, self._process.args))}")
        return json.loads(answer)


class Turns:
    """The other end of a `Contender`: steps report here, and are held up between turns."""

    def __init__(self, answers: TextIO) -> None:
        self._answers = answers
        self._seconds: list[float] = []
        self.acceleration = PLAIN
        self._wait()

    def step_done(self, seconds: float | None = None) -> None:
        """A step is done, in `seconds` or the time since this came back last; comes back when the next may begin."""
        self._seconds.append(time.perf_counter() - self._began if seconds is None else seconds)
        self._left -= 1
        if self._left == 0:
            self._answer(self._seconds)
            self._seconds = []
            self._wait()
        self._began = time.perf_counter()

    def _wait(self) -> None:
        request = sys.stdin.readline().strip()
        if request in ("end", ""):
            memory = hardware.peak_memory_gib()
            self._answer({"peak_memory_gib": memory, "acceleration": self.acceleration.to_json()})
            os._exit(0)  # from wherever a trainer called us
        self._left = int(request)
        self._began = time.perf_counter()

    def _answer(self, value: object) -> None:
        self._answers.write(json.dumps(value) + "\n")
        self._answers.flush()
