"""Compare the first steps of training with the measurements behind the compute plan."""

import statistics

from onecycle.compute import autotune, hardware
from onecycle.run.build import Experiment
from onecycle.run.expected_time import MEASURED_STEPS, WARM_UP_STEPS
from onecycle.train.loop import StepReport

# A step contradicts the measurements if its time per image is at least this many times the measured time. Smaller
# differences are usual: the measurements use fewer images, and a batch too large for the caches takes longer per image.
CONTRADICTION = 2.0


class PlanCheck:
    """Forgets a remembered compute plan if the first steps of training contradict its measurements.

    This run keeps its plan, and the next run measures again. If the machine was merely busy during this run, the new
    measurements cost seconds and choose the same plan. The check compares the times of full batches on one CPU. So it
    does nothing on a GPU, or if a batch has fewer images than were measured. It also does nothing with several
    processes, because they wait for each other.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        # For each step: its time per image, divided by the time per image that was measured to choose the plan.
        self._slower: list[float] = []
        choice, config = experiment.choice, experiment.config
        self._applies = (
            choice is not None
            and choice.remembered
            and choice.plan.device == "cpu"
            and experiment.group.size == 1
            and config.batch_size // config.shards >= choice.rounds[-1].images
        )

    def after_step(self, report: StepReport) -> str | None:
        """The line to print after a training step, or None."""
        experiment, choice, config = self._experiment, self._experiment.choice, self._experiment.config
        if not self._applies or report.images < config.batch_size:
            return None
        assert choice and report.computing_seconds is not None
        # The plan was measured with images of this size. An image of another size counts in proportion to its pixels.
        size = experiment.preprocessing.input_size
        images = report.images * (experiment.train.image_size(report.step) / size) ** 2
        self._slower.append(report.computing_seconds / images / choice.seconds_per_image)
        if len(self._slower) < WARM_UP_STEPS + MEASURED_STEPS:
            return None
        self._applies = False
        slower = statistics.median(self._slower[WARM_UP_STEPS:])
        if slower < CONTRADICTION:
            return None
        autotune.forget(experiment.model, size, hardware.detect(), device=config.device, precision=config.precision)
        return (
            f"A step takes {slower:.1f} times as long as when the compute plan was measured: the next run will measure "
            "again"
        )
