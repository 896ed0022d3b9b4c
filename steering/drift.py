"""From the scores of a text's tokens to its drift."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

SMOOTHING: Final = 1 / 16  # of drift: what one token's score weighs


def drift(
    scores: NDArray[np.floating], smoothing: float = SMOOTHING, before: float = 0.0
) -> NDArray[np.float64]:
    """`[tokens]`, the exponential moving average of `scores` `[tokens]`, from `before` on.

    Scores are 0 on average where a behaviour is not, so a text begins at 0: no single token makes it drift.
    """
    found = np.empty(len(scores), np.float64)
    for index, score in enumerate(scores):
        before += smoothing * (float(score) - before)
        found[index] = before
    return found
