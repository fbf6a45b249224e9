"""Temperature scaling: divide the logits by one number, so that the probabilities say how often the network is right.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2.
"""

import math

import numpy as np
from numpy.typing import NDArray

LOWEST, HIGHEST = 0.01, 100.0
"""The temperatures that are allowed. Those of trained networks are near 1."""


def require_temperature(value: object) -> float:
    """The temperature `value`, after checking that it is a number from `LOWEST` to `HIGHEST`.

    Raises:
        ValueError: when it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not LOWEST <= value <= HIGHEST:
        raise ValueError(f"the temperature is {repr(value)[:60]}; it must be a number from {LOWEST} to {HIGHEST}")
    return float(value)


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The temperature at which the `labels` `[N]` of images are most likely, given the `logits` `[N,C]`.

    The network must not have been trained on these images. The temperature minimizes the mean cross entropy, which is
    convex in the inverse of the temperature. A share of 1/(N+2) of each label is spread over the other classes. Without
    this share, the best temperature would be 0 if all predictions were correct. The network would then seem certain,
    even if there are only a few images.
    Source of the share: Platt 1999, "Probabilistic Outputs for Support Vector Machines", section 2.2.

    Returns a number from `LOWEST` to `HIGHEST`. Returns 1 if every image has the same logit for all classes, as with a
    single class.

    Raises:
        ValueError: when there are no images.
    """
    from scipy.optimize import minimize_scalar  # imported late, because prediction does not need it

    if not len(labels):
        raise ValueError("there are no predictions")
    centered = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)  # [N,C], at most 0
    if not centered.any():
        return 1.0
    of_labels = centered[np.arange(len(labels)), labels]  # [N]
    of_others = (centered.sum(axis=1) - of_labels) / (logits.shape[1] - 1)
    share = 1 / (len(labels) + 2)
    target = float(((1 - share) * of_labels + share * of_others).mean())

    def loss(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        return float(np.log(np.exp(scale * centered).sum(axis=1)).mean()) - scale * target

    bounds = math.log(LOWEST), math.log(HIGHEST)
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return min(max(math.exp(found.x), LOWEST), HIGHEST)
