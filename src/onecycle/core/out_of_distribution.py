"""Energy scores. They distinguish images that resemble the training set from images of something else.

The energy score of an image is the logsumexp of its logits. It is high if the network finds strong evidence of any
class. The logits are not divided by the temperature, so the score does not depend on it.

Source: Liu et al. 2020, "Energy-based Out-of-distribution Detection", section 3. There it is
called the negative free energy.
"""

import numpy as np
from numpy.typing import NDArray

KEPT = 0.95  # fraction of the evaluated images whose energy scores must reach the threshold
FEWEST = 20  # a threshold needs at least this many images, because 5 % of them must be at least one image
LARGEST_SCORE = float(np.finfo(np.float32).max)
"""The largest score and threshold that are allowed."""


def energy_scores_of(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """The energy score of each image, float64 `[N]`, from its logits `[N,C]`."""
    scores: NDArray[np.float64] = np.logaddexp.reduce(logits.astype(np.float64), axis=1)
    return scores


def energy_threshold_of(logits: NDArray[np.float32]) -> float | None:
    """The 5 % quantile of the energy scores of images. `logits` `[N,C]` are the logits of these images.

    If the exact quantile lies between two scores, the result is the lower score. Therefore at least the fraction `KEPT`
    of the images have this score or a higher one.

    Returns None if there are fewer than `FEWEST` images.
    """
    if len(logits) < FEWEST:
        return None
    return float(np.quantile(energy_scores_of(logits), 1 - KEPT, method="lower"))


def require_energy_threshold(value: object) -> float | None:
    """The threshold `value`, after checking that it is None or a number.

    Raises:
        ValueError: when it is neither.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST_SCORE:
        raise ValueError(f"the energy threshold is {repr(value)[:60]}; it must be a number")
    return float(value)
