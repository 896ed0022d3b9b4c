import numpy as np
import pytest

from steering.train.states import TokenStates


def test_means_are_per_text():
    """The mean over each text's tokens, in the order of the texts' numbers, gaps in these included."""
    rows = np.arange(10, dtype=np.float32).reshape(5, 2)
    states = TokenStates(rows, np.array([4, 0, 4, 0, 4]))
    assert states.numbers.tolist() == [0, 4]
    np.testing.assert_allclose(states.means(), [rows[[1, 3]].mean(0), rows[[0, 2, 4]].mean(0)])
    np.testing.assert_allclose(states.means(rows[:, :1] * 2)[:, 0], states.means()[:, 0] * 2)
    assert TokenStates.of([rows[:2], rows[2:]]).texts.tolist() == [0, 0, 1, 1, 1]


def test_bad_states_are_refused():
    """No tokens, another number of texts, or values that are not finite are errors."""
    with pytest.raises(ValueError, match="with a text each"):
        TokenStates(np.zeros((0, 2), np.float32), np.zeros(0, np.int64))
    with pytest.raises(ValueError, match="with a text each"):
        TokenStates(np.zeros((2, 2), np.float32), np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="not finite"):
        TokenStates(np.full((1, 2), np.inf, np.float32), np.zeros(1, np.int64))
