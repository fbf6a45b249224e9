"""Measure how long commands take to start: the median seconds of several rounds.

help        `onecycle --help`, until it ends
first_run   `onecycle find-lr`, until its progress bar shows the first step. The user cache is empty, so the command
            compiles the kernels and measures compute plans.
later_run   the same command, with the cache that the first run has filled
"""

import argparse
import os
import pty
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from studies import rounded, write

from onecycle.compute import autotune, hardware
from onecycle.models import CustomResNet
from onecycle.run import environment

FIRST_RATE = b"lr 1.0e-06"  # on the progress bar after the first step


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="as in `onecycle train`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results/start_time.json"))
    options = parser.parse_args()
    onecycle = [sys.executable, "-m", "onecycle"]
    seconds: dict[str, list[float]] = {"help": [], "first_run": [], "later_run": []}
    for round in range(options.rounds):
        started = time.perf_counter()
        subprocess.run([*onecycle, "--help"], stdout=subprocess.DEVNULL, check=True)
        seconds["help"].append(time.perf_counter() - started)
        with tempfile.TemporaryDirectory() as folder:
            for name in ("first_run", "later_run"):
                find_lr = [*onecycle, "find-lr", "--data", options.data, "--out", f"{folder}/runs"]
                seconds[name].append(until_first_step(find_lr, cache=f"{folder}/cache"))
        print(f"round {round + 1}/{options.rounds}:", {name: rounded(values[-1]) for name, values in seconds.items()})
    plan = autotune.choose(CustomResNet(), 32, hardware.detect()).plan
    record = {
        "seconds": {name: rounded(statistics.median(values)) for name, values in seconds.items()},
        "rounds": {name: [rounded(value) for value in values] for name, values in seconds.items()},
        "environment": environment.describe(hardware.detect(), plan),
    }
    write(options.out, record)
    print(record["seconds"])
    return 0


def until_first_step(command: list[str], *, cache: str, folder: str = ".") -> float:
    """Seconds until the progress bar of the LR finder shows the first step. The command runs in a pseudo-terminal."""
    ours, theirs = pty.openpty()
    variables = {**os.environ, "XDG_CACHE_HOME": cache, "TERM": "xterm", "COLUMNS": "120"}
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=theirs, stderr=theirs, env=variables, start_new_session=True)
    os.close(theirs)
    output = b""
    try:
        while FIRST_RATE not in output:
            output += os.read(ours, 4096)
        return time.perf_counter() - started
    except OSError:
        raise SystemExit(f"start_time: {' '.join(command)} ended early: {output.decode(errors='replace')}") from None
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(ours)


if __name__ == "__main__":
    sys.exit(main())
