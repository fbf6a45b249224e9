"""A run on a screen: a bar while an epoch goes on and a row when it is done; plain lines where there is no terminal."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from onecycle.storage.records import EpochRecord
from onecycle.train.loop import StepReport

REFRESH_SECONDS = 0.5


class RunProgress:
    """Draws the progress of one run on `console`; a context manager, so that the bar is gone when the run is."""

    def __init__(self, console: Console) -> None:
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
        self._epochs = 0
        self._steps_an_epoch = 0
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
        """One line that stays on the screen."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def warn(self, line: str) -> None:
        """One line that cannot be missed."""
        self._console.print(f"!!! {line}", style="bold yellow", highlight=False, markup=False, soft_wrap=True)

    def start_sweep(self, steps: int) -> None:
        """The LR finder begins."""
        self._task = self._bar.add_task("LR finder", total=steps, figures="")

    def sweep_step(self, step: int, lr: float, loss: float) -> None:
        """The LR finder has done `step` (0-based)."""
        assert self._task is not None
        self._bar.update(self._task, completed=step + 1, figures=f"lr {lr:.1e}  loss {loss:.3f}")

    def end_sweep(self) -> None:
        """The LR finder has ended."""
        assert self._task is not None
        self._bar.remove_task(self._task)

    def start_training(self, epochs: int, steps_an_epoch: int, evaluated_on: str) -> None:
        """Training begins, or goes on after a resume."""
        self._epochs, self._steps_an_epoch = epochs, steps_an_epoch
        self._started = time.perf_counter()
        self._task = self._bar.add_task("", total=steps_an_epoch, figures="")
        name = "val" if evaluated_on == "validation" else evaluated_on
        of_training = f"{'epoch':>7}{'lr':>10}{'train loss':>12}{'train acc':>11}"
        self.say(f"{of_training}{f'{name} loss':>11}{f'{name} acc':>10}{'time':>8}")

    def step(self, report: StepReport) -> None:
        """A training step is done."""
        assert self._task is not None
        if self._first_step is None:
            self._first_step = report.step
        self._images += report.images
        completed = report.step % self._steps_an_epoch + 1
        now = time.perf_counter()
        # A look at the loss would make a GPU wait.
        if self._bar.disable or (now - self._refreshed < REFRESH_SECONDS and completed < self._steps_an_epoch):
            return
        self._refreshed = now
        elapsed = now - self._started
        done = report.step + 1 - self._first_step
        # Evaluations are in the elapsed time, so they are in the estimate too.
        left = elapsed / done * (self._epochs * self._steps_an_epoch - report.step - 1)
        self._bar.update(
            self._task,
            description=f"epoch {report.epoch}/{self._epochs}",
            completed=completed,
            figures=f"loss {report.totals.mean_loss:.3f}  acc {report.totals.accuracy:.1%}  lr {report.lr:.1e}  "
            f"{self._images / elapsed:,.0f} images/s  {clock(left)} left",
        )

    def epoch(self, record: EpochRecord) -> None:
        """An epoch is trained and evaluated."""
        self.say(
            f"{f'{record.epoch}/{self._epochs}':>7}{record.lr:>10.2e}{record.train_loss:>12.4f}"
            f"{record.train_accuracy:>11.2%}{record.test_loss:>11.4f}{record.test_accuracy:>10.2%}"
            f"{clock(record.seconds):>8}"
        )


def clock(seconds: float) -> str:
    """A duration as people read it: 0:09, 12:34 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
