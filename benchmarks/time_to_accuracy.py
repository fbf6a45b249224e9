"""Measure the time to 90 % and 94 % accuracy with the recipes `quick` and `fast` and with a port of airbench94-Muon.

The contenders take turns. Each contender is a command, and all use the same seeds:

  quick  `onecycle train --recipe quick`
  fast   `onecycle train --recipe fast`; its `tta_accuracy` is comparable to that of the port
  port   airbench_port.py in this folder

`seconds` is the time of the phases that airbench measures: whitening, training and test-time augmentation. It does not
include loading the data or other evaluations. A recipe does not time its whitening, so this script measures the
whitening and adds it to the time of the epochs. The search for the compute plan happens once per machine and is not
included. `wall_seconds` is the duration of the whole command, including the time to write its files. The script
compares the medians of the rounds.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from studies import rounded, write

from onecycle.compute import hardware
from onecycle.compute.plan import EAGER
from onecycle.data.preprocessing import Preprocessing
from onecycle.models import WhitenedConvNet
from onecycle.run import environment
from onecycle.storage.run_folder import RunFolder

CONTENDERS = ("quick", "fast", "port")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="as in `onecycle train`")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each contender; round 1 has seed 0")
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS, metavar="NAME")
    parser.add_argument("--epochs", type=int, help="replaces the value of the recipes, for a short trial")
    parser.add_argument("--limit", type=int, help="use only this many images of each split, for a trial")
    parser.add_argument("--batch-size", type=int, help="replaces the value of the recipes, for a short trial")
    parser.add_argument("--out", type=Path, default=Path("results/time_to_accuracy.json"))
    options = parser.parse_args()
    common = ["--data", options.data]
    for name in ("epochs", "limit"):
        if (value := getattr(options, name)) is not None:
            common += [f"--{name}", str(value)]
    batches = [] if options.batch_size is None else ["--batch-size", str(options.batch_size)]
    whitening = whitening_seconds()
    described = environment.describe(hardware.detect(), EAGER)
    del described["compute_plan"]  # the contenders use different compute plans
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in options.contenders}
    for round in range(options.rounds):
        for name in options.contenders:
            arguments = [*common, "--seed", str(round)]
            result = port(arguments) if name == "port" else recipe(name, [*arguments, *batches], whitening)
            runs[name].append(result)
            print(f"round {round + 1}/{options.rounds}, {name}:", result, flush=True)
            write(options.out, summary(runs, {"whitening_seconds": rounded(whitening), **described}))
    return 0


def summary(runs: dict[str, list[dict[str, Any]]], described: dict[str, Any]) -> dict[str, Any]:
    def medians(key: str) -> dict[str, float]:
        return {
            name: rounded(statistics.median(run[key] for run in results)) for name, results in runs.items() if results
        }

    seconds = medians("seconds")
    both = {"fast", "port"} <= seconds.keys()
    return {
        "seconds": seconds,
        "wall_seconds": medians("wall_seconds"),
        **({"fast_to_port": rounded(seconds["fast"] / seconds["port"])} if both else {}),
        "runs": runs,
        "environment": described,
    }


def recipe(name: str, arguments: list[str], whitening: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "onecycle", "train", "--recipe", name, "--no-report", *arguments, "--out", out]
        _, wall_seconds = timed(command)
        folder = RunFolder(next(Path(out).iterdir()))
        result, history = folder.read_result(), folder.read_history()
        plan = environment.recorded_plan(folder)
    training = sum(record.training_seconds or math.nan for record in history)
    return {
        "seed": result.seed,
        "accuracy": result.eval_accuracy,
        "tta_accuracy": result.tta_accuracy,
        "seconds": rounded(whitening + training + (result.tta_seconds or 0)),
        "wall_seconds": rounded(wall_seconds),
        "fingerprint": result.fingerprint,
        "notes": result.notes,
        "compute_plan": str(plan),
    }


def port(arguments: list[str]) -> dict[str, Any]:
    printed, wall_seconds = timed([sys.executable, str(Path(__file__).with_name("airbench_port.py")), *arguments])
    return {**json.loads(printed), "wall_seconds": rounded(wall_seconds)}


def timed(command: list[str]) -> tuple[str, float]:
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"time_to_accuracy: {' '.join(command)} failed")
    return done.stdout, time.perf_counter() - started


def whitening_seconds() -> float:
    """Seconds to normalize 5,000 images and compute the whitening layer from them, the median of three."""
    pixels = torch.randint(256, (5000, 32, 32, 3), dtype=torch.uint8)
    preprocessing, network = Preprocessing.of(pixels.numpy()), WhitenedConvNet()
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        network.whiten(preprocessing.normalize(pixels))
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    sys.exit(main())
