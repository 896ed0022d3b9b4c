"""How well a score tells positives from negatives."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating[Any]]


def auroc(positive: Scores, negative: Scores) -> float:
    """The share of (positive, negative) couples in the right order, ties half."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left")
    not_above = np.searchsorted(ordered, positive, side="right")
    return float((below + not_above).mean() / (2 * len(negative)))


def mean_auroc(folds: Sequence[tuple[Scores, Scores]]) -> float | None:
    """Mean over folds by their number of positives; None where no fold holds both classes.

    Scores of different folds come from different directions, so couples are compared within one fold only.
    """
    held = [(positive, negative) for positive, negative in folds if len(positive) and len(negative)]
    if not held:
        return None
    return float(np.average([auroc(*fold) for fold in held], weights=[len(fold[0]) for fold in held]))
