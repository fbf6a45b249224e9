"""The service in a process of its own, and CIFAR-10 photographs to send to it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from photographs import PHOTOGRAPHS
from PIL import Image

WITH_LIMITS = """
import sys
from onecycle.predict.predictor import load
from onecycle.serve.limits import Limits
from onecycle.serve.server import run
run(load(), "CIFAR-10", host="127.0.0.1", port=0, limits=Limits(**eval(sys.argv[1])))
"""


class Service:
    """A running service."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url
        self.port = int(url.rstrip("/").rpartition(":")[2])

    def decoders(self) -> list[int]:
        """The ids of the processes that decode images."""
        return children(self.process.pid)

    def memory_mib(self) -> float:
        statuses = [Path(f"/proc/{process}/status").read_text() for process in (self.process.pid, *self.decoders())]
        return sum(int(status.partition("VmRSS:")[2].split()[0]) for status in statuses) / 1024

    def files(self) -> list[str]:
        """The files that the process has open, without sockets and pipes."""
        targets = []
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # the file was closed meanwhile
                targets.append(os.readlink(link))
        return [target for target in targets if target.startswith("/")]


def children(process: int) -> list[int]:
    """The ids of the processes that `process` started."""
    found: list[int] = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):  # each thread has its own
        with suppress(FileNotFoundError):  # the thread has ended meanwhile
            found += map(int, path.read_text().split())
    return sorted(found)


@contextmanager
def started(*command: str, may_say: str = "") -> Iterator[Service]:
    """A service that `command` starts. It must print nothing on stderr, or the line `may_say`."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stderr
    try:
        line = process.stdout.readline()
        assert "http://" in line, process.stderr.read()
        yield Service(process, line.split()[1])
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert err in ("", f"{may_say}\n")
    if command[0] == "-m":
        assert (process.returncode, out) == (0, "Stopped\n")


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    """`onecycle serve` with the network that comes with the package."""
    with started("-m", "onecycle", "serve", "--port", "0") as service:
        yield service


@pytest.fixture(scope="session")
def image_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eight enlarged CIFAR-10 photographs. The list `photographs.SHOWN` has their classes."""
    folder = tmp_path_factory.mktemp("served")
    paths = []
    for number, pixels in enumerate(PHOTOGRAPHS):
        paths.append(folder / f"photo {number}.png")
        Image.fromarray(pixels).resize((320, 320), Image.Resampling.NEAREST).save(paths[-1])
    return paths
