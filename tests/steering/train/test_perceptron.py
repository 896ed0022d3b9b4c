import math

import numpy as np
import pytest
import torch

from steering import ops
from steering.train.logistic import fit, platt
from steering.train.perceptron import perceptrons
from steering.train.states import TokenStates
from steering.vector import SteeringVector


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def newton(rows, targets, weights, l2):
    """Logistic regression by Newton's method in float64, the reference."""
    x = np.hstack([rows, np.ones((len(rows), 1))])
    weights = weights / weights.sum()
    penalty = np.diag([l2] * rows.shape[1] + [0.0])
    found = np.zeros(x.shape[1])
    for _ in range(50):
        p = sigmoid(x @ found)
        gradient = x.T @ (weights * (p - targets)) + penalty @ found
        hessian = x.T @ (x * (weights * p * (1 - p))[:, None]) + penalty
        found -= np.linalg.solve(hessian, gradient)
    return found


def texts(count, tokens, hidden, shift, seed):
    """`count` texts of `tokens` states each, moved by `shift` along the first dimension."""
    random = np.random.default_rng(seed)
    rows = random.normal(size=(count, tokens, hidden)).astype(np.float32)
    rows[:, :, 0] += np.float32(shift)
    return TokenStates.of(list(rows))


@pytest.mark.parametrize("l2", [0.001, 0.1])
def test_fit_equals_newtons_method(l2):
    """Weight and bias agree with an independent solver, soft targets and weights included."""
    random = np.random.default_rng(1)
    rows, targets = random.normal(size=(300, 7)), random.uniform(size=300)
    targets[rows[:, 2] > 0.3] = 1.0
    weights = random.uniform(0.5, 2.0, 300)
    found = fit(rows, targets, weights, l2)
    np.testing.assert_allclose([*found.weight, found.bias], newton(rows, targets, weights, l2), atol=1e-5)


def test_calibration_recovers_the_slope():
    """Scores that are log-odds but for a factor and a shift are brought back to log-odds."""
    random = np.random.default_rng(2)
    odds = random.normal(size=20_000) * 2
    classes = random.uniform(size=20_000) < sigmoid(odds)
    slope, intercept = platt(odds / 3 - 1, classes)
    assert slope == pytest.approx(3.0, rel=0.1)
    assert intercept == pytest.approx(3.0, rel=0.1)
    assert math.isfinite(platt(np.array([-1.0, -2, 1, 2]), np.array([False, False, True, True]))[0])


def test_the_unit_reads_the_trait_and_the_direction_is_the_mean_difference():
    """On classes apart along one dimension the gate opens for one and closes for the other."""
    positive, negative = texts(20, 8, 12, 1.5, 3), texts(20, 8, 12, -1.5, 4)
    trained = perceptrons({5: positive}, {5: negative})
    layer, evidence = trained.vector.layers[5], trained.evidence[5]
    expected = positive.rows.mean(0, dtype=np.float64) - negative.rows.mean(0, dtype=np.float64)
    np.testing.assert_allclose(layer.direction, expected, rtol=1e-5, atol=1e-6)
    gates = [
        ops.probe_gate(
            torch.from_numpy(states.rows),
            torch.from_numpy(layer.probe.weight),
            layer.probe.bias,
            layer.probe.slope,
        ).mean()
        for states in (positive, negative)
    ]
    assert gates[0] > 0.8
    assert gates[1] < 0.2
    assert evidence.auroc > 0.96
    # Two Gaussians 3 apart: nobody can do much better than their own log-odds.
    bayes = np.logaddexp(0, -3 * positive.rows[:, 0].astype(float)).mean()
    assert evidence.log_loss == pytest.approx(bayes, abs=0.05)
    assert evidence.relative_dose == pytest.approx(
        np.linalg.norm(expected) * 2 / (positive.mean_norm + negative.mean_norm), rel=1e-5
    )


def test_evidence_does_not_come_from_the_same_texts():
    """Texts that can only be told by heart, not by class, give no better evidence than chance."""
    random = np.random.default_rng(5)
    signatures = random.normal(size=(2, 60, 1, 40)) * 5
    rows = (signatures + 0.01 * random.normal(size=(2, 60, 10, 40))).astype(np.float32)
    evidence = perceptrons({0: TokenStates.of(list(rows[0]))}, {0: TokenStates.of(list(rows[1]))}).evidence[0]
    assert abs(evidence.auroc - 0.5) < 0.15
    assert evidence.log_loss == pytest.approx(math.log(2), abs=0.1)


def test_unbalanced_background_does_not_move_the_threshold():
    """Four times as many background tokens leave the gate's middle where it was."""
    positive = texts(30, 8, 6, 1.0, 6)
    few = perceptrons({0: positive}, {0: texts(30, 8, 6, -1.0, 7)}).vector.layers[0].probe
    many = perceptrons({0: positive}, {0: texts(120, 8, 6, -1.0, 8)}).vector.layers[0].probe
    middles = [-probe.bias / probe.weight[0] for probe in (few, many)]
    assert middles[0] == pytest.approx(0.0, abs=0.2)
    assert middles[1] == pytest.approx(middles[0], abs=0.2)


def test_too_few_texts_are_refused():
    """One text of a class leaves nothing to hold out."""
    with pytest.raises(ValueError, match="layer 0: at least two texts"):
        perceptrons({0: texts(1, 9, 2, 1, 0)}, {0: texts(5, 9, 2, -1, 1)})
    with pytest.raises(ValueError, match="same layers"):
        perceptrons({0: texts(3, 9, 2, 1, 0)}, {1: texts(3, 9, 2, -1, 1)})


def test_the_vector_survives_its_file():
    """Probes come back from safetensors as they were."""
    vector = perceptrons({0: texts(4, 3, 2, 1, 0)}, {0: texts(4, 3, 2, -1, 1)}).vector
    again = SteeringVector.from_blob(vector.blob)
    assert again.digest == vector.digest
    np.testing.assert_array_equal(again.layers[0].probe.weight, vector.layers[0].probe.weight)
