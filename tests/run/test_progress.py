import io
import re
import time
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from onecycle.run.progress import REFRESH_SECONDS, RunProgress, clock
from onecycle.storage.records import EpochRecord
from onecycle.train.loop import EpochTotals, StepReport

STEPS = 4
TOTALS = EpochTotals(loss=torch.tensor(1234.0), correct=torch.tensor(567), images=1000)


def record(epoch: int) -> EpochRecord:
    return EpochRecord(
        epoch=epoch,
        lr=0.00125,
        train_loss=2.5 / epoch,
        train_accuracy=0.1234 * epoch,
        eval_loss=1.5 / epoch,
        eval_accuracy=0.4321 * epoch,
        seconds=61.4,
    )


def report(step: int) -> StepReport:
    return StepReport(epoch=step // STEPS + 1, step=step, images=32, lr=0.0015, totals=TOTALS, seconds=1.0)


def draw(console: Console, *, evaluated_on: str = "test", first_epoch: int = 0) -> str:
    """Show the progress of a run with a sweep and two epochs, and return the output."""
    with RunProgress(console) as progress:
        progress.say("Data: [red]digits[/red], 3.14")
        progress.warn("THIS IS NOT CIFAR-10")
        progress.start_sweep(3)
        for step in range(3):
            progress.sweep_step(step, 1e-3, 2.0)
        progress.end_sweep()
        progress.start_training(2, STEPS, evaluated_on)
        for epoch in range(first_epoch, 2):
            for step in range(epoch * STEPS, (epoch + 1) * STEPS):
                progress.step(report(step))
            progress.epoch(record(epoch + 1))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Console:
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    return Console(file=io.StringIO(), force_terminal=True, width=120)


def test_without_a_terminal_the_output_is_plain_lines_with_a_header_and_a_row_per_epoch() -> None:
    output = draw(Console(file=io.StringIO()))
    assert output.splitlines() == [
        "Data: [red]digits[/red], 3.14",
        "!!! THIS IS NOT CIFAR-10",
        "  epoch        lr  train loss  train acc  test loss  test acc    time",
        "    1/2  1.25e-03      2.5000     12.34%     1.5000    43.21%    1:01",
        "    2/2  1.25e-03      1.2500     24.68%     0.7500    86.42%    1:01",
    ]
    assert all(character.isprintable() for line in output.splitlines() for character in line)


def test_long_lines_are_not_wrapped_without_a_terminal() -> None:
    console = Console(file=io.StringIO(), width=40)
    with RunProgress(console) as progress:
        progress.say("a line of words " * 20)
        progress.warn("a line of words " * 20)
    assert isinstance(console.file, io.StringIO)
    assert len(console.file.getvalue().splitlines()) == 2


def test_the_header_names_the_validation_split() -> None:
    header = draw(Console(file=io.StringIO()), evaluated_on="validation").splitlines()[2]
    assert header.split() == ["epoch", "lr", "train", "loss", "train", "acc", "val", "loss", "val", "acc", "time"]


def test_a_terminal_gets_a_bar_with_loss_accuracy_rate_speed_and_time_left(terminal: Console) -> None:
    output = draw(terminal)
    assert "\x1b" in output
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)
    assert re.search(r"epoch 2/2 +━+ +4/4 +loss 1\.234  acc 56\.7%  lr 1\.5e-03  [\d,]+ images/s  0:00 left", text), (
        text
    )
    assert "    2/2  1.25e-03" in text  # the rows of the table stay on the screen


def test_a_bar_fits_a_terminal_of_80_columns_with_its_time_left(terminal: Console) -> None:
    terminal = Console(file=terminal.file, force_terminal=True, width=80)
    with RunProgress(terminal) as progress:
        progress.start_training(24, 98, "test")
        progress.step(StepReport(epoch=10, step=900, images=512, lr=1e-3, totals=TOTALS, seconds=1.0))
    assert isinstance(terminal.file, io.StringIO)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.file.getvalue())
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if "epoch 10/24" in line]
    assert lines
    assert re.search(r"loss 1\.234.*\d:\d\d left$", lines[-1]), lines


def test_the_lr_finder_has_a_bar(terminal: Console) -> None:
    with RunProgress(terminal) as progress:
        progress.start_sweep(3)
        progress.sweep_step(0, 1.5e-3, 2.125)
    assert isinstance(terminal.file, io.StringIO)
    assert re.search(r"LR finder.*1/3.*lr 1\.5e-03  loss 2\.12", terminal.file.getvalue())


def test_the_time_left_of_a_resumed_run_counts_only_the_steps_since_then(terminal: Console) -> None:
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", draw(terminal, first_epoch=1))
    assert "epoch 1/2" not in text
    assert re.search(r"epoch 2/2.*4/4.*0:00 left", text)


class RecordingLoss:
    """A loss that records when it is read. On a GPU, reading a loss makes the CPU wait for the GPU."""

    def __init__(self, step: int, steps_read: list[int]) -> None:
        self.step, self.steps_read = step, steps_read

    def __float__(self) -> float:
        self.steps_read.append(self.step)
        return 1234.0


def steps_read(monkeypatch: pytest.MonkeyPatch, console: Console, seconds_per_step: float) -> list[int]:
    """The steps whose loss the progress bar reads, in two epochs of ten steps. A step takes `seconds_per_step`."""
    now, read = 1000.0, []
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    with RunProgress(console) as progress:
        progress.start_training(2, 10, "test")
        for step in range(20):
            now += seconds_per_step
            totals = TOTALS._replace(loss=RecordingLoss(step, read))
            progress.step(StepReport(epoch=step // 10 + 1, step=step, images=32, lr=1e-3, totals=totals, seconds=1.0))
    return read


@pytest.mark.parametrize(
    ("steps_per_refresh", "read"),
    [
        (0.5, list(range(20))),  # the steps are slow, so the loss of every step is read
        (4, [0, 4, 8, 9, 13, 17, 19]),  # every fourth step and the last step of each epoch are read
        (1000, [0, 9, 19]),
    ],
)
def test_the_bar_is_refreshed_every_half_second_and_at_the_last_step_of_an_epoch(
    terminal: Console, monkeypatch: pytest.MonkeyPatch, steps_per_refresh: float, read: list[int]
) -> None:
    assert steps_read(monkeypatch, terminal, REFRESH_SECONDS / steps_per_refresh) == read


def test_no_loss_is_read_without_a_terminal() -> None:
    valueless = torch.zeros((), device="meta")  # reading its value raises RuntimeError
    unreadable = EpochTotals(loss=valueless, correct=valueless, images=32)
    with pytest.raises(RuntimeError):
        _ = replace(report(0), totals=unreadable).totals.mean_loss
    console = Console(file=io.StringIO())
    with RunProgress(console) as progress:
        progress.start_training(2, STEPS, "test")
        for step in range(2 * STEPS):
            progress.step(replace(report(step), totals=unreadable))
    assert isinstance(console.file, io.StringIO)
    assert len(console.file.getvalue().splitlines()) == 1  # only the header


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (0.4, "0:00"),
        (9, "0:09"),
        (59.6, "1:00"),
        (754, "12:34"),
        (3599, "59:59"),
        (3599.7, "1:00:00"),
        (3723, "1:02:03"),
        (100 * 3600, "100:00:00"),
    ],
)
def test_durations_are_formatted_like_a_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
