"""Predict how long a run takes, from the duration of some of its steps."""

import statistics
import time
from collections.abc import Callable
from itertools import pairwise

from onecycle.core.config import Config
from onecycle.core.recipes import RECIPES
from onecycle.run.build import Experiment
from onecycle.train.lr_finder import batches_of_sweep

WARM_UP_STEPS = 2  # the first steps are not measured, because they also allocate memory
MEASURED_STEPS = 5
STEPS_TO_NEXT_ESTIMATE = 50
CORRECTED_FROM = 1.2  # a later estimate is printed if it differs from the last printed one by more than this factor
FORWARD_SHARE = 1 / 3  # time for evaluating an image, relative to the time for training with it
LONG_SECONDS = 20 * 60  # for a longer run, the times of faster recipes are printed, too
FEWEST_SECONDS = 30  # no time is printed for a shorter run, and no correction if less time is left
# The training time per image of each recipe, relative to the baseline. The measurements are in results/:
# recipe_time.json and recipe_time_avx512.json. WITH_WINOGRAD has the times in float32 with Winograd's algorithm. Their
# measurements are in recipe_time_avx2.json, which lacks `accurate`. The algorithm saves most time in the baseline.
RELATIVE_SECONDS_PER_IMAGE = {"baseline": 1.0, "quick": 0.19, "fast": 0.25, "accurate": 1.4}
WITH_WINOGRAD = {"baseline": 1.0, "quick": 0.28, "fast": 0.4}


class ExpectedTime:
    """The expected duration of a run, known after its first steps.

    The estimate includes the steps of the LR finder, all training steps and all evaluations. A step or an evaluation is
    expected to take time in proportion to its pixels. Other load on the machine can disturb the first estimate. Later
    steps therefore give further estimates.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._config = experiment.config
        self._by_winograd = bool(experiment.plan.winograd) and experiment.plan.precision == "float32"
        self._train = experiment.train
        self._swept = batches_of_sweep(experiment.train)
        self._evaluated_pixels = len(experiment.dataset.epoch_evaluation) * experiment.preprocessing.input_size**2
        self._began = time.perf_counter()
        self._measured: list[tuple[float, int]] = []  # for each step: when it ended, and its pixels
        self._steps_to_estimate = 1 + WARM_UP_STEPS + MEASURED_STEPS
        self._printed: float | None = None  # seconds
        self._is_resumed = False

    def after_finder_step(self, step: int, steps: int) -> list[str]:
        """The lines to print after step `step` (0-based) of the LR finder, which takes `steps` steps."""
        size = self._train.image_size(self._last_step)  # all images of the LR finder have this size
        step_pixels = [self._swept.size(number % len(self._swept)) * size**2 for number in range(steps)]
        return self._after_step(step_pixels[step], lambda: sum(step_pixels[step + 1 :]) + self._pixels_from(0))

    def after_step(self, step: int) -> list[str]:
        """The lines to print after the global training step `step` (0-based)."""
        self._is_resumed |= bool(step and not self._measured)
        return self._after_step(self._pixels(step), lambda: self._pixels_from(step + 1))

    def _after_step(self, pixels: int, pixels_left: Callable[[], float]) -> list[str]:
        self._measured.append((time.perf_counter(), pixels))
        if len(self._measured) < self._steps_to_estimate:
            return []
        self._steps_to_estimate += STEPS_TO_NEXT_ESTIMATE
        measured = pairwise(self._measured[WARM_UP_STEPS:])
        # An interval may include an evaluation. The median ignores these few long intervals.
        seconds_per_pixel = statistics.median((end - begin) / pixels for (begin, _), (end, pixels) in measured)
        left = seconds_per_pixel * pixels_left()
        seconds, before = time.perf_counter() - self._began + left, self._printed
        if before is None:
            if seconds < FEWEST_SECONDS:
                return []
            line = f"Expected time: {duration(seconds)}"
        else:
            is_near = 1 / CORRECTED_FROM <= seconds / before <= CORRECTED_FROM
            if is_near or duration(seconds) == duration(before) or left < FEWEST_SECONDS:
                return []
            line = f"Expected time: {duration(seconds)} instead of {duration(before)}"
        self._printed = seconds
        others = times_of_other_recipes(self._config, seconds, by_winograd=self._by_winograd)
        if seconds <= LONG_SECONDS or self._is_resumed or not others:
            return [line]
        times = " and ".join(f"about {duration(time)} with --recipe {name}" for name, time in others.items())
        return [line, f"Training would take {times}"]

    @property
    def _last_step(self) -> int:
        return self._config.epochs * len(self._train) - 1

    def _pixels(self, step: int) -> int:
        """The number of pixels in the images of the global step `step` (0-based)."""
        return self._train.size(step % len(self._train)) * self._train.image_size(step) ** 2

    def _pixels_from(self, step: int) -> float:
        """The number of pixels in all steps and evaluations from `step` (0-based) on.

        Each pixel in an evaluation is counted as `FORWARD_SHARE` instead of 1.
        """
        evaluations = self._config.epochs - step // len(self._train)
        training = sum(self._pixels(later) for later in range(step, self._last_step + 1))
        return training + evaluations * self._evaluated_pixels * FORWARD_SHARE


def times_of_other_recipes(config: Config, seconds: float, *, by_winograd: bool) -> dict[str, float]:
    """The seconds that each faster recipe would take, if `config` takes `seconds`.

    `by_winograd` says whether the compute plan uses Winograd's algorithm in float32.

    The result is empty if the recipe of `config` was not measured, or if `config` changes a recipe setting that affects
    the time per image.
    """
    recipe = RECIPES[config.recipe]
    relative = WITH_WINOGRAD if by_winograd else RELATIVE_SECONDS_PER_IMAGE
    decisive = ("network", "widths", "activation", "residual", "batch_size", "sizes", "size")
    if config.recipe not in relative or any(getattr(config, name) != getattr(recipe, name) for name in decisive):
        return {}
    seconds_of_unit = seconds / (relative[config.recipe] * config.epochs)
    times = {name: relative[name] * RECIPES[name].epochs * seconds_of_unit for name in relative}
    return {name: time for name, time in times.items() if time < seconds and name != config.recipe}


def duration(seconds: float) -> str:
    """A duration as text, rounded to seconds or to minutes: "40 seconds", "9 minutes", "2 hours 5 minutes"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{round(seconds)} seconds"
    if minutes < 60:
        return f"{minutes} minutes"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} hour{'' if hours == 1 else 's'} {minutes} minute{'' if minutes == 1 else 's'}"
