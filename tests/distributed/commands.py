"""Start training commands with several real processes, and wait for their results."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from studies import StartedCommand, ranks_of

from onecycle.storage.run_folder import RunFolder

NETWORK = ["--recipe", "quick", "--widths", "8", "8", "8"]
PATIENCE = 600.0  # longest wait for a command or its output, in seconds


def small(**changes: object) -> list[str]:
    """The options of a run that takes seconds."""
    values = {"data": "digits", "limit": 90, "epochs": 3, "batch_size": 26, "shards": 4, **changes}
    pairs = [(f"--{name.replace('_', '-')}", str(value)) for name, value in values.items()]
    return ["--no-report", *(word for pair in pairs for word in pair)]


class Command(StartedCommand):
    """A command that may start training processes."""

    def wait_for_output(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while text not in self.output:
            assert self.process.poll() is None and time.monotonic() < deadline, self.output
            time.sleep(0.05)

    def ranks(self) -> dict[int, int]:
        """The process ids of the training processes, by rank."""
        return ranks_of(self.process.pid)

    def kill(self) -> None:
        """Kill the command and its training processes at once, as a power failure would."""
        for process_id in (self.process.pid, *self.ranks().values()):
            with suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
        self.process.wait()

    def end(self, seconds: float = PATIENCE) -> int:
        return super().end(seconds)


def start(folder: Path, *words: str, threads: int = 1, **environment: str) -> Command:
    """Start `python -m` with the arguments `words` in the working folder `folder`."""
    folder.mkdir(exist_ok=True)
    log = folder / f"log-{len(list(folder.glob('log-*')))}"
    variables = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", **environment}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=folder,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=variables,
            start_new_session=True,
        )
    return Command(process, log)


def train(folder: Path, *options: str, threads: int = 1) -> RunFolder:
    """Train with `options` in the working folder `folder`, and return the folder of the complete run."""
    command = start(folder, "onecycle", "train", *options, threads=threads)
    assert command.end() == 0, command.output
    return run_in(folder)


def run_in(folder: Path) -> RunFolder:
    """The only run in the working folder `folder`."""
    (config,) = folder.glob("runs/*/config.json")
    return RunFolder(config.parent)
