"""Fit a model of the duration of a training step, predict with it, and plot both.

The duration depends on the number of processes, the batch size and the network link.
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares
from studies import rounded

from onecycle.report.visualizations.style import GREY, INK, PALETTE, SMALL, styled

MACHINES = (1, 2, 4, 8, 16, 32, 64)
PAYS = 1.1  # doubling the machines pays if the images per second rise at least by this factor


@dataclass(frozen=True, kw_only=True)
class Model:
    """Predicts the seconds of a step from the number of processes, the batch size and the speed of the link."""

    a_step: float  # seconds: constant work of every process in a step
    an_image: float  # seconds per image, for a process that is alone on the machine
    crowded: float  # an image takes this many times as long when the processes occupy all cores
    together: float  # seconds: constant work of every process to sum gradients; a single process has none
    slack: float  # sending takes this many times as long as the speed of the link implies
    hidden: float  # fraction of the computing time of the images that overlaps with sending
    gradient: float  # bytes of all gradients
    cores: int  # shared by all processes

    def seconds(
        self, *, processes: ArrayLike, batch_size: ArrayLike, bytes_per_second: ArrayLike
    ) -> NDArray[np.float64]:
        processes, batch_size, bytes_per_second = map(np.asarray, (processes, batch_size, bytes_per_second))
        several = processes > 1
        shared = np.maximum(1, processes / self.cores)
        crowded = np.where(several & (processes >= self.cores), self.crowded, 1)
        images = shared * crowded * self.an_image * batch_size / processes
        sent = 2 * self.gradient * (processes - 1) / processes  # as in a reduce-scatter and an all-gather
        waiting = np.maximum(0, self.slack * sent / bytes_per_second - self.hidden * images)
        seconds: NDArray[np.float64] = shared * (self.a_step + several * self.together) + images + waiting
        return seconds

    def to_json(self) -> dict[str, float]:
        return {name: rounded(value) for name, value in vars(self).items()}


# Each fitted parameter with its lower bound, initial value and upper bound.
START = {
    "a_step": (0, 0.05, np.inf),
    "an_image": (1e-6, 0.005, np.inf),
    "crowded": (1, 1.1, 2),
    "together": (0, 0.05, np.inf),
    "slack": (1, 1.2, np.inf),
    "hidden": (0, 0.4, 1),
}


def fit(points: Sequence[dict[str, Any]], cores: int) -> Model:
    """Fit the model to `points`, by least squares on the logarithms of the step times."""
    several = [point for point in points if point["processes"] > 1]
    gradient = statistics.median(
        point["mib_sent"] * 2**20 / 2 * count / (count - 1) for point in several for count in [point["processes"]]
    )
    places = {name: np.array([placed(point)[name] for point in points]) for name in placed(points[0])}
    measured = np.array([point["seconds"] for point in points])

    def model(parameters: NDArray[np.float64]) -> Model:
        return Model(**dict(zip(START, map(float, parameters), strict=True)), gradient=gradient, cores=cores)

    lowest, start, highest = map(np.array, zip(*START.values(), strict=True))
    found = least_squares(
        lambda parameters: np.log(model(parameters).seconds(**places) / measured),
        x0=start,
        bounds=(lowest, highest),
        x_scale=start,
    )
    return model(found.x)


def fit_alone(points: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """The seconds per step and per image of a single process. They minimize the squared relative errors."""
    sizes, seconds = (np.array([point[name] for point in points]) for name in ("batch_size", "seconds"))
    (a_step, an_image), *_ = np.linalg.lstsq(np.stack([1 / seconds, sizes / seconds], axis=1), np.ones(len(points)))
    return float(a_step), float(an_image)


def placed(point: dict[str, Any]) -> dict[str, float]:
    """The arguments of `Model.seconds` for a measured point."""
    link = point["megabits_per_second"]
    return {
        "processes": point["processes"],
        "batch_size": point["batch_size"],
        "bytes_per_second": math.inf if link is None else link * 1e6 / 8,
    }


def largest_error(points: Sequence[dict[str, Any]]) -> float:
    """The largest relative error of the predicted step times."""
    return rounded(max(abs(point["predicted"] / point["seconds"] - 1) for point in points))


def prediction(machine: Model, batch_size: int, links: Sequence[int]) -> dict[str, Any]:
    """The predicted images per second for each link and number of machines.

    For each link, the result also has the number of machines beyond which doubling them does not pay.
    """
    rates = {
        link: [
            batch_size / float(machine.seconds(processes=count, batch_size=batch_size, bytes_per_second=link * 1e6 / 8))
            for count in MACHINES
        ]
        for link in links
    }
    pays = {}
    for link, values in rates.items():
        gains = [after / before >= PAYS for before, after in itertools.pairwise(values)]
        pays[link] = MACHINES[gains.index(False)] if False in gains else MACHINES[-1]
    return {
        "batch_size": batch_size,
        "machines": MACHINES,
        "images_per_second": {str(link): [rounded(value) for value in values] for link, values in rates.items()},
        "twice_as_many_pay_up_to": {str(link): count for link, count in pays.items()},
        "model": machine.to_json(),
    }


@styled
def draw(record: dict[str, Any]) -> Figure:
    """A plot of measured against modeled step times, and a plot of the predicted images per second."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_steps(left, record["points"])
    _draw_prediction(right, record["prediction"])
    return figure


