from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import NARROW_CONFIG

from onecycle.compute import autotune
from onecycle.compute.autotune import Choice
from onecycle.compute.kernels import native
from onecycle.run.build import Experiment, assemble
from onecycle.run.expected_time import MEASURED_STEPS, WARM_UP_STEPS
from onecycle.run.plan_check import PlanCheck
from onecycle.train.loop import EpochTotals, StepReport

CONFIG = replace(NARROW_CONFIG, limit=400, batch_size=100, epochs=2, augmentation="batched", device="cpu")
STEPS = WARM_UP_STEPS + MEASURED_STEPS
TOTALS = EpochTotals(torch.tensor(1.0), torch.tensor(1), 1)


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Experiment]:
    """A function that assembles an experiment whose compute plan took 1 ms for each image when it was measured."""

    def measured(*arguments: object, **options: object) -> Choice:
        choice = real(*arguments, **options)
        only = replace(choice.rounds[0], images=50, milliseconds={"plan": 50.0}, best="plan")
        return replace(choice, rounds=(only,), remembered=True)

    real = autotune.choose
    monkeypatch.setattr(autotune, "choose", measured)
    return lambda **changes: assemble(replace(CONFIG, **changes))


def lines(experiment: Experiment, milliseconds: list[float], *, images: int = 100) -> list[str | None]:
    """What the check prints after each step, whose forward and backward passes take these times for each image."""
    check = PlanCheck(experiment)
    reports = [
        StepReport(
            epoch=1, step=step, images=images, lr=0.1, totals=TOTALS, seconds=1, computing_seconds=images * each / 1000
        )
        for step, each in enumerate(milliseconds)
    ]
    return [check.after_step(report) for report in reports]


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    monkeypatch.setattr(autotune, "forget", lambda *_, **__: calls.append(1))
    return calls


def test_a_plan_that_is_three_times_as_slow_is_forgotten_once(
    experiment: Callable[..., Experiment], forgotten: list[int]
) -> None:
    printed = lines(experiment(), [3.0] * 3 * STEPS)
    assert [step for step, line in enumerate(printed) if line] == [STEPS - 1]
    assert printed[STEPS - 1] == (
        "A step takes 3.0 times as long as when the compute plan was measured: the next run will measure again"
    )
    assert forgotten == [1]


@pytest.mark.parametrize(
    "milliseconds",
    [[1.9] * 20, [0.2] * 20, [50.0] * WARM_UP_STEPS + [1.0] * 20, [1.0] * WARM_UP_STEPS + [1.0, 9.0, 1.0, 9.0, 1.0]],
    ids=["slightly slower", "faster", "slow at first", "slow now and then"],
)
def test_other_plans_are_kept(
    experiment: Callable[..., Experiment], forgotten: list[int], milliseconds: list[float]
) -> None:
    assert not any(lines(experiment(), milliseconds))
    assert not forgotten


@pytest.mark.parametrize("changes", [{"batch_size": 40}, {"shards": 4}], ids=["small batches", "small shards"])
def test_fewer_images_than_were_measured_say_nothing(
    experiment: Callable[..., Experiment], forgotten: list[int], changes: dict[str, int]
) -> None:
    assert not any(lines(experiment(**changes), [9.0] * 20, images=changes.get("batch_size", 100)))
    assert not forgotten


def test_short_batches_do_not_count(experiment: Callable[..., Experiment], forgotten: list[int]) -> None:
    assert not any(lines(experiment(), [9.0] * 20, images=99))
    assert not forgotten


def test_a_given_plan_or_one_that_was_measured_now_is_not_checked(
    experiment: Callable[..., Experiment], forgotten: list[int]
) -> None:
    built = experiment()
    assert built.choice
    for choice in (None, replace(built.choice, remembered=False)):
        assert not any(lines(replace(built, choice=choice), [9.0] * 20))
    assert not forgotten


def test_smaller_images_are_compared_by_their_pixels(
    experiment: Callable[..., Experiment], forgotten: list[int]
) -> None:
    built = experiment(sizes=(16, 32), epochs=10)
    assert not any(lines(built, [0.4] * STEPS))  # a quarter of the pixels
    assert not forgotten
    assert any(lines(built, [0.6] * STEPS))


def test_the_plan_of_the_run_is_measured_again_by_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native.compiled()  # compiles only once per process, so call it before the cache folder changes
    # In the cache of all tests, another test could measure for this one.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # with one thread, plans are measured on at most 64 images
    threads = torch.get_num_threads()
    try:
        assemble(CONFIG)
        built = assemble(CONFIG)
        assert built.choice and built.choice.remembered
        assert any(lines(built, [1e6] * STEPS))
        again = assemble(CONFIG).choice
        assert again and not again.remembered
    finally:
        torch.set_num_threads(threads)
