import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from onecycle.train.scheduler import one_cycle, peak_step

STEPS, PEAK = 24 * 98, 489  # the recipe has 24 epochs of 98 batches, and its peak at the last step of epoch 5

rates = st.floats(1e-9, 10)


@st.composite
def cycles(draw: st.DrawFn) -> dict[str, float]:
    total = draw(st.integers(2, 300))
    lr_min = draw(rates)
    return {
        "total_steps": total,
        "peak_step": draw(st.integers(0, total - 2)),
        "lr_min": lr_min,
        "lr_max": lr_min * draw(st.floats(1.001, 1e6)),
    }


def _curve(cycle: dict) -> list[float]:
    return [one_cycle(step, **cycle) for step in range(cycle["total_steps"])]


@pytest.mark.parametrize(("lr_min", "lr_max"), [(0.001, 0.01), (1.3e-5, 0.0371), (0.02, 0.02)])
def test_every_step_of_the_recipe_has_the_rate_of_torchs_one_cycle_lr(lr_min: float, lr_max: float) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=lr_max,
        total_steps=STEPS,
        pct_start=5 / 24,
        anneal_strategy="linear",
        cycle_momentum=False,
        div_factor=lr_max / lr_min,
        final_div_factor=1,
    )
    assert optimizer.param_groups[0]["initial_lr"] == pytest.approx(lr_min, rel=1e-12)
    for step in range(STEPS):
        ours = one_cycle(step, total_steps=STEPS, peak_step=PEAK, lr_min=lr_min, lr_max=lr_max)
        assert abs(ours - optimizer.param_groups[0]["lr"]) < 1e-12, step
        optimizer.step()
        if step < STEPS - 1:
            reference.step()


def test_the_recipe_peaks_on_the_last_step_of_epoch_5_and_begins_and_ends_at_the_lowest_rate() -> None:
    assert peak_step(STEPS, 5 / 24) == PEAK == 5 * 98 - 1
    curve = _curve({"total_steps": STEPS, "peak_step": PEAK, "lr_min": 0.0007, "lr_max": 0.0123})
    assert (curve[0], curve[PEAK], curve[-1]) == (0.0007, 0.0123, 0.0007)
    assert curve.index(max(curve)) == PEAK
    assert curve[PEAK - 1] < 0.0123 > curve[PEAK + 1]


def test_there_is_no_annihilation_the_rate_falls_by_the_same_amount_to_the_very_end() -> None:
    curve = _curve({"total_steps": STEPS, "peak_step": PEAK, "lr_min": 0.001, "lr_max": 0.01})
    for part in (curve[: PEAK + 1], curve[PEAK:]):
        drops = [after - before for before, after in zip(part, part[1:], strict=False)]
        assert max(drops) - min(drops) < 1e-15


@given(cycles())
def test_any_cycle_climbs_to_one_peak_and_falls_back_to_the_minimum(cycle: dict) -> None:
    curve, peak = _curve(cycle), cycle["peak_step"]
    climb, fall = curve[: peak + 1], curve[peak:]
    assert all(before < after for before, after in zip(climb, climb[1:], strict=False))
    assert all(before > after for before, after in zip(fall, fall[1:], strict=False))
    assert curve[peak] == cycle["lr_max"]
    assert curve[-1] == cycle["lr_min"]
    assert curve[0] == (cycle["lr_min"] if peak else cycle["lr_max"])
    assert all(cycle["lr_min"] <= rate <= cycle["lr_max"] for rate in curve)


@given(cycles(), st.data())
def test_a_rate_depends_only_on_the_step_and_not_on_earlier_calls(cycle: dict, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, cycle["total_steps"] - 1))
    alone = one_cycle(step, **cycle)
    assert _curve(cycle)[step] == alone == one_cycle(step, **cycle)


@given(cycles())
def test_equal_rates_give_a_constant(cycle: dict) -> None:
    assert set(_curve({**cycle, "lr_max": cycle["lr_min"]})) == {cycle["lr_min"]}


@given(cycles(), st.integers())
def test_a_step_outside_the_cycle_is_refused(cycle: dict, step: int) -> None:
    assume(not 0 <= step < cycle["total_steps"])
    with pytest.raises(ValueError, match=rf"step is {step}; it must be from 0 to {cycle['total_steps'] - 1}"):
        one_cycle(step, **cycle)


@pytest.mark.parametrize(("total", "peak"), [(10, -1), (10, 9), (10, 10), (1, 0), (0, 0)])
def test_a_peak_outside_the_cycle_or_on_its_last_step_is_refused(total: int, peak: int) -> None:
    with pytest.raises(ValueError, match=f"peak_step is {peak}; it must be from 0 to total_steps - 2 = {total - 2}"):
        one_cycle(0, total_steps=total, peak_step=peak, lr_min=0.1, lr_max=1)


@given(st.integers(1, 200), st.integers(1, 500))
def test_a_peak_fraction_of_whole_epochs_peaks_on_the_last_step_of_that_epoch(epochs: int, each: int) -> None:
    assume(epochs * each >= 2)
    for complete in {1, (epochs + 1) // 2, epochs - 1} - {0, epochs}:
        assert peak_step(epochs * each, complete / epochs) == complete * each - 1


@given(st.integers(2, 10**7), st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_the_peak_is_inside_the_cycle_and_within_half_a_step_of_the_fraction(total: int, fraction: float) -> None:
    peak = peak_step(total, fraction)
    assert 0 <= peak <= total - 2
    assert one_cycle(peak, total_steps=total, peak_step=peak, lr_min=0.1, lr_max=1) == 1
    assert abs(peak + 1 - total * fraction) <= 0.5 or peak in (0, total - 2)
