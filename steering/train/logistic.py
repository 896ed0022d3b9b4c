"""Logistic regression, small and exact: float64 and L-BFGS to the one minimum there is."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Wide = NDArray[np.float64]

_ITERATIONS = 500


@dataclass(frozen=True)
class Logistic:
    """P(positive) = sigmoid(x·weight + bias)."""

    weight: Wide
    bias: float

    def scores(self, rows: Wide) -> Wide:
        """Log-odds, `[n]`."""
        return np.asarray(rows @ self.weight + self.bias, np.float64)


def fit(rows: Wide, targets: Wide, weights: Wide, l2: float) -> Logistic:
    """Minimises `Σ weights · log loss / Σ weights + l2/2 ‖weight‖²`, the bias free; targets are in [0, 1]."""
    x, y = torch.from_numpy(np.ascontiguousarray(rows, np.float64)), torch.from_numpy(targets)
    importance = torch.from_numpy(weights / weights.sum())
    parameters = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [parameters],
        max_iter=_ITERATIONS,
        tolerance_grad=1e-8,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        scores = x @ parameters[:-1] + parameters[-1]
        surprisal = torch.nn.functional.softplus(scores) - y * scores
        value = (importance * surprisal).sum() + 0.5 * l2 * parameters[:-1].square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    found = parameters.detach().numpy()
    return Logistic(found[:-1].copy(), float(found[-1]))


def balanced(positive: NDArray[np.bool_]) -> Wide:
    """Weights under which both classes count the same, whatever their sizes."""
    share = positive.mean()
    return np.where(positive, 0.5 / share, 0.5 / (1.0 - share)).astype(np.float64)


def log_loss(scores: Wide, positive: NDArray[np.bool_]) -> float:
    """Mean -log P(class), both classes weighing the same."""
    surprisal = np.logaddexp(0.0, np.where(positive, -scores, scores))
    return float(np.average(surprisal, weights=balanced(positive)))


def platt(scores: Wide, positive: NDArray[np.bool_]) -> tuple[float, float]:
    """Slope k and intercept c for which sigmoid(k score + c) is a probability (Platt 1999).

    Targets are drawn in a little from 0 and 1, as there, so that separable scores give a finite slope.
    """
    high, low = positive.sum(), (~positive).sum()
    targets = np.where(positive, (high + 1.0) / (high + 2.0), 1.0 / (low + 2.0))
    fitted = fit(scores[:, None], targets, balanced(positive), l2=0.0)
    return float(fitted.weight[0]), fitted.bias
