"""Temperature scaling: divide the logits by one number, so that the probabilities say how often the network is right.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2.
"""

LOWEST, HIGHEST = 0.05, 20.0
"""The temperatures that are allowed. Those of trained networks are near 1."""


def require_temperature(value: object) -> float:
    """The temperature `value`, after checking that it is a number from `LOWEST` to `HIGHEST`.

    Raises:
        ValueError: when it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not LOWEST <= value <= HIGHEST:
        raise ValueError(f"the temperature is {repr(value)[:60]}; it must be a number from {LOWEST} to {HIGHEST}")
    return float(value)
