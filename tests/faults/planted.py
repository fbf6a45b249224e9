"""A command line in a process of its own, with faults planted in it: it is killed there, or told to stop."""

import errno
import importlib
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onecycle.distributed import peers

LIMIT = 8192  # bytes
CALLS_NOTED, HANGS = "calls", "hangs"  # files in the run's working folder


@dataclass(frozen=True)
class Fault:
    """What happens when the function `at` is called for the `call`-th time, just before it does its work.

    It `does` "kill", "tear" (cut the file to be flushed, then kill), "note" (every call), or it has the name of a
    signal, with "to all" if the process's children get it first, or of an error of the operating system. It may also
    "vanish" the folder of runs, "limit" files to so few bytes that no checkpoint fits, or "hang" for good, which is
    then noticed after a few seconds.
    """

    at: str
    does: str
    call: int = 1


def run(
    arguments: Sequence[str], folder: Path, environment: dict[str, str], faults: Sequence[Fault], save_seconds: float
) -> None:
    """What the process runs: `onecycle` with `arguments`, in `folder`. A file beside it takes what it prints."""
    os.chdir(folder)
    os.environ |= environment
    descriptor = os.open(said_by(folder), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run in the background it is ignored
    from onecycle import cli
    from onecycle.run import autosave

    autosave.SAVE_SECONDS = save_seconds
    for fault in faults:
        plant(fault)
    code = cli.main(arguments)
    sys.stdout.flush()
    ended_with(folder).write_text(str(code))
    sys.exit(code)


def said_by(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.said")


def ended_with(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.code")


def plant(fault: Fault) -> None:
    owner_name, _, name = fault.at.rpartition(".")
    owner = named(owner_name)
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def faulty(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if fault.does == "note":
            with Path(CALLS_NOTED).open("a") as file:
                file.write(f"{fault.at}\n")
        elif calls == fault.call:
            happen(fault.does, arguments)
        return original(*arguments, **options)

    setattr(owner, name, faulty)


def named(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        owner, _, last = name.rpartition(".")
        return getattr(named(owner), last)


def happen(what: str, arguments: Sequence[Any]) -> None:
    if what == "tear":
        path = Path(os.readlink(f"/proc/self/fd/{arguments[0]}"))
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    if what in ("kill", "tear"):
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "vanish":
        shutil.rmtree("runs")
    elif what == "hang":
        peers.SILENT_SECONDS = 4
        Path(HANGS).touch()
        time.sleep(1000)
    elif what == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
    elif what.startswith("SIG"):
        name, _, to_all = what.partition(" ")
        children = [*map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())] if to_all else []
        for process in (*children, os.getpid()):
            os.kill(process, signal.Signals[name])
    else:
        number = getattr(errno, what)
        raise OSError(number, os.strerror(number))
