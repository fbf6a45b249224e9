"""Measure each 3×3 convolution of the custom ResNet against the limits of the CPU, and draw a roofline plot.

For each layer and pass (output, input gradient, weight gradient), the script measures the rate of PyTorch's convolution
(oneDNN) and of the Winograd kernels, both channels-last: on float32 maps and, where the CPU has instructions for
bfloat16, on bfloat16 maps, too. A rate counts the operations of a direct convolution. Winograd's algorithm needs
fewer, so it may exceed the peak. The peak is the rate of a large float32 matrix product. The memory bandwidth is that
of a large copy. Measurements alternate, and the median counts.

--cpu limits PyTorch and the kernels to older instructions, as in step_time.py.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cpu_classes
import torch
from studies import rounded, write

from onecycle.compute import hardware
from onecycle.compute.kernels import native, winograd
from onecycle.compute.plan import ComputePlan
from onecycle.run import environment

LAYERS = [(64, 128, 32), (128, 128, 16), (128, 256, 16), (256, 512, 8), (512, 512, 4)]  # inputs, outputs, map size
PASSES = ("output", "input gradient", "weight gradient")
COLORS = {
    "oneDNN": "tab:orange",
    "Winograd": "tab:blue",
    "oneDNN, bfloat16": "tab:red",
    "Winograd, bfloat16": "tab:cyan",
}  # of the libraries
ROUNDS = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", default=cpu_classes.AVX2, choices=cpu_classes.ENVIRONMENT, metavar="CLASS")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--out", type=Path, default=Path("results/roofline.json"), help="the plot is put beside it")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.batch_size, bfloat16=cpu_classes.detect(options.cpu).fast_bfloat16)))
        return 0
    command = [sys.executable, __file__, "--child", "--batch-size", str(options.batch_size), "--cpu", options.cpu]
    limits = {**os.environ, **cpu_classes.ENVIRONMENT[options.cpu]}
    done = subprocess.run(command, env=limits, stdout=subprocess.PIPE, text=True, check=True)
    plan = ComputePlan(channels_last=True, threads=hardware.usable_cores())
    described = environment.describe(hardware.detect(), plan)
    record = {"cpu": options.cpu, **json.loads(done.stdout.splitlines()[-1]), "environment": described}
    write(options.out, record)
    draw(record, options.out.with_suffix(".png"))
    return 0


def measure(batch_size: int, *, bfloat16: bool) -> dict[str, Any]:
    """Rates in GFLOP/s of each layer and pass by each library, and the limits of the CPU."""
    ComputePlan(threads=hardware.usable_cores()).apply()
    assert native.compiled() is not None, "the kernels need a C compiler"
    side = 3000
    left, right = torch.randn(side, side), torch.randn(side, side)
    source, target = torch.randn(2**26), torch.empty(2**26)
    peak = 2e-9 * side**3 / median_seconds({"": lambda: left @ right})[""]
    bandwidth = 2e-9 * source.nbytes / median_seconds({"": lambda: target.copy_(source)})[""]
    points = []
    for inputs, outputs, size in LAYERS:
        images, weight, gradient = (
            torch.randn(shape).contiguous(memory_format=torch.channels_last)
            for shape in (
                (batch_size, inputs, size, size),
                (outputs, inputs, 3, 3),
                (batch_size, outputs, size, size),
            )
        )
        gflop = 2e-9 * 9 * inputs * outputs * size**2 * batch_size
        megabytes = (images.nbytes + weight.nbytes + gradient.nbytes) / 1e6
        works_by_pass = passes(images, weight, gradient)
        if bfloat16:
            for name, works in passes(images.bfloat16(), weight.bfloat16(), gradient.bfloat16()).items():
                works_by_pass[name] |= {f"{library}, bfloat16": work for library, work in works.items()}
        for name, works in works_by_pass.items():
            rates = {library: rounded(gflop / seconds) for library, seconds in median_seconds(works).items()}
            layer = f"{inputs}→{outputs} on {size}×{size}"
            intensity = rounded(1000 * gflop / megabytes)
            points.append({"layer": layer, "pass": name, "flop_per_byte": intensity, "gflop_per_second": rates})
    return {
        "peak_gflop_per_second": rounded(peak),
        "gigabytes_per_second": rounded(bandwidth),
        "batch_size": batch_size,
        "points": points,
    }


def passes(
    images: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor
) -> dict[str, dict[str, Callable[[], object]]]:
    """For each pass of a layer, a function that computes it for each library."""

    def backward(*wanted: bool) -> object:
        fixed = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)  # stride, padding, dilation, transposed, …, groups
        return torch.ops.aten.convolution_backward(gradient, images, weight, None, *fixed, list(wanted))

    def input_gradient() -> object:
        return winograd.convolve(gradient, weight.flip(2, 3).transpose(0, 1))

    return {
        "output": {
            "oneDNN": lambda: torch.conv2d(images, weight, padding=1),
            "Winograd": lambda: winograd.convolve(images, weight),
        },
        "input gradient": {"oneDNN": lambda: backward(True, False, False), "Winograd": input_gradient},
        "weight gradient": {
            "oneDNN": lambda: backward(False, True, False),
            "Winograd": lambda: winograd.weight_gradient(images, gradient),
        },
    }


def median_seconds(works: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The median seconds of each of `works`. They take turns, so that other load slows all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for round in range(1 + ROUNDS):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if round > 0:  # the first round allocates memory
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw the rates over the operations for each byte of memory, with the limits of the CPU."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    peak, bandwidth = record["peak_gflop_per_second"], record["gigabytes_per_second"]
    lowest, highest = 2.0, 1500.0
    axes.plot([lowest, peak / bandwidth, highest], [bandwidth * lowest, peak, peak], color="0.4")
    axes.text(lowest * 1.1, peak + 5, f"matrix product: {peak:.0f} GFLOP/s", va="bottom", color="0.3", fontsize=8)
    axes.text(lowest * 1.1, 8, f"copy: {bandwidth:.0f} GB/s", color="0.3", fontsize=8)
    for name, marker in zip(PASSES, "osD", strict=True):
        points = [point for point in record["points"] if point["pass"] == name]
        x = [point["flop_per_byte"] for point in points]
        for library in points[0]["gflop_per_second"]:
            y, color = [point["gflop_per_second"][library] for point in points], COLORS[library]
            axes.scatter(x, y, marker=marker, color=color, label=f"{library}, {name}", s=40)
    by_layer = {point["layer"]: point["flop_per_byte"] for point in record["points"]}
    top = max(max(point["gflop_per_second"].values()) for point in record["points"])
    for layer, x in by_layer.items():
        axes.text(x, top * 1.06, layer, ha="left", va="bottom", rotation=45, fontsize=8)
    axes.set(
        xscale="log",
        xlim=(lowest, highest),
        ylim=(0, top * 1.5),
        xlabel="operations of a direct convolution for each byte of maps and filters",
        ylabel="GFLOP/s, operations of a direct convolution",
        title=f"Convolutions of the custom ResNet, {record['cpu']}, batch size {record['batch_size']}",
    )
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(fontsize=8, loc="upper left")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