def _draw_steps(axes: Axes, points: Sequence[dict[str, Any]]) -> None:
    seconds = [point["seconds"] for point in points]
    ends = np.array([min(seconds) / 1.3, max(seconds) * 1.3])
    axes.fill_between(ends, ends / 1.15, ends * 1.15, color=GREY, alpha=0.15, linewidth=0, label="within 15 %")
    for is_fitted, name, color in ((True, "fitted", GREY), (False, "not in the fit", PALETTE[0])):
        chosen = [point for point in points if point["fitted"] is is_fitted]
        axes.plot(
            [point["predicted"] for point in chosen],
            [point["seconds"] for point in chosen],
            "o",
            color=color,
            markersize=5,
            label=name,
        )
    axes.set(xscale="log", yscale="log", xlabel="modeled seconds", ylabel="measured seconds", xlim=ends, ylim=ends)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(lambda value, _: "")
    axes.set_title("Duration of a step: measured and modeled")
    axes.legend(loc="upper left", fontsize=SMALL)


def _draw_prediction(axes: Axes, predicted: dict[str, Any]) -> None:
    rates = predicted["images_per_second"]
    for color, (link, values) in zip(PALETTE, rates.items(), strict=False):
        axes.plot(MACHINES, values, color=color, linewidth=2)
        last = predicted["twice_as_many_pay_up_to"][link]
        axes.plot([last], [values[MACHINES.index(last)]], "o", color=color, markersize=8)
        name = f"{int(link) // 1000} Gbit/s" if int(link) >= 1000 else f"{link} Mbit/s"
        axes.annotate(
            f"{name}\npays up to {last}",
            (MACHINES[-1], values[-1]),
            (8, 0),
            textcoords="offset points",
            color=color,
            fontsize=SMALL,
            va="center",
            annotation_clip=False,
        )
    alone = next(iter(rates.values()))[0]
    axes.plot(MACHINES, [alone * count for count in MACHINES], color=INK, linewidth=1, linestyle=(0, (1, 2)))
    axes.set(xscale="log", yscale="log", xlabel="machines like this one", ylabel="images per second")
    axes.set_xticks(MACHINES, list(map(str, MACHINES)))
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.yaxis.set_minor_formatter(lambda value, _: "")
    axes.grid(axis="y")
    axes.set_title(f"Prediction (not measured): batch size {predicted['batch_size']}")
