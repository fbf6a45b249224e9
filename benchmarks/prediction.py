"""Measure the speed of `onecycle predict`, the share of its time that decoding takes, and the speed of ONNX Runtime.

In every round, the whole command runs on a folder of JPEGs, and then each part of its work runs alone. After that,
networks in PyTorch take turns with the same networks in ONNX Runtime, for several batch sizes.
"""

import argparse
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
from studies import rounded, write

from onecycle.compute import hardware
from onecycle.compute.plan import EAGER
from onecycle.models import Architecture
from onecycle.predict.onnx import write_onnx
from onecycle.predict.predictor import Predictor, load, read_image
from onecycle.predict.stream import files_of, predict_files
from onecycle.run import environment

BATCHES = (1, 16, 250)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="a .tar.gz of JPEGs")
    parser.add_argument("--inside", default="test/", help="use the files whose names contain this")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds of each measurement of a network")
    parser.add_argument("--out", type=Path, default=Path("results/prediction.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(options.archive) as archive:
            members = [member for member in archive if member.isfile() and options.inside in member.name]
            archive.extractall(folder, members, filter="data")
        files = commands(Path(folder), options.rounds)
        runtimes = {
            name: compared(predictor, Path(folder), options.rounds, options.seconds)
            for name, predictor in networks().items()
        }
    record = {
        "files": len(members),
        **files,
        "images_a_second": runtimes,
        "environment": environment.describe(hardware.detect(), load().plan),
    }
    write(options.out, record)
    return 0


def commands(folder: Path, rounds: int) -> dict[str, object]:
    """Time `onecycle predict` on all files in `folder` and on a single file, and each part of its work."""
    predictor = load()
    paths = [file.path for file in files_of([str(folder)])]
    images = np.stack([predictor.to_input(read_image(path)) for path in paths])

    def command(target: Path) -> None:
        line = [sys.executable, "-m", "onecycle", "predict", str(target)]
        subprocess.run(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)

    def decode() -> None:
        for path in paths:
            predictor.to_input(read_image(path))

    seconds = in_turns(
        {
            "whole command": lambda: command(folder),
            "command on one file": lambda: command(paths[0]),
            "files to predictions": lambda: print(sum(1 for _ in predict_files(predictor, [str(folder)])), "files"),
            "reading and decoding": decode,
            "network": lambda: print(len(predictor.predict_images(images)), "images"),
        },
        rounds,
    )
    return {
        "seconds": seconds,
        "files_a_second_whole_command": rounded(len(paths) / seconds["whole command"]),
        "files_a_second_within": rounded(len(paths) / seconds["files to predictions"]),
        "share_of_decoding": rounded(seconds["reading and decoding"] / seconds["files to predictions"]),
    }


def in_turns(measured: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median seconds of each action. In every round, all actions run one after another."""
    seconds: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(rounds):
        for name, action in measured.items():
            started = time.perf_counter()
            action()
            seconds[name].append(time.perf_counter() - started)
    return {name: rounded(statistics.median(values)) for name, values in seconds.items()}


def networks() -> dict[str, Predictor]:
    """The included network, and the custom ResNet with random weights: the weights do not change the speed."""
    shipped, specified = load(), Architecture()
    classes, size = shipped.classes, shipped.preprocessing.input_size
    model = specified.build(len(classes), size).eval()
    return {
        "the network that comes with the package": shipped,
        "the custom ResNet": replace(shipped, model=model, architecture=specified),
    }


def compared(predictor: Predictor, folder: Path, rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Images per second of PyTorch in float32, of PyTorch with the predictor's plan, and of ONNX Runtime in float32."""
    eager = replace(predictor, plan=EAGER)
    write_onnx(eager, folder / "model.onnx", "benchmark")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    size = predictor.preprocessing.input_size
    found: dict[str, dict[str, float]] = {}
    for batch in BATCHES:
        images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
        runtimes = {
            "torch, float32": lambda images=images: eager.predict_images(images),
            f"torch, {predictor.plan.precision}": lambda images=images: predictor.predict_images(images),
            "onnxruntime, float32": lambda images=images: session.run(None, {"images": images}),
        }
        speeds: dict[str, list[float]] = {name: [] for name in runtimes}
        for _ in range(rounds):
            for name, predict in runtimes.items():
                predict()
                started, passes = time.perf_counter(), 0
                while (passed := time.perf_counter() - started) < seconds:
                    predict()
                    passes += 1
                speeds[name].append(passes * batch / passed)
        found[f"batches of {batch}"] = {name: rounded(statistics.median(values)) for name, values in speeds.items()}
        print(found)
    return found


if __name__ == "__main__":
    sys.exit(main())
