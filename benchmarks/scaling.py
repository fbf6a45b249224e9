"""How far does one training scale over machines, by the network between them?

Measured is a step of the specified network at several batch sizes, by one, two and four processes of one thread, with a
shard each, on hosts of their own (`hosts.py`) whose cables carry what is said and no more; and what each sends. The
quickest of some steps counts, since whatever else a machine does only adds. A model of six numbers is fitted to one
process, and to the smallest and the largest batch of two, and compared with all that it has not seen. From it and from
the steps of one process with all cores follows the prediction for up to 64 machines like this one, which nobody has
measured; it leaves out how long a message is on its way, however short it is.

And in turns with each other, without hosts: one process with all cores, and as many processes as there are cores.

Needs Linux and root.
"""

import argparse
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hosts import INTERFACE, NotStarted, hosts
from scaling_model import MACHINES, drawn, fit, fit_alone, largest_error, placed, prediction
from studies import rounded, write

from onecycle.compute import hardware
from onecycle.compute.plan import Acceleration
from onecycle.core.config import BASELINE
from onecycle.distributed import ranks
from onecycle.report.visualizations import save_png
from onecycle.run import environment
from onecycle.run.build import assemble
from onecycle.train.loop import StepOutcome, training_steps
from onecycle.train.sharded_step import learning

WARM_STEPS = 2
PATIENCE = 590.0  # seconds for the steps of one set-up
PORT = 29500


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 128, 256, 512], metavar="N")
    parser.add_argument("--alone", type=int, nargs="+", default=[8, 16, 32], metavar="N", help="more, of one process")
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4], metavar="N", help="beside one")
    parser.add_argument("--links", type=int, nargs="+", default=[100, 1000, 10_000], help="Mbit/s of a host's cable")
    parser.add_argument("--steps", type=int, default=8, help="that are timed; the quickest counts")
    parser.add_argument("--rounds", type=int, default=15, help="of turns of one process and several")
    parser.add_argument("--out", type=Path, default=Path("results/scaling.json"), help="a picture goes beside it")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)  # what the processes run
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.data, options.batch_sizes, options.steps)))
        return 0
    if options.serve:
        serve(options.data, options.batch_sizes[0])
        return 0
    if len(options.processes) == 1 and len(set(options.batch_sizes)) < 3:
        parser.error("the fit sees all of these steps; give a third of --batch-sizes, or more --processes")
    try:
        return compare(options, hardware.usable_cores())
    except NotStarted as reason:
        print(f"scaling: {reason}", file=sys.stderr)
        return 2


def compare(options: argparse.Namespace, cores: int) -> int:
    alone, of_all_cores = (on_hosts(options, 1, None, threads) for threads in (1, cores))
    turns = take_turns(options, cores)
    points = [*alone]
    for processes, link in itertools.product(options.processes, options.links):
        points += on_hosts(options, processes, link, 1)
    for point in points:
        point["fitted"] = is_fitted(point, options)
    fitted, unseen = ([point for point in points if point["fitted"] is seen] for seen in (True, False))
    model = fit(fitted, cores)
    for point in points:
        point["predicted"] = rounded(float(model.seconds(**placed(point))))
    a_step, an_image = fit_alone(of_all_cores)
    machine = replace(model, a_step=a_step, an_image=an_image, crowded=1, cores=MACHINES[-1])
    how = Acceleration.from_json(alone[0]["acceleration"])
    record = {
        "points": [{name: value for name, value in point.items() if name != "acceleration"} for point in points],
        "model": model.to_json(),
        "largest_error": {"fitted": largest_error(fitted), "unseen": largest_error(unseen)},
        "on_this_machine": turns,
        "prediction": prediction(machine, max(options.batch_sizes), options.links),
        "environment": environment.describe(hardware.detect(), how),
    }
    write(options.out, record)
    save_png(drawn(record), options.out.with_suffix(".png"))
    print(json.dumps({name: record[name] for name in ("model", "largest_error", "on_this_machine", "prediction")}))
    return 0


def take_turns(options: argparse.Namespace, cores: int) -> dict[str, Any]:
    """Images a second of one process with all cores, and of a process a core, at the largest batch."""
    size = max(options.batch_sizes)
    teams = {
        "one process": Team(options, size, 1, cores),
        "a process a core": Team(options, size, cores, 1),
    }
    rates: dict[str, list[float]] = {name: [] for name in teams}
    for _ in range(options.rounds):
        for name, team in teams.items():
            rates[name].append(size / team.take_turn())
        print({name: rounded(values[-1]) for name, values in rates.items()}, flush=True)
    for team in teams.values():
        team.end()
    ratios = [several / one for one, several in zip(*rates.values(), strict=True)]
    return {
        "batch_size": size,
        "processes": cores,
        "images_per_second": {name: rounded(statistics.median(values)) for name, values in rates.items()},
        "ratio": rounded(statistics.median(ratios)),
        "ratios": [rounded(ratio) for ratio in ratios],
    }


