"""Check that a run is bit-identical for any number of processes, and after a process was killed.

One, two and four processes compute the same short run on CIFAR-10, with four shards. They use one thread each, then
two. The record says for each number of processes whether the result is bit-identical to that of one process.
Then --kills runs start with four processes. In each of these runs, a random process is killed (SIGKILL) at a random
time after the first epoch, and one or two processes resume the run. The record says how many of the resumed runs are
bit-identical to an undisturbed run.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from studies import bits, ranks_of, rounded, write

from onecycle.compute import hardware
from onecycle.run import environment
from onecycle.storage.run_folder import RunFolder

SHARDS = 4
PROCESSES = (1, 2, 4)
AFTER_KILL = (2, 1)  # a killed run is resumed by two processes or by one, alternately


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--images", type=int, default=6000, help="images of each split")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument(
        "--recipes", nargs="+", default=["quick", "baseline"], help="the runs with a kill use the first recipe"
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="threads of each process")
    parser.add_argument("--kills", type=int, default=20, help="runs with a killed process")
    parser.add_argument("--seed", type=int, default=0, help="seed of the kills")
    parser.add_argument("--out", type=Path, default=Path("results/same_bits.json"))
    options = parser.parse_args()
    record: dict[str, Any] = {
        "shards": SHARDS,
        **{name: value for name, value in vars(options).items() if name != "out"},
    }
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for threads in options.threads:
            for recipe in options.recipes:
                arguments = _options(options, recipe)
                runs = {
                    count: _run(place / f"{recipe}-{threads}-{count}", arguments, count, threads) for count in PROCESSES
                }
                same = {str(count): bits(run) == bits(runs[1]) for count, run in runs.items()}
                record[f"{recipe}, {threads} thread{'s' * (threads > 1)}"] = {"identical by processes": same}
                print(f"{recipe}, {threads} threads: {same}", flush=True)
        record["killed"] = _killed(options, place, _options(options, options.recipes[0]))
        plan = environment.recorded_plan(RunFolder(next(place.glob("*/runs/*/config.json")).parent))
    record["environment"] = environment.describe(hardware.detect(), plan)
    write(options.out, record)
    return 0


def _options(options: argparse.Namespace, recipe: str) -> list[str]:
    values = {
        "--recipe": recipe,
        "--data": options.data,
        "--limit": options.images,
        "--epochs": options.epochs,
        "--batch-size": options.batch_size,
        "--shards": SHARDS,
    }
    rates = ["--lr-min", "1e-5", "--lr-max", "2e-3"] if recipe == "baseline" else []
    return ["--no-report", *rates, *(str(part) for pair in values.items() for part in pair)]


def _start(folder: Path, arguments: list[str], processes: int, threads: int) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-u", "-m", "onecycle", "train", *arguments, "--processes", str(processes)]
    variables = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _run(folder: Path, arguments: list[str], processes: int, threads: int) -> RunFolder:
    output, _ = (process := _start(folder, arguments, processes, threads)).communicate()
    assert process.returncode == 0, output
    return RunFolder(next(folder.glob("runs/*/config.json")).parent)


def _killed(options: argparse.Namespace, place: Path, arguments: list[str]) -> dict[str, Any]:
    threads, draws = options.threads[0], random.Random(options.seed)
    started = time.perf_counter()
    expected = bits(_run(place / "undisturbed", arguments, SHARDS, threads))
    seconds = time.perf_counter() - started
    identical, named, noticed = 0, 0, []
    for number in range(options.kills):
        folder, rank = place / f"killed-{number}", draws.randrange(SHARDS)
        while True:  # repeat if the run ended before a process was killed
            process = _start(folder, arguments, SHARDS, threads)
            assert process.stdout
            for line in process.stdout:
                if line.strip().startswith("1/"):
                    break
            time.sleep(draws.uniform(0, seconds / 3))
            if (victim := ranks_of(process.pid).get(rank)) is not None:
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
            killed = time.perf_counter()
            output = process.stdout.read()
            (run,) = map(RunFolder, folder.glob("runs/*"))
            if victim is not None and process.wait() == 2 and not run.is_complete:
                break
            run.discard()
        noticed.append(time.perf_counter() - killed)
        named += f"rank {rank} (" in output
        processes = AFTER_KILL[number % len(AFTER_KILL)]
        resumed = _run(folder, ["--resume", str(run.path.relative_to(folder))], processes, threads)
        identical += bits(resumed) == expected
        progress = f"{number + 1}/{options.kills}: killed rank {rank}, resumed by {processes}"
        print(f"{progress}: {identical} identical", flush=True)
    return {
        "kills": options.kills,
        "identical": identical,
        "rank named": named,
        "seconds until it ended, median": rounded(float(np.median(noticed))) if noticed else None,
    }


if __name__ == "__main__":
    raise SystemExit(main())
