"""What is said of curves whose numbers are known."""

import numpy as np
import pytest

from server.dose_response import Curve, as_long_as, random_like, spearman, summary
from steering.vector import SteeringVector

ROW = np.array([1, 2, 3], np.float32)
VECTOR = SteeringVector.of({3: ROW, 8: ROW, 9: ROW, 10: ROW})


def curve(*rows):
    return Curve((-1.0, 0.0, 1.0), np.array(rows, np.float64), (1.0, 0.0, 1.0))


def test_an_effect_that_is_noise_beats_nothing():
    """The interval of a shift that random vectors reach as well holds 0, above all with few of them."""
    rng = np.random.default_rng(1)
    flat = np.zeros(40)
    noise = [curve(flat, flat, rng.normal(shift, 0.1, 40)) for shift in (0.3, -0.3, 0.1)]
    found = summary(curve(flat, flat, rng.normal(0.2, 0.1, 40)), {"random": noise})
    top = found.points[2]
    assert top.shift.beats_zero(1)
    assert not top.against["random"].beats_zero(1)
    assert top.against["random"].low < top.against["random"].mean < top.against["random"].high


def test_an_interval_has_its_width():
    """A bootstrap interval of a mean is about 1.96 standard errors to each side."""
    shifts = np.random.default_rng(0).normal(1, 1, 400)
    top = summary(curve(shifts * 0, shifts * 0, shifts), {}).points[2].shift
    assert (top.high - top.low) / 2 == pytest.approx(1.96 * shifts.std() / 20, rel=0.1)
    assert top.mean == pytest.approx(shifts.mean())


def test_contrary_pairs_are_counted_by_the_sign_of_the_strength():
    """Below 0 a pair is contrary whose margin rises; anti-steerable is one whose line falls."""
    found = summary(curve([1, 1, 0, -1], [0, 0, 0, 0], [1, -1, 0, 2]), {})
    assert [point.contrary for point in found.points] == [0.5, None, 0.25]
    assert found.anti_steerable == 0.25


@pytest.mark.parametrize(
    ("x", "y", "rank"),
    [
        ([1, 2, 3], [1, 10, 11], 1),
        ([1, 2, 3], [3, 2, 1], -1),
        ([1, 2, 3], [5, 5, 5], 0),
        ([1, 2, 3, 4], [1, 2, 2, 3], 0.9486833),
    ],
)
def test_spearman_compares_ranks(x, y, rank):
    """Only the order counts, equal values share a rank, and what never changes has no correlation."""
    assert spearman(np.array(x, float), np.array(y, float)) == pytest.approx(rank)


def test_random_directions_keep_the_lengths():
    """A control is as long as the vector at each of its layers, and another one each time."""
    rng = np.random.default_rng(0)
    one, other = random_like(VECTOR, rng), random_like(VECTOR, rng)
    assert one.norms == pytest.approx(VECTOR.norms, rel=1e-5)
    assert one.digest != other.digest
    rows = {layer: np.ones(3, np.float32) for layer in VECTOR.layers}
    assert as_long_as(VECTOR, rows).norms == pytest.approx(VECTOR.norms, rel=1e-5)
