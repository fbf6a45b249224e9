"""Show a run on the screen: its expected time, a progress bar during each epoch, and a line after each epoch.

The bar needs a terminal.
"""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from onecycle.core.formatting import percent
from onecycle.run.expected_time import ExpectedTime
from onecycle.storage.records import EpochRecord
from onecycle.train.loop import StepReport

REFRESH_SECONDS = 0.5


class RunProgress:
    """Shows the progress of one run on `console`. Leaving the context removes the bar.

    If `expected` is set, the expected time of the run is printed after its first steps, and again if later steps
    correct it.
    """

    def __init__(self, console: Console) -> None:
        self.expected: ExpectedTime | None = None
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[figures]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            expand=True,
        )
        self._task: TaskID | None = None
        self._finder_steps = 0
        self._epochs = 0
        self._steps_per_epoch = 0
        self._first_step: int | None = None
        self._started = time.perf_counter()
        self._images = 0
        self._refreshed = -REFRESH_SECONDS

    def __enter__(self) -> "RunProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """Print a line."""
        self._console.out(line, highlight=False)

    def _say_all(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.say(line)

    def warn(self, line: str) -> None:
        """Print a highlighted line."""
        self._console.out(f"!!! {line}", style="bold yellow", highlight=False)

    def start_features(self, images: int, views: int) -> None:
        """Print that the features of `images` images are computed from `views` views of each, and show the bar."""
        of_views = f", {views} views each" if views > 1 else ""
        self.say(f"Computing the features of {images:,} images{of_views}; later runs read them from the cache")
        self._task = self._bar.add_task("features", total=images, figures="")

    def feature_step(self) -> None:
        """Show that the features of one more image are computed."""
        assert self._task is not None
        self._bar.advance(self._task)

    def end_features(self) -> None:
        """Remove the bar of the features, if there is one."""
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None

    def start_sweep(self, steps: int) -> None:
        """Show the bar of the LR finder, which takes `steps` steps."""
        self._finder_steps = steps
        self._task = self._bar.add_task("LR finder", total=steps, figures="")

    def sweep_step(self, step: int, lr: float, loss: float) -> None:
        """Show that the LR finder has done step `step` (0-based)."""
        assert self._task is not None
        self._bar.update(self._task, completed=step + 1, figures=f"lr {lr:.1e}  loss {loss:.3f}")
        if self.expected:
            self._say_all(self.expected.after_finder_step(step, self._finder_steps))

    def end_sweep(self) -> None:
        """Remove the bar of the LR finder."""
        assert self._task is not None
        self._bar.remove_task(self._task)

    def start_training(self, epochs: int, steps_per_epoch: int, evaluated_on: str) -> None:
        """Print the heading of the epoch lines, and show the bar."""
        self._epochs, self._steps_per_epoch = epochs, steps_per_epoch
        self._started = time.perf_counter()
        self._task = self._bar.add_task("", total=steps_per_epoch, figures="")
        name = "val" if evaluated_on == "validation" else evaluated_on
        heading = f"{'epoch':>7}{'lr':>10}{'train loss':>12}{'train acc':>11}"
        self.say(f"{heading}{f'{name} loss':>11}{f'{name} acc':>10}{'time':>8}")

    def step(self, report: StepReport) -> None:
        """Show that a training step is done."""
        assert self._task is not None
        if self._first_step is None:
            self._first_step = report.step
        if self.expected:
            self._say_all(self.expected.after_step(report.step))
        self._images += report.images
        completed = report.step % self._steps_per_epoch + 1
        now = time.perf_counter()
        # Each reading of the loss leaves a GPU without work for a moment, so read it rarely.
        if self._bar.disable or (now - self._refreshed < REFRESH_SECONDS and completed < self._steps_per_epoch):
            return
        self._refreshed = now
        elapsed = now - self._started
        done = report.step + 1 - self._first_step
        # The elapsed time includes evaluations, so the estimate does, too.
        left = elapsed / done * (self._epochs * self._steps_per_epoch - report.step - 1)
        self._bar.update(
            self._task,
            description=f"epoch {report.epoch}/{self._epochs}",
            completed=completed,
            figures=f"loss {report.totals.mean_loss:.3f}  acc {percent(report.totals.accuracy, 1)}  "
            f"lr {report.lr:.1e}  {self._images / elapsed:,.0f} images/s  {clock(left)} left",
        )

    def epoch(self, record: EpochRecord) -> None:
        """Print the line of an epoch that was trained and evaluated."""
        self.say(
            f"{f'{record.epoch}/{self._epochs}':>7}{record.lr:>10.2e}{record.train_loss:>12.4f}"
            f"{percent(record.train_accuracy):>11}{record.eval_loss:>11.4f}{percent(record.eval_accuracy):>10}"
            f"{clock(record.seconds):>8}"
        )


def clock(seconds: float) -> str:
    """A duration as text: 0:09, 12:34 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
