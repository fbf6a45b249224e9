"""The one-cycle schedule: the learning rate of every step."""


def one_cycle(step: int, *, total_steps: int, peak_step: int, lr_min: float, lr_max: float) -> float:
    """Learning rate of `step` (0-based, global): linear from `lr_min` up to `lr_max` at `peak_step`, and back down.

    The cycle ends at `lr_min`, without the final phase below `lr_min` that the source calls annihilation. The function
    is pure, so a plot or a resumed run needs only the step number.
    Source: Smith & Topin 2018, "Super-Convergence", section 3.

    Raises:
        ValueError: when `step` is not from 0 to total_steps - 1, or `peak_step` is not from 0 to total_steps - 2.
    """
    if not 0 <= peak_step < total_steps - 1:
        raise ValueError(f"peak_step is {peak_step}; it must be from 0 to total_steps - 2 = {total_steps - 2}")
    if not 0 <= step < total_steps:
        raise ValueError(f"step is {step}; it must be from 0 to {total_steps - 1}")
    if step == peak_step:
        return lr_max
    climbed = step / peak_step if step < peak_step else (total_steps - 1 - step) / (total_steps - 1 - peak_step)
    return lr_min + (lr_max - lr_min) * climbed


def peak_step(total_steps: int, peak_fraction: float) -> int:
    """The step (0-based) that completes `peak_fraction` of `total_steps`. At least one step follows, for the descent.

    For example, with 24 epochs of 98 steps, 5/24 of the steps are completed by step 489.
    """
    return min(max(round(total_steps * peak_fraction) - 1, 0), max(total_steps - 2, 0))
