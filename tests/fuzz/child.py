"""Run `onecycle` on a hostile input in a child process, and check what it did."""

import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MOST_SECONDS = 5  # of CPU time for an input, so that other work on this machine does not matter
MOST_KIBIBYTES = 2**20  # of memory for an input, above that of an idle process
_PATIENCE = 60  # seconds for a process that waits, and so uses no CPU time
_KILLED_ABOVE = 4 * 2**30  # bytes, to protect this machine

processes = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Outcome:
    """What a command did: its exit code (minus the number of the signal that killed it) and its standard error."""

    code: int
    errors: list[str]

    def require_clean(self, *, decodes: bool = False) -> None:
        """Check that the command ended with a result, or with one line for each error.

        If it `decodes` images, libtiff may print lines, too.
        """
        assert self.code in (0, 1, 2, 128 + signal.SIGINT), self
        # The second beginning is that of a verdict of `evaluate`, with exit code 1.
        own = [line for line in self.errors if line.startswith(("onecycle: ", "differs from the recorded result: "))]
        assert own == self.errors or (decodes and "Traceback (most recent call last):" not in self.errors), self
        assert all(map(str.isprintable, self.errors)) and (own or self.code in (0, 1)), self


def onecycle(*arguments: str | Path, within: Path) -> Outcome:
    """Run `onecycle` with `arguments` in the folder `within`. A run that would train stops before its first step."""
    return called(_command, [*map(str, arguments)], within=within)


def called(work: Callable[[Sequence[str]], int], arguments: Sequence[str], *, within: Path) -> Outcome:
    """Let a child process call `work` in the folder `within`. Check the time and the memory that it takes."""
    output, usage = within / "output", within / "usage"
    process = processes.Process(target=_run, args=(work, arguments, within, dict(os.environ)))
    process.start()
    process.join(_PATIENCE)
    if process.is_alive():
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        process.join()
        raise AssertionError(f"{arguments} waits for something: {output.read_text(errors='replace')[-2000:]}")
    text = output.read_text(errors="replace")
    assert usage.exists(), f"{arguments} ended with {process.exitcode}: {text[-2000:]}"
    code, seconds, kibibytes = usage.read_text().split()
    assert float(seconds) <= MOST_SECONDS, f"{arguments} took {seconds} seconds: {text[-2000:]}"
    assert int(kibibytes) <= MOST_KIBIBYTES, f"{arguments} took {kibibytes} KiB: {text[-2000:]}"
    usage.unlink()
    return Outcome(int(code), text.splitlines())


def _run(
    work: Callable[[Sequence[str]], int], arguments: Sequence[str], within: Path, environment: Mapping[str, str]
) -> None:
    os.setsid()
    os.environ.update(environment)
    os.chdir(within)
    os.dup2(os.open("output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    resource.setrlimit(resource.RLIMIT_DATA, (_KILLED_ABOVE, _KILLED_ABOVE))
    resource.setrlimit(resource.RLIMIT_CPU, (2 * MOST_SECONDS, 2 * MOST_SECONDS))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore SIGINT
    started, idle = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code = work(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    seconds = time.process_time() - started
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - idle
    Path("usage").write_text(f"{code} {seconds} {grown}")


def _command(arguments: Sequence[str]) -> int:
    import torch

    from onecycle import cli
    from onecycle.compute import autotune
    from onecycle.run import experiment

    def stop(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

    # Measuring compute plans takes as long as training with the image size that the configuration names.
    experiment.fit = experiment.find_lr = autotune._measure = stop  # type: ignore[assignment]
    # A run may have had 1,024 threads. Their stacks use little memory, but count as 16 GiB of RLIMIT_DATA.
    set_num_threads = torch.set_num_threads
    torch.set_num_threads = lambda count: set_num_threads(min(count, 64))
    return cli.main(arguments)


def contents(folder: Path) -> dict[str, tuple[object, ...]]:
    """What lies in `folder`, at any depth: what must be as before after a command."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else None
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_ino, status.st_mtime_ns, content)
    return found
