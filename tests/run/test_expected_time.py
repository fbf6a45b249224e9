import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from onecycle.compute.plan import EAGER
from onecycle.core.recipes import BASELINE, FAST, QUICK, RECIPES, TRANSFER
from onecycle.run.build import Experiment, assemble
from onecycle.run.expected_time import (
    FORWARD_SHARE,
    MEASURED_STEPS,
    RELATIVE_SECONDS_PER_IMAGE,
    STEPS_TO_NEXT_ESTIMATE,
    WARM_UP_STEPS,
    WITH_WINOGRAD,
    ExpectedTime,
    duration,
    times_of_other_recipes,
)

SMALL = replace(
    QUICK, data="digits", widths=(4, 4, 4), sizes=(12, 16), size=16, epochs=20, batch_size=500, augmentation="batched"
)
SECONDS_PER_PIXEL = 0.00025


class Clock:
    """A clock that stands still unless a test advances it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


def simulated(experiment: Experiment, clock: Clock, *, finder_steps: int) -> tuple[list[str], float]:
    """The printed lines and the true duration of a run whose steps and evaluations take time for each pixel."""
    began, expected, lines = clock.now, ExpectedTime(experiment), []
    train, evaluated = experiment.train, len(experiment.dataset.evaluation) * 16**2
    batches = [train.size(number) for number in range(len(train))]
    swept = batches if batches[-1] > 100 else batches[:-1]
    for step in range(finder_steps):
        clock.now += (10 if step == 0 else 0) + swept[step % len(swept)] * 16**2 * SECONDS_PER_PIXEL
        lines += expected.after_finder_step(step, finder_steps)
    for step in range(experiment.config.epochs * len(train)):
        size = 12 if step < experiment.config.epochs * len(train) / 2 else 16
        images = batches[step % len(train)]
        clock.now += (10 if step == 0 else 0) + images * size**2 * SECONDS_PER_PIXEL
        lines += expected.after_step(step)
        if (step + 1) % len(train) == 0:
            clock.now += evaluated * SECONDS_PER_PIXEL * FORWARD_SHARE
    return lines, clock.now - began


@pytest.mark.parametrize(("finder_steps", "batch_size"), [(0, 500), (30, 500), (30, 700)])
def test_the_expected_time_covers_finder_steps_of_all_sizes_and_evaluations(
    finder_steps: int, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The finder leaves out a last batch of 37 images.
    experiment = assemble(replace(SMALL, batch_size=batch_size), EAGER)
    lines, seconds = simulated(experiment, Clock(monkeypatch), finder_steps=finder_steps)
    assert len(lines) == 1
    minutes = float(lines[0].removeprefix("Expected time: ").removesuffix(" minutes"))
    assert minutes == pytest.approx(seconds / 60, rel=0.03)


def test_it_is_printed_once_after_the_first_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    expected = ExpectedTime(assemble(SMALL, EAGER))
    printed = []
    for step in range(12):
        clock.now += 100
        printed.append(len(expected.after_step(step)))
    assert printed == [int(step == WARM_UP_STEPS + MEASURED_STEPS) for step in range(12)]


@pytest.mark.parametrize(("factor", "is_corrected"), [(0.5, True), (0.9, False), (1.1, False), (2, True)])
def test_an_estimate_that_was_wrong_is_corrected_once(
    factor: float, is_corrected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    config = replace(SMALL, sizes=(16,), batch_size=50, epochs=10)
    experiment = assemble(config, EAGER)
    expected, first = ExpectedTime(experiment), 1 + WARM_UP_STEPS + MEASURED_STEPS
    printed, began = {}, clock.now
    steps = config.epochs * len(experiment.train)
    for step in range(steps):
        seconds = SECONDS_PER_PIXEL * experiment.train.size(step % len(experiment.train)) * 16**2
        clock.now += seconds * (1 if step < first else factor)
        if lines := expected.after_step(step):
            (printed[step],) = lines
        if (step + 1) % len(experiment.train) == 0:
            clock.now += factor * len(experiment.dataset.evaluation) * 16**2 * SECONDS_PER_PIXEL * FORWARD_SHARE
    assert steps > 4 * STEPS_TO_NEXT_ESTIMATE
    before = printed.pop(first - 1).removeprefix("Expected time: ")
    if is_corrected:
        (line,) = printed.values()
        assert list(printed) == [first + STEPS_TO_NEXT_ESTIMATE - 1]
        after = line.removeprefix("Expected time: ").removesuffix(f" instead of {before}")
        assert float(after.removesuffix(" minutes")) == pytest.approx((clock.now - began) / 60, rel=0.05, abs=0.6)
    else:
        assert printed == {}


def test_a_machine_whose_speed_alternates_gets_at_most_one_correction(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    experiment = assemble(replace(SMALL, sizes=(16,), batch_size=50, epochs=10), EAGER)
    expected, lines = ExpectedTime(experiment), []
    for step in range(10 * len(experiment.train)):
        slower = 1.27 if step // STEPS_TO_NEXT_ESTIMATE % 2 else 1.0
        clock.now += slower * SECONDS_PER_PIXEL * experiment.train.size(step % len(experiment.train)) * 16**2
        lines += expected.after_step(step)
    assert len(lines) <= 2


def test_a_run_that_turns_out_to_be_long_then_names_the_faster_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    experiment = assemble(replace(SMALL, epochs=500), EAGER)
    monkeypatch.setattr("onecycle.run.expected_time.times_of_other_recipes", lambda *_, **__: {"quick": 600.0})
    expected, lines = ExpectedTime(experiment), []
    for step in range(WARM_UP_STEPS + MEASURED_STEPS + 2 * STEPS_TO_NEXT_ESTIMATE):
        clock.now += 0.01 if step <= WARM_UP_STEPS + MEASURED_STEPS else 20
        lines += expected.after_step(step)
    assert len(lines) == 2 and lines[0].startswith("Expected time: ")
    assert lines[1] == "Training would take about 10 minutes with --recipe quick"


def test_a_resumed_run_names_no_other_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    monkeypatch.setattr("onecycle.run.expected_time.times_of_other_recipes", lambda *_, **__: {"quick": 600.0})
    expected, lines = ExpectedTime(assemble(replace(SMALL, epochs=500), EAGER)), []
    for step in range(100, 100 + STEPS_TO_NEXT_ESTIMATE):
        clock.now += 20
        lines += expected.after_step(step)
    assert len(lines) == 1 and lines[0].startswith("Expected time: ")


def test_a_short_run_prints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    expected = ExpectedTime(assemble(SMALL, EAGER))
    for step in range(60):
        clock.now += 0.001
        assert expected.after_step(step) == []


def test_a_long_run_of_a_recipe_names_the_times_of_the_faster_recipes() -> None:
    times = times_of_other_recipes(BASELINE, 9 * 3600, by_winograd=False)
    assert list(times) == ["quick", "fast"]
    assert times["quick"] == pytest.approx(9 * 3600 * 0.19 * 4 / 24)
    assert list(times_of_other_recipes(FAST, 3600, by_winograd=True)) == ["quick"]
    assert times_of_other_recipes(QUICK, 3600, by_winograd=False) == {}
    assert times_of_other_recipes(TRANSFER, 3600, by_winograd=False) == {}, "its times are not measured"
    short = replace(BASELINE, epochs=1)
    for by_winograd, relative in ((False, 0.19), (True, 0.32)):
        times = times_of_other_recipes(short, 3600, by_winograd=by_winograd)
        assert times == ({} if by_winograd else {"quick": pytest.approx(3600 * relative * 4)})


@pytest.mark.parametrize("change", [{"size": 64}, {"batch_size": 64}, {"network": "whitened_convnet"}])
def test_a_changed_recipe_names_no_other_times(change: dict[str, object]) -> None:
    assert times_of_other_recipes(replace(BASELINE, **change), 9 * 3600, by_winograd=True) == {}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (31.4, "31 seconds"),
        (89, "89 seconds"),
        (95, "2 minutes"),
        (3540, "59 minutes"),
        (3600, "1 hour 0 minutes"),
        (3660, "1 hour 1 minute"),
        (9 * 3600 + 125, "9 hours 2 minutes"),
    ],
)
def test_a_duration_is_written_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("file", "cpu", "expected"),
    [
        ("recipe_time", "AMX bfloat16", RELATIVE_SECONDS_PER_IMAGE),
        ("recipe_time_avx512", "this CPU", RELATIVE_SECONDS_PER_IMAGE),
        ("recipe_time_avx2", "AVX2", WITH_WINOGRAD),
    ],
)
def test_the_relative_times_of_the_recipes_are_within_20_percent_of_the_measured_ones(
    file: str, cpu: str, expected: dict[str, float]
) -> None:
    record = json.loads((Path(__file__).parents[2] / "results" / f"{file}.json").read_text())["classes"][cpu]
    seconds = {
        name: fmean(measured["seconds_per_step"].values()) / RECIPES[name].batch_size
        for name, measured in record.items()
    }
    assert {"baseline", "quick", "fast"} <= record.keys()
    for name in expected.keys() & record.keys():
        assert expected[name] == pytest.approx(seconds[name] / seconds["baseline"], rel=0.2)