class Team:
    """Processes that do steps together when they are asked to, and wait otherwise."""

    def __init__(self, options: argparse.Namespace, size: int, processes: int, threads: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self._processes = [
            subprocess.Popen(
                words(options, "--serve", [size]),
                env={**os.environ, **of_rank(rank, processes, "127.0.0.1", port, threads)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(processes)
        ]
        self._read()

    def take_turn(self) -> float:
        """The seconds of a step."""
        self._say("step")
        return float(self._read())

    def end(self) -> None:
        self._say("end")
        for process in self._processes:
            process.communicate()

    def _say(self, word: str) -> None:
        leader = self._processes[0].stdin
        assert leader
        leader.write(f"{word}\n")
        leader.flush()

    def _read(self) -> str:
        leader = self._processes[0].stdout
        assert leader
        if not (answer := leader.readline()):
            raise SystemExit("scaling: a process failed")
        return answer


def serve(data: str, batch_size: int) -> None:
    """Train a step when the process that leads reads that it should, after one in which all have found together."""
    with ranks.joined() as ours:
        done, _ = training(data, batch_size)
        next(itertools.islice(done, WARM_STEPS - 1, None))
        answer: object = "ready"
        while True:
            if ours.leads:
                print(answer, flush=True)
            if ours.from_leader(lambda: sys.stdin.readline().strip()) != "step":
                return
            next(done)
            began = time.perf_counter()
            next(done)
            answer = time.perf_counter() - began


def on_hosts(options: argparse.Namespace, processes: int, link: int | None, threads: int) -> list[dict[str, Any]]:
    """The steps of so many processes, each on a host of its own."""
    sizes = [*options.batch_sizes, *(options.alone if processes == 1 else [])]
    with tempfile.TemporaryDirectory() as folder, hosts(processes, Path(folder), megabits_per_second=link) as built:
        running = [
            host.start(
                *words(options, "--measure", sizes),
                environment=of_rank(rank, processes, built[0].address, PORT, threads),
            )
            for rank, host in enumerate(built)
        ]
        for each in running:
            if each.end(PATIENCE):
                raise SystemExit(f"scaling: a process failed:\n{each.said}")
        told = json.loads(running[0].said.splitlines()[-1])
    points = [{"processes": processes, "megabits_per_second": link, "threads": threads, **of_size} for of_size in told]
    for point in points:
        print({name: value for name, value in point.items() if name != "acceleration"}, flush=True)
    return points


def words(options: argparse.Namespace, what: str, batch_sizes: Sequence[int]) -> list[str]:
    """The command of a process that computes."""
    sizes = map(str, batch_sizes)
    return [
        *(sys.executable, __file__, what, "--data", options.data),
        *("--steps", str(options.steps), "--batch-sizes", *sizes),
    ]


def of_rank(rank: int, size: int, address: str, port: int, threads: int) -> dict[str, str]:
    """The variables that torchrun would set, and the number of threads."""
    told = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": address, "MASTER_PORT": port, "OMP_NUM_THREADS": threads}
    return {name: str(value) for name, value in told.items()}


def measure(data: str, batch_sizes: Sequence[int], steps: int) -> list[dict[str, Any]]:
    """Train some steps with each batch size: seconds of the quickest, and what this process sends in one."""
    told = []
    with ranks.joined():
        for size in batch_sizes:
            done, how = training(data, size)
            next(itertools.islice(done, WARM_STEPS - 1, None))
            seconds, sent = [], bytes_sent()
            for _ in range(steps):
                began = time.perf_counter()
                next(done)
                seconds.append(time.perf_counter() - began)
            told.append(
                {
                    "batch_size": size,
                    "seconds": rounded(min(seconds)),
                    "images_per_second": rounded(size / min(seconds)),
                    "mib_sent": rounded((bytes_sent() - sent) / steps / 2**20),
                    "acceleration": how.to_json(),
                }
            )
    return told


def training(data: str, batch_size: int) -> tuple[Iterator[StepOutcome], Acceleration]:
    """The steps of a training with a shard a process, which go on for good, and how they are computed."""
    parts = assemble(replace(BASELINE, data=data, batch_size=batch_size, shards=ranks.current().size))
    how = parts.acceleration
    steps = training_steps(
        how.prepare(parts.model),
        parts.optimizer,
        itertools.chain.from_iterable(map(parts.train.epoch, itertools.count())),
        lambda step: 1e-3,
        acceleration=how,
        learn=learning(parts.train, how),
    )
    return steps, how


def bytes_sent() -> int:
    """By this host through its cable; 0 where there is none."""
    lines = Path("/proc/self/net/dev").read_text().splitlines()
    counts = dict(line.split(":") for line in lines if ":" in line)
    return int(values.split()[8]) if (values := counts.get(INTERFACE.rjust(6))) else 0


def is_fitted(point: dict[str, Any], options: argparse.Namespace) -> bool:
    at_an_end = point["batch_size"] in (min(options.batch_sizes), max(options.batch_sizes))
    return point["processes"] == 1 or (point["processes"] == min(options.processes) and at_an_end)


if __name__ == "__main__":
    sys.exit(main())
