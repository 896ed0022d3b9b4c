from itertools import combinations

import numpy as np
import pytest

from steering.train.caa import caa
from steering.vector import VectorError


def states(pairs=12, layers=3, hidden=16, shift=0.8, seed=0):
    random = np.random.default_rng(seed)
    negative = random.normal(size=(pairs, layers, hidden)).astype(np.float32)
    positive = random.normal(size=(pairs, layers, hidden)).astype(np.float32)
    positive[:, :, 0] += np.float32(shift)
    return positive, negative


def cosine(a, b):
    return a @ b / np.sqrt((a @ a) * (b @ b))


def test_vector_is_the_mean_difference():
    """Each layer's direction equals the mean of differences, written here as a loop in float64."""
    positive, negative = states()
    trained = caa(positive, negative, (4, 7, 2), [10.0, 20.0, 30.0])
    for axis, (layer, scale) in enumerate([(4, 10.0), (7, 20.0), (2, 30.0)]):
        expected = np.zeros(16, np.float64)
        for above, below in zip(positive, negative, strict=True):
            expected += (above[axis].astype(np.float64) - below[axis].astype(np.float64)) / 12
        np.testing.assert_allclose(trained.vector.layers[layer].direction, expected, rtol=1e-6, atol=1e-7)
        evidence = trained.evidence[layer]
        assert evidence.norm == pytest.approx(np.sqrt((expected**2).sum()))
        assert evidence.relative_dose == pytest.approx(evidence.norm / scale)
        assert evidence.pairs == 12


def test_cosine_is_the_mean_over_couples():
    """Agreement of the pairs equals the mean cosine over every couple of single differences."""
    positive, negative = states()
    evidence = caa(positive, negative, (0, 1, 2), [1.0] * 3).evidence[1]
    differences = (positive - negative)[:, 1].astype(np.float64)
    expected = np.mean([cosine(a, b) for a, b in combinations(differences, 2)])
    assert evidence.cosine == pytest.approx(expected)


def test_auroc_comes_from_pairs_the_direction_has_not_seen():
    """It equals the count over folds for vectors of the other pairs; noise alone stays near one half."""
    positive, negative = states(layers=1)
    evidence = caa(positive, negative, (0,), [1.0], folds=4).evidence[0]
    couples = []
    for fold in range(4):
        rest = [index for index in range(12) if index % 4 != fold]
        direction = (positive[rest, 0].astype(np.float64) - negative[rest, 0]).mean(axis=0)
        above, below = positive[fold::4, 0] @ direction, negative[fold::4, 0] @ direction
        couples += [float(one > other) for one in above for other in below]
    assert evidence.auroc == pytest.approx(np.mean(couples))
    noise = caa(*states(pairs=200, layers=1, hidden=64, shift=0.0), (0,), [1.0]).evidence[0].auroc
    clear = caa(*states(pairs=200, layers=1, hidden=64, shift=4.0), (0,), [1.0]).evidence[0].auroc
    assert abs(noise - 0.5) < 0.1
    assert clear > 0.95


def test_one_pair_gives_a_vector_and_no_statistics():
    """A single pair is enough for a vector; what needs several is left out."""
    positive, negative = states(pairs=1, layers=1)
    known = caa(positive, negative, (0,), [1.0]).evidence[0].known()
    assert known.keys() == {"norm", "relative_dose", "pairs"}


def test_positives_alone_are_refused():
    """Without negatives the error says which methods do without."""
    with pytest.raises(ValueError, match="few-shot and steering-perceptrons"):
        caa(states()[0], None, (0, 1, 2), [1.0] * 3)


def test_unusable_states_are_refused():
    """Shapes that do not fit, values that are not finite and classes without any difference are errors."""
    positive, negative = states()
    with pytest.raises(ValueError, match="pairs, layers, hidden"):
        caa(positive, negative[:5], (0, 1, 2), [1.0] * 3)
    with pytest.raises(ValueError, match="3 layers of states, 2 layers"):
        caa(positive, negative, (0, 1), [1.0] * 2)
    with pytest.raises(VectorError, match="direction is zero"):
        caa(positive, positive, (0, 1, 2), [1.0] * 3)
    positive[0, 0, 0] = np.nan
    with pytest.raises(VectorError, match="not a finite number"):
        caa(positive, negative, (0, 1, 2), [1.0] * 3)
