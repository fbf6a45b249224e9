"""Measure the seconds from `git clone` to the first training step, with empty caches, for several commits.

Each round measures every commit once. Downloads take part of the time, so configure a fast mirror for pip.

clone     duration of `git clone` and `git checkout`
install   duration of `make .venv/installed`
step      time from the start of `make train` until its progress bar shows the first step of the LR finder; before
          this step it reads the data, compiles the kernels, and measures compute plans
all       sum of the three
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from start_time import until_first_step
from studies import rounded, write

from onecycle.compute import hardware
from onecycle.compute.plan import EAGER
from onecycle.run import environment

CACHES = ("UV_CACHE_DIR", "PIP_CACHE_DIR", "XDG_CACHE_HOME")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commits", nargs="+", default=["HEAD"], help="commits to compare")
    parser.add_argument("--data", help="CIFAR-10; by default where `make train` finds it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("results/setup_time.json"))
    options = parser.parse_args()
    if options.data:
        os.environ["ONECYCLE_DATA"] = str(Path(options.data).resolve())
    rounds: dict[str, list[dict[str, float]]] = {short_name(commit): [] for commit in options.commits}
    for _ in range(options.rounds):
        for commit, found in rounds.items():
            found.append(measured(commit))
            print(commit, found[-1], flush=True)
    described = environment.describe(hardware.detect(), EAGER)
    del described["compute_plan"]  # each `make train` chooses its own plan
    medians = {
        commit: {name: rounded(statistics.median(one[name] for one in found)) for name in found[0]}
        for commit, found in rounds.items()
    }
    write(options.out, {"seconds": medians, "rounds": rounds, "environment": described})
    print(medians)
    return 0


def short_name(commit: str) -> str:
    """The short hash of `commit`."""
    return subprocess.run(
        ["git", "rev-parse", "--short", commit], check=True, capture_output=True, text=True
    ).stdout.strip()


def measured(commit: str) -> dict[str, float]:
    """The duration of each phase for `commit`, and of all phases together, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {name: f"{folder}/{name}" for name in CACHES}
        os.sync()  # the previous installation of 1.5 GB must not be written to the disk meanwhile
        started = time.perf_counter()
        subprocess.run(["git", "clone", "--quiet", ".", f"{folder}/onecycle"], check=True)
        subprocess.run(["git", "checkout", "--quiet", commit], cwd=f"{folder}/onecycle", check=True)
        cloned = time.perf_counter()
        install = ["make", ".venv/installed", f"PYTHON={sys.executable}"]
        subprocess.run(install, cwd=f"{folder}/onecycle", check=True, stdout=subprocess.DEVNULL)
        installed = time.perf_counter()
        step = until_first_step(["make", "train"], cache=os.environ["XDG_CACHE_HOME"], folder=f"{folder}/onecycle")
    seconds = {"clone": cloned - started, "install": installed - cloned, "step": step}
    return {name: rounded(value) for name, value in {**seconds, "all": sum(seconds.values())}.items()}


if __name__ == "__main__":
    sys.exit(main())
