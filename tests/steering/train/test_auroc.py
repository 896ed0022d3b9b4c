import numpy as np
import pytest

from steering.train.auroc import auroc, mean_auroc


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_count_over_all_couples(seed):
    """The share of couples in the right order, ties counted half, as two loops count them."""
    random = np.random.default_rng(seed)
    above, below = random.integers(0, 6, 17) + 1.0, random.integers(0, 6, 23) * 1.0
    count = sum((a > b) + 0.5 * (a == b) for a in above for b in below)
    assert auroc(above, below) == pytest.approx(count / (17 * 23), abs=1e-12)


def test_folds_count_by_their_positives():
    """Couples are compared within a fold; a fold of one class alone does not count."""
    one, empty = np.array([1.0]), np.array([])
    folds = [(one, one - 1), (np.array([1.0, 1, 1]), one + 1), (empty, one)]
    assert mean_auroc(folds) == pytest.approx(0.25)
    assert mean_auroc([(one, empty)]) is None
