"""Does a run come to the same bits, whoever computes it, and whoever is killed meanwhile?

A short run of CIFAR-10 with four shards is computed by one, two and four processes, with one thread each and with two.
Then it is begun by four, of which one, drawn at random, is killed (SIGKILL) at a random instant after the first epoch,
and gone on with by two or by one, as often as asked. Written down is whether these runs have the weights, the history
and the predictions of the one by one process, and of the one that nobody disturbed.
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
AFTER_KILL = (2, 1)  # processes, in turn


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--images", type=int, default=6000, help="of each set")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--recipes", nargs="+", default=["quick", "baseline"], help="the first is also killed")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of each process")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
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
                words = _options(options, recipe)
                runs = {
                    count: _run(place / f"{recipe}-{threads}-{count}", words, count, threads) for count in PROCESSES
                }
                same = {str(count): bits(run) == bits(runs[1]) for count, run in runs.items()}
                record[f"{recipe}, {threads} thread{'s' * (threads > 1)}"] = {"identical by processes": same}
                print(f"{recipe}, {threads} threads: {same}", flush=True)
        record["killed"] = _killed(options, place, _options(options, options.recipes[0]))
        how = environment.recorded_acceleration(RunFolder(next(place.glob("*/runs/*/config.json")).parent))
    record["environment"] = environment.describe(hardware.detect(), how)
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
    return ["--no-report", *rates, *(str(word) for pair in values.items() for word in pair)]


def _begin(folder: Path, words: list[str], processes: int, threads: int) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-u", "-m", "onecycle", "train", *words, "--processes", str(processes)]
    kept = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=kept,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _run(folder: Path, words: list[str], processes: int, threads: int) -> RunFolder:
    said, _ = (process := _begin(folder, words, processes, threads)).communicate()
    assert process.returncode == 0, said
    return RunFolder(next(folder.glob("runs/*/config.json")).parent)


def _killed(options: argparse.Namespace, place: Path, words: list[str]) -> dict[str, Any]:
    threads, draws = options.threads[0], random.Random(options.seed)
    began = time.perf_counter()
    expected = bits(_run(place / "undisturbed", words, SHARDS, threads))
    seconds = time.perf_counter() - began
    identical, told, noticed = 0, 0, []
    for number in range(options.kills):
        folder, rank = place / f"killed-{number}", draws.randrange(SHARDS)
        while True:  # until one was killed before it was done
            process = _begin(folder, words, SHARDS, threads)
            assert process.stdout
            for line in process.stdout:
                if line.strip().startswith("1/"):
                    break
            time.sleep(draws.uniform(0, seconds / 3))
            if (victim := ranks_of(process.pid).get(rank)) is not None:
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
            killed = time.perf_counter()
            said = process.stdout.read()
            (run,) = map(RunFolder, folder.glob("runs/*"))
            if victim is not None and process.wait() == 2 and not run.complete:
                break
            run.discard()
        noticed.append(time.perf_counter() - killed)
        told += f"rank {rank} (" in said
        on = AFTER_KILL[number % len(AFTER_KILL)]
        resumed = _run(folder, ["--resume", str(run.path.relative_to(folder))], on, threads)
        identical += bits(resumed) == expected
        print(f"{number + 1}/{options.kills}: rank {rank}, on with {on}: {identical} identical", flush=True)
    return {
        "kills": options.kills,
        "identical": identical,
        "rank named": told,
        "seconds until it ended, median": rounded(float(np.median(noticed))) if noticed else None,
    }


if __name__ == "__main__":
    raise SystemExit(main())
