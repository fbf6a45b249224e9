"""Run `onecycle` with injected faults, such as a kill, a signal, an error or a hang."""

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

from onecycle.distributed import heartbeat

LIMIT = 8192  # bytes: the largest file that the fault "limit" allows
CALLS_NOTED, HANGS = "calls", "hangs"  # files in the working folder of the run


@dataclass(frozen=True)
class Fault:
    """A fault that happens just before the function `at` runs for the `call`th time.

    `does` names the fault:
        "kill": kill the process.
        "tear": truncate the file that is about to be flushed, then kill the process.
        "note": record this and every other call of the function in a file.
        "vanish": remove the folder `runs`.
        "limit": limit the size of files to `LIMIT`, so that no checkpoint can be written.
        "hang": hang. The watchdog reports the process as stalled after a few seconds.
        the name of a signal, such as "SIGINT": send the signal to the process.
        the same with "to all", such as "SIGINT to all": send it to the children of the process, then to the process.
        the name of an errno, such as "ENOSPC": raise an OSError with that errno.
    """

    at: str
    does: str
    call: int = 1


def run(
    arguments: Sequence[str], folder: Path, environment: dict[str, str], faults: Sequence[Fault], save_seconds: float
) -> None:
    """Run `onecycle` with `arguments` in this process, in `folder`. The output goes into a file beside the folder."""
    os.chdir(folder)
    os.environ |= environment
    descriptor = os.open(output_file(folder), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore SIGINT
    from onecycle import cli
    from onecycle.run import autosave

    autosave.SAVE_SECONDS = save_seconds
    for fault in faults:
        plant(fault)
    code = cli.main(arguments)
    sys.stdout.flush()
    exit_code_file(folder).write_text(str(code))
    sys.exit(code)


def output_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.output")


def exit_code_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.code")


def plant(fault: Fault) -> None:
    owner_name, _, name = fault.at.rpartition(".")
    owner = resolved(owner_name)
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


def resolved(name: str) -> Any:
    """The module or attribute with the dotted `name`."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        owner, _, last = name.rpartition(".")
        return getattr(resolved(owner), last)


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
        heartbeat.SILENT_SECONDS = 4
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
