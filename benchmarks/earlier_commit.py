"""Is training in one process as quick as it was at an earlier commit?

Both train the specified network on real batches, augmented by a worker, the way that is fastest on this machine. They
take turns, each first in every other round, and the ratio of their seconds in each round is what is compared: how many
times as long a step takes now. Needs git, and a checkout.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from contenders import Contender, Turns
from studies import rounded, write

from onecycle.compute import hardware
from onecycle.compute.plan import Acceleration
from onecycle.core.config import BASELINE
from onecycle.core.statistics import estimate
from onecycle.run import environment
from onecycle.run.build import assemble
from onecycle.train.loop import training_steps

STEPS = 2  # in a turn
WARM_UP = 3  # steps before the first turn
LR = 1e-4
HERE = Path(__file__).resolve().parents[1]
BEFORE_SHARDS = "d37f297"  # the last commit at which a batch was always learned from whole, by one process


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default=BEFORE_SHARDS, help="the earlier one")
    parser.add_argument("--data", default="cifar10", help="as in `onecycle train`")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("results/earlier_commit.json"))
    parser.add_argument("--serve", metavar="ACCELERATION", help=argparse.SUPPRESS)  # what the processes run
    options = parser.parse_args()
    if options.serve:
        serve(Acceleration.from_json(json.loads(options.serve)), options)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", options.commit, "src"], cwd=HERE, capture_output=True)
        if archive.returncode:
            print(f"earlier_commit: {archive.stderr.decode().strip()}", file=sys.stderr)
            return 2
        subprocess.run(["tar", "--extract"], cwd=folder, input=archive.stdout, check=True)
        how = assemble(replace(BASELINE, data=options.data, batch_size=options.batch_size)).acceleration
        seconds = take_turns({"earlier": Path(folder), "now": HERE}, how, options)
    ratios = [now / earlier for earlier, now in zip(seconds["earlier"], seconds["now"], strict=True)]
    interval = estimate(ratios).interval_95
    record = {
        "earlier": options.commit,
        "ratio": rounded(statistics.median(ratios)),
        "mean_ratio": rounded(statistics.fmean(ratios)),
        "interval_95": interval and [rounded(end) for end in interval],  # of the mean
        "seconds": {name: rounded(statistics.median(values)) for name, values in seconds.items()},
        "ratios": [rounded(ratio) for ratio in ratios],
        "batch_size": options.batch_size,
        "environment": environment.describe(hardware.detect(), how),
    }
    write(options.out, record)
    print({name: record[name] for name in ("ratio", "mean_ratio", "interval_95", "seconds")})
    return 0


def take_turns(trees: dict[str, Path], how: Acceleration, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of a step, by the names of the trees, in each round."""
    contenders = {}
    for name, tree in trees.items():
        words = [__file__, "--serve", json.dumps(how.to_json()), "--data", options.data]
        contenders[name] = Contender(
            [*words, "--batch-size", str(options.batch_size)], {**os.environ, "PYTHONPATH": str(tree / "src")}
        )
        contenders[name].take_turn(WARM_UP)
    seconds: dict[str, list[float]] = {name: [] for name in trees}
    for round in range(options.rounds):
        for name in [*trees][:: 1 if round % 2 else -1]:
            seconds[name].append(statistics.fmean(contenders[name].take_turn(STEPS)))
        print({name: rounded(values[-1]) for name, values in seconds.items()}, flush=True)
    for contender in contenders.values():
        contender.end()
    return seconds


def serve(how: Acceleration, options: argparse.Namespace) -> None:
    """Train as the package of the tree that this process imports does, until told to end."""
    turns = Turns(sys.stdout)
    parts = assemble(replace(BASELINE, data=options.data, batch_size=options.batch_size), how)
    batches = itertools.chain.from_iterable(map(parts.train.epoch, itertools.count()))
    running = how.prepare(parts.model)
    for _ in training_steps(running, parts.optimizer, batches, lambda step: LR, acceleration=how):
        turns.step_done()


if __name__ == "__main__":
    sys.exit(main())
