"""Measure the duration and the memory of `onecycle report` on a complete run that has no interpretation yet.

The command does the work that a run does at its end. In addition, it starts Python and reads the data.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from studies import rounded, write

from onecycle.compute import hardware
from onecycle.run import environment
from onecycle.storage.run_folder import RunFolder

MEASURED = """
import resource, sys
from onecycle.cli import main
code = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a complete run with its weights")
    parser.add_argument("--data", help="the data set, if it has moved")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("results/report_time.json"))
    options = parser.parse_args()
    result = RunFolder.open(options.run).read_result()
    data = ["--data", options.data] if options.data else []
    seconds, memory, size = [], [], 0
    for round in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            copy = RunFolder(Path(folder) / "run")
            shutil.copytree(options.run, copy.path)
            for path in (copy.interpretation, copy.report):
                path.unlink(missing_ok=True)
            command = [sys.executable, "-c", MEASURED, "report", "--run", str(copy.path)]
            started = time.perf_counter()
            done = subprocess.run([*command, *data], stdout=subprocess.PIPE, text=True, check=True)
            seconds.append(time.perf_counter() - started)
            memory.append(int(done.stdout.split()[-1]) / 2**20)
            size = copy.report.stat().st_size
        print(f"round {round + 1}/{options.rounds}: {seconds[-1]:.1f} s, {memory[-1]:.2f} GiB")
    record = {
        "seconds": rounded(statistics.median(seconds)),
        "rounds": [rounded(value) for value in seconds],
        "peak_memory_gib": rounded(max(memory)),
        "report_megabytes": rounded(size / 1e6),
        "recipe": result.recipe,
        "eval_images": result.eval_images,
        "train_images": result.train_images,
        "fingerprint": result.fingerprint,
        "environment": environment.describe(hardware.detect(), environment.recorded_plan(RunFolder(options.run))),
    }
    write(options.out, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
