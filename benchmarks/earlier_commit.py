"""Compare the duration of a training step of the current code with its duration at an earlier commit.

The current code and the earlier commit each run in one process. Both train the custom ResNet on real batches, which a
worker augments, with the compute plan that is fastest on this machine, without kernels that the earlier commit does not
have. In every round, each takes one turn. Which goes first alternates from round to round. A ratio is the duration of a
step now divided by its duration at the earlier commit, in the same round. The script needs git and a checkout of the
repository. Each commit runs its own version of this script, so the earlier commit must have the script.
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
from typing import Any

from contenders import Contender, Turns
from studies import rounded, write

from onecycle.compute import hardware
from onecycle.compute.plan import ComputePlan
from onecycle.core.recipes import BASELINE
from onecycle.core.statistics import estimate
from onecycle.run import environment
from onecycle.run.build import assemble
from onecycle.train.loop import training_steps

STEPS = 2  # steps in a turn
WARM_UP = 3  # steps before the first turn
LR = 1e-4
HERE = Path(__file__).resolve().parents[1]
SCRIPT = Path("benchmarks/earlier_commit.py")
OLDER_FIELDS = {"im2col_gemm": "small_map_products", "amx": "matrix_unit"}  # names up to commit 91a7a1f
PLANS = ("compute/plan.py", "acceleration.py")  # the module of the compute plan, now and up to commit 85575b8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", required=True, help="the earlier commit")
    parser.add_argument("--data", default="cifar10", help="as in `onecycle train`")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("results/earlier_commit.json"))
    parser.add_argument("--serve", metavar="PLAN", help=argparse.SUPPRESS)  # used in child processes
    options = parser.parse_args()
    if options.serve:
        serve(ComputePlan.from_json(json.loads(options.serve)), options)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", options.commit, "src", "benchmarks"], cwd=HERE, capture_output=True)
        if archive.returncode:
            print(f"earlier_commit: {archive.stderr.decode().strip()}", file=sys.stderr)
            return 2
        subprocess.run(["tar", "--extract"], cwd=folder, input=archive.stdout, check=True)
        if not (Path(folder) / SCRIPT).exists():
            print(f"earlier_commit: {options.commit} has no {SCRIPT}; give a later --commit", file=sys.stderr)
            return 2
        plan = assemble(replace(BASELINE, data=options.data, batch_size=options.batch_size)).plan
        if "winograd:" not in code_of_plan(Path(folder)):
            plan = replace(plan, winograd=())
        seconds = take_turns({"earlier": Path(folder), "now": HERE}, plan, options)
    ratios = [now / earlier for earlier, now in zip(seconds["earlier"], seconds["now"], strict=True)]
    interval = estimate(ratios).interval_95
    record = {
        "earlier": subprocess.run(
            ["git", "rev-parse", options.commit], cwd=HERE, capture_output=True, text=True, check=True
        ).stdout.strip(),
        "ratio": rounded(statistics.median(ratios)),
        "mean_ratio": rounded(statistics.fmean(ratios)),
        "interval_95": interval and [rounded(end) for end in interval],  # confidence interval of the mean ratio
        "seconds": {name: rounded(statistics.median(values)) for name, values in seconds.items()},
        "ratios": [rounded(ratio) for ratio in ratios],
        "batch_size": options.batch_size,
        "environment": environment.describe(hardware.detect(), plan),
    }
    write(options.out, record)
    print({name: record[name] for name in ("ratio", "mean_ratio", "interval_95", "seconds")})
    return 0


def take_turns(trees: dict[str, Path], plan: ComputePlan, options: argparse.Namespace) -> dict[str, list[float]]:
    """Let the code in `trees` take turns. Returns, for each name in `trees`, the seconds per step in each round."""
    contenders = {}
    for name, tree in trees.items():
        script = [str(tree / SCRIPT), "--serve", json.dumps(plan_for(tree, plan))]
        contenders[name] = Contender(
            [*script, "--commit", options.commit, "--data", options.data, "--batch-size", str(options.batch_size)],
            {**os.environ, "PYTHONPATH": str(tree / "src")},
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


def plan_for(tree: Path, plan: ComputePlan) -> dict[str, Any]:
    """`plan` as JSON, with the field names of the package in `tree`."""
    older = {} if "class ComputePlan" in code_of_plan(tree) else OLDER_FIELDS
    return {older.get(name, name): value for name, value in plan.to_json().items()}  # without `winograd` if it is empty


def code_of_plan(tree: Path) -> str:
    """The source code of the compute plan in `tree`."""
    paths = (tree / "src" / "onecycle" / name for name in PLANS)
    return next(path for path in paths if path.exists()).read_text()


def serve(plan: ComputePlan, options: argparse.Namespace) -> None:
    """Train with the code beside this script. The parent process requests each turn, and finally the end."""
    turns = Turns(sys.stdout)
    experiment = assemble(replace(BASELINE, data=options.data, batch_size=options.batch_size), plan)
    batches = itertools.chain.from_iterable(map(experiment.train.epoch, itertools.count()))
    prepared = plan.prepare(experiment.model)
    for _ in training_steps(prepared, experiment.optimizer, batches, lambda step: LR, plan=plan):
        turns.step_done()


if __name__ == "__main__":
    sys.exit(main())
