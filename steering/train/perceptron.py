"""Steering perceptrons: a logistic unit per layer that reads the trait from a token's state.

The difference of means is added, more or less as the unit says (`Probe`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steering.train.auroc import mean_auroc
from steering.train.logistic import Logistic, Wide, balanced, fit, log_loss, platt
from steering.train.result import Evidence, Trained
from steering.train.states import TokenStates
from steering.vector import Layer, Probe, SteeringVector

_LEAST_SLOPE = 1e-3


@dataclass(frozen=True, slots=True)
class Options:
    """`l2` penalises the weight on standardised states; `folds` texts-wise folds calibrate the unit."""

    l2: float = 0.03
    folds: int = 5


def perceptrons(
    positive: Mapping[int, TokenStates],
    negative: Mapping[int, TokenStates],
    options: Options | None = None,
    on_layer: Callable[[int], None] = lambda _layer: None,
) -> Trained:
    """A direction and a calibrated probe for each layer of both mappings.

    Where pairs have no negatives, states of unrelated text serve as such. `on_layer` hears of each layer
    done.
    """
    if positive.keys() != negative.keys():
        raise ValueError("both classes need states of the same layers")
    layers: dict[int, Layer] = {}
    evidence: dict[int, Evidence] = {}
    for index in sorted(positive):
        layers[index], evidence[index] = _layer(positive[index], negative[index], options or Options(), index)
        on_layer(index)
    return Trained(SteeringVector(layers), evidence)


def _layer(
    positive: TokenStates, negative: TokenStates, options: Options, index: int
) -> tuple[Layer, Evidence]:
    rows = np.concatenate([positive.rows, negative.rows]).astype(np.float64)
    classes = np.arange(len(rows)) < len(positive.rows)
    texts = np.concatenate([positive.texts, negative.texts])
    fold_of = texts % max(2, min(options.folds, len(positive.numbers)))
    held = _held_out(rows, classes, fold_of, options.l2)
    if held is None:
        raise ValueError(f"layer {index}: at least two texts of each class are needed")
    probe = _probe(_unit(rows, classes, options.l2), *platt(held, classes))
    direction = positive.means().mean(axis=0) - negative.means().mean(axis=0)
    norm = float(np.linalg.norm(direction))
    folds = [held[fold_of == fold] for fold in np.unique(fold_of)]
    sides = [classes[fold_of == fold] for fold in np.unique(fold_of)]
    evidence = Evidence(
        norm=norm,
        relative_dose=norm * 2 / (positive.mean_norm + negative.mean_norm),
        pairs=len(positive.numbers),
        auroc=mean_auroc([(fold[side], fold[~side]) for fold, side in zip(folds, sides, strict=True)]),
        log_loss=_calibrated_loss(held, classes, fold_of),
    )
    return Layer(direction.astype(np.float32), probe), evidence


def _unit(rows: Wide, classes: NDArray[np.bool_], l2: float) -> Logistic:
    """Fitted on standardised states: the penalty means the same for each dimension, large ones included."""
    mean, spread = rows.mean(axis=0), rows.std(axis=0)
    spread[spread == 0] = 1.0
    unit = fit((rows - mean) / spread, classes.astype(np.float64), balanced(classes), l2)
    weight = unit.weight / spread
    return Logistic(weight, unit.bias - float(mean @ weight))


def _held_out(rows: Wide, classes: NDArray[np.bool_], fold_of: NDArray[np.int64], l2: float) -> Wide | None:
    """The log-odds of each token by a unit that saw nothing of its text, nor of that text's counterpart."""
    scores = np.empty(len(rows))
    for fold in np.unique(fold_of):
        held = fold_of == fold
        if len(np.unique(classes[~held])) < 2:
            return None
        scores[held] = _unit(rows[~held], classes[~held], l2).scores(rows[held])
    return scores


def _probe(unit: Logistic, slope: float, intercept: float) -> Probe:
    """sigmoid(slope (weight·x + bias)). A unit that failed on held-out texts hardly opens nor closes."""
    shift = intercept / slope if slope > _LEAST_SLOPE else 0.0
    return Probe(unit.weight.astype(np.float32), unit.bias + shift, max(slope, _LEAST_SLOPE))


def _calibrated_loss(scores: Wide, classes: NDArray[np.bool_], fold_of: NDArray[np.int64]) -> float | None:
    """Log loss of each fold under the calibration found on the others."""
    calibrated = np.empty(len(scores))
    for fold in np.unique(fold_of):
        held = fold_of == fold
        if len(np.unique(classes[~held])) < 2:
            return None
        slope, intercept = platt(scores[~held], classes[~held])
        calibrated[held] = slope * scores[held] + intercept
    return log_loss(calibrated, classes)
