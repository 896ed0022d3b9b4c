"""Contrastive activation addition (Rimsky et al., arXiv 2312.06681): a mean difference of answers' states."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steering.train.auroc import mean_auroc
from steering.train.method import negatives_needed
from steering.train.result import Evidence, Trained
from steering.vector import Array, SteeringVector

_Wide = NDArray[np.float64]


def caa(
    positive: Array,
    negative: Array | None,
    layers: tuple[int, ...],
    norms: Sequence[float] | NDArray[np.floating[Any]],
    *,
    folds: int = 5,
) -> Trained:
    """`v = mean over pairs of (positive - negative)` at each layer.

    `positive` and `negative` are `[pairs, layers, hidden]`: the mean state of each text over the positions
    that predict its answer. `norms` is `[layers]`, the mean ‖h‖ there. The vector comes from all pairs, its
    AUROC from every `folds`-th pair in turn, by a vector of the others.
    """
    if negative is None:
        raise ValueError(f"the pairs have no negative answers; {negatives_needed('caa')}")
    if positive.shape != negative.shape or positive.ndim != 3 or not len(positive):
        raise ValueError(f"states are [pairs, layers, hidden], not {positive.shape} and {negative.shape}")
    if not positive.shape[1] == len(layers) == len(norms):
        raise ValueError(f"{positive.shape[1]} layers of states, {len(layers)} layers, {len(norms)} norms")
    splits = _splits(len(positive), folds)
    directions, evidence = {}, {}
    for axis, layer in enumerate(layers):
        above, below = positive[:, axis].astype(np.float64), negative[:, axis].astype(np.float64)
        direction = (above - below).mean(axis=0)
        norm = float(np.linalg.norm(direction))
        directions[layer] = direction.astype(np.float32)
        evidence[layer] = Evidence(
            norm=norm,
            relative_dose=norm / float(norms[axis]),
            pairs=len(above),
            cosine=mean_cosine(above - below),
            auroc=mean_auroc([_scores(above, below, split) for split in splits]),
        )
    return Trained(SteeringVector.of(directions), evidence)


def mean_cosine(differences: _Wide) -> float | None:
    """Mean cosine over all couples of rows: how far the pairs agree. Rows of zeros have no direction."""
    lengths = np.linalg.norm(differences, axis=1, keepdims=True)
    units = differences[lengths[:, 0] > 0] / lengths[lengths[:, 0] > 0]
    count = len(units)
    if count < 2:
        return None
    # The square of the sum holds each couple twice and each row with itself once.
    return float((np.sum(units.sum(axis=0) ** 2) - count) / (count * (count - 1)))


def _splits(count: int, folds: int) -> list[NDArray[np.bool_]]:
    """Masks of the pairs held out. Folds are interleaved: data sets are often ordered by topic."""
    folds = min(folds, count)
    return [np.arange(count) % folds == fold for fold in range(folds)] if folds > 1 else []


def _scores(above: _Wide, below: _Wide, held: NDArray[np.bool_]) -> tuple[_Wide, _Wide]:
    direction = (above[~held] - below[~held]).mean(axis=0)
    return above[held] @ direction, below[held] @ direction
