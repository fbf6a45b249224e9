"""Measure how training scales over processes, and predict how it scales over machines for several network speeds.

Steps of the specified network are measured at several batch sizes, by one, two and four processes with one thread and
one shard each. Every process has its own simulated host (`hosts.py`), whose network link has a limited rate. The
result is the time of the fastest step, because other load on the machine only adds time. The bytes that a process sends
are measured, too.

A model with six parameters is fitted to the steps of one process, and to the steps of two processes with the smallest
and the largest batch. The model is compared with all other measurements. It also predicts the speed of up to 64
machines like this one, from the steps of one process with all cores. The prediction is not measured, and it ignores the
latency of the network.

A second measurement runs without simulated hosts. One process with all cores takes turns with a group of processes
that have one core each.

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
from scaling_model import MACHINES, draw, fit, fit_alone, largest_error, placed, prediction
from studies import rounded, write

from onecycle.compute import hardware
from onecycle.compute.plan import ComputePlan
from onecycle.core.recipes import BASELINE
from onecycle.distributed import process_group
from onecycle.distributed.process_group import ProcessGroup
from onecycle.report.visualizations import save_png
from onecycle.run import environment
from onecycle.run.build import assemble
from onecycle.train.loop import make_train_step, training_steps
from onecycle.train.train_step import StepResult

WARM_STEPS = 2
PATIENCE = 590.0  # longest wait for a process that measures, in seconds
PORT = 29500


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 128, 256, 512], metavar="N")
    parser.add_argument(
        "--alone", type=int, nargs="+", default=[8, 16, 32], metavar="N", help="more batch sizes, for one process"
    )
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[2, 4], metavar="N", help="numbers of processes, besides one"
    )
    parser.add_argument(
        "--links", type=int, nargs="+", default=[100, 1000, 10_000], help="Mbit/s of the link of each host"
    )
    parser.add_argument("--steps", type=int, default=8, help="timed steps; the fastest counts")
    parser.add_argument("--rounds", type=int, default=15, help="turns of the second measurement")
    parser.add_argument(
        "--out", type=Path, default=Path("results/scaling.json"), help="the record; its plot is written beside it"
    )
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)  # used in child processes
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.data, options.batch_sizes, options.steps)))
        return 0
    if options.serve:
        serve(options.data, options.batch_sizes[0])
        return 0
    if len(options.processes) == 1 and len(set(options.batch_sizes)) < 3:
        parser.error("no measured step is left to test the model; give three --batch-sizes, or more --processes")
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
    fitted, unseen = ([point for point in points if point["fitted"] is is_fit] for is_fit in (True, False))
    model = fit(fitted, cores)
    for point in points:
        point["predicted"] = rounded(float(model.seconds(**placed(point))))
    a_step, an_image = fit_alone(of_all_cores)
    machine = replace(model, a_step=a_step, an_image=an_image, crowded=1, cores=MACHINES[-1])
    plan = ComputePlan.from_json(alone[0]["compute_plan"])
    record = {
        "points": [{name: value for name, value in point.items() if name != "compute_plan"} for point in points],
        "model": model.to_json(),
        "largest_error": {"fitted": largest_error(fitted), "unseen": largest_error(unseen)},
        "on_this_machine": turns,
        "prediction": prediction(machine, max(options.batch_sizes), options.links),
        "environment": environment.describe(hardware.detect(), plan),
    }
    write(options.out, record)
    save_png(draw(record), options.out.with_suffix(".png"))
    print(json.dumps({name: record[name] for name in ("model", "largest_error", "on_this_machine", "prediction")}))
    return 0


def take_turns(options: argparse.Namespace, cores: int) -> dict[str, Any]:
    """Images per second of one process with all cores, and of one process per core, at the largest batch size."""
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
    """Processes that compute steps together on request, and otherwise wait."""

    def __init__(self, options: argparse.Namespace, size: int, processes: int, threads: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self._processes = [
            subprocess.Popen(
                command(options, "--serve", [size]),
                env={**os.environ, **of_rank(rank, processes, "127.0.0.1", port, threads)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(processes)
        ]
        self._read()

    def take_turn(self) -> float:
        """Let the processes compute a step together. Returns the seconds that the step took."""
        self._write("step")
        return float(self._read())

    def end(self) -> None:
        self._write("end")
        for process in self._processes:
            process.communicate()

    def _write(self, request: str) -> None:
        to_main_process = self._processes[0].stdin
        assert to_main_process
        to_main_process.write(f"{request}\n")
        to_main_process.flush()

    def _read(self) -> str:
        from_main_process = self._processes[0].stdout
        assert from_main_process
        if not (answer := from_main_process.readline()):
            raise SystemExit("scaling: a process failed")
        return answer


def serve(data: str, batch_size: int) -> None:
    """Train two steps for each request to the main process: one to synchronize the processes, and one that is timed."""
    with process_group.init() as group:
        results, _ = training(data, batch_size, group)
        next(itertools.islice(results, WARM_STEPS - 1, None))
        answer: object = "ready"
        while True:
            if group.is_main_process:
                print(answer, flush=True)
            if group.broadcast_object(lambda: sys.stdin.readline().strip()) != "step":
                return
            next(results)
            started = time.perf_counter()
            next(results)
            answer = time.perf_counter() - started


def on_hosts(options: argparse.Namespace, processes: int, link: int | None, threads: int) -> list[dict[str, Any]]:
    """Measure training steps that `processes` processes compute together, each on its own simulated host."""
    sizes = [*options.batch_sizes, *(options.alone if processes == 1 else [])]
    with tempfile.TemporaryDirectory() as folder, hosts(processes, Path(folder), megabits_per_second=link) as built:
        started = [
            host.start(
                *command(options, "--measure", sizes),
                environment=of_rank(rank, processes, built[0].address, PORT, threads),
            )
            for rank, host in enumerate(built)
        ]
        for each in started:
            if each.end(PATIENCE):
                raise SystemExit(f"scaling: a process failed:\n{each.output}")
        measured = json.loads(started[0].output.splitlines()[-1])
    points = [
        {"processes": processes, "megabits_per_second": link, "threads": threads, **of_size} for of_size in measured
    ]
    for point in points:
        print({name: value for name, value in point.items() if name != "compute_plan"}, flush=True)
    return points


def command(options: argparse.Namespace, action: str, batch_sizes: Sequence[int]) -> list[str]:
    """The command line of a child process. `action` is --measure or --serve."""
    sizes = map(str, batch_sizes)
    return [
        *(sys.executable, __file__, action, "--data", options.data),
        *("--steps", str(options.steps), "--batch-sizes", *sizes),
    ]


def of_rank(rank: int, size: int, address: str, port: int, threads: int) -> dict[str, str]:
    """The environment variables of process `rank`: those that torchrun would set, and the number of threads."""
    ranks = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": address, "MASTER_PORT": port}
    variables = {**ranks, "OMP_NUM_THREADS": threads}
    return {name: str(value) for name, value in variables.items()}


def measure(data: str, batch_sizes: Sequence[int], steps: int) -> list[dict[str, Any]]:
    """Train `steps` steps with each batch size. Record the seconds of the fastest step, and the data sent per step."""
    measured = []
    with process_group.init() as group:
        for size in batch_sizes:
            results, plan = training(data, size, group)
            next(itertools.islice(results, WARM_STEPS - 1, None))
            seconds, sent = [], bytes_sent()
            for _ in range(steps):
                started = time.perf_counter()
                next(results)
                seconds.append(time.perf_counter() - started)
            measured.append(
                {
                    "batch_size": size,
                    "seconds": rounded(min(seconds)),
                    "images_per_second": rounded(size / min(seconds)),
                    "mib_sent": rounded((bytes_sent() - sent) / steps / 2**20),
                    "compute_plan": plan.to_json(),
                }
            )
    return measured


def training(data: str, batch_size: int, group: ProcessGroup) -> tuple[Iterator[tuple[int, StepResult]], ComputePlan]:
    """An endless iterator of training steps with one shard per process, and the compute plan of the steps."""
    experiment = assemble(replace(BASELINE, data=data, batch_size=batch_size, shards=group.size), group=group)
    plan = experiment.plan
    steps = training_steps(
        plan.prepare(experiment.model),
        experiment.optimizer,
        itertools.chain.from_iterable(map(experiment.train.epoch, itertools.count())),
        lambda step: 1e-3,
        plan=plan,
        train_step=make_train_step(experiment.train, plan),
        group=group,
    )
    return steps, plan


def bytes_sent() -> int:
    """The bytes that this host has sent through its link; 0 without a link."""
    lines = Path("/proc/self/net/dev").read_text().splitlines()
    counts = dict(line.split(":") for line in lines if ":" in line)
    return int(values.split()[8]) if (values := counts.get(INTERFACE.rjust(6))) else 0


def is_fitted(point: dict[str, Any], options: argparse.Namespace) -> bool:
    """Whether the model of the step time is fitted to `point`. Other points test the model."""
    at_an_end = point["batch_size"] in (min(options.batch_sizes), max(options.batch_sizes))
    return point["processes"] == 1 or (point["processes"] == min(options.processes) and at_an_end)


if __name__ == "__main__":
    sys.exit(main())
