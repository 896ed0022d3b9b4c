"""How often A/B tests end, rightly and wrongly, when they are looked at after every score."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from server import ab_statistics, always_valid
from server.ab_report import Sample
from tests.bench.ab_power import (
    ALPHA,
    START,
    exponential,
    lognormal,
    means,
    normal,
    proportion,
    sessions,
    wins,
)

RUNS = 2000


def at_most_alpha(share: float) -> bool:
    """But for what chance adds to a rate of exactly alpha, once in a thousand times."""
    return share * RUNS <= stats.binom.ppf(0.999, RUNS, ALPHA)


@pytest.mark.parametrize(
    "draw", [normal(), exponential(), lognormal], ids=["normal", "exponential", "lognormal"]
)
def test_variants_with_scores_alike_end_with_a_winner_at_most_alpha_of_the_time(draw):
    assert at_most_alpha(means([draw, draw], scores=1000, runs=RUNS, seed=11).won())


@pytest.mark.parametrize("share", [0.5, 0.05, 0.01])
def test_variants_with_proportions_alike_end_with_a_winner_at_most_alpha_of_the_time(share):
    draws = [proportion(share)] * 2
    assert at_most_alpha(means(draws, scores=1000, runs=RUNS, seed=12, binary=True).won())


def test_variants_that_are_equally_preferred_end_with_a_winner_at_most_alpha_of_the_time():
    assert at_most_alpha(wins(0.5, scores=1000, runs=RUNS, seed=13).won())


def test_variants_whose_scores_vary_differently_about_one_mean_end_at_most_alpha_of_the_time():
    draws = [normal(1.0), exponential()]
    assert at_most_alpha(means(draws, scores=1000, runs=RUNS, seed=14).won())


@pytest.mark.parametrize("count", [3, 5])
def test_several_variants_alike_end_with_a_winner_at_most_alpha_of_the_time(count):
    assert at_most_alpha(means([normal()] * count, scores=500, runs=RUNS, seed=15).won())


def test_the_worst_of_three_variants_wins_at_most_alpha_of_the_time():
    draws = [normal(), normal(), normal(-0.02)]
    assert at_most_alpha(means(draws, scores=500, runs=RUNS, seed=16).won(2))


def test_the_standard_test_looked_at_always_is_wrong_far_more_often_than_alpha():
    """So that these simulations do tell a rule that holds from one that does not."""
    assert means([normal()] * 2, scores=1000, runs=RUNS, seed=11, naive=True).won() > 0.3
    assert wins(0.5, scores=1000, runs=RUNS, seed=13, naive=True).won() > 0.3


@pytest.mark.parametrize(
    ("effect", "scores", "power"), [(0.5, 200, 0.97), (0.3, 500, 0.94), (0.2, 1000, 0.93), (0.1, 1000, 0.25)]
)
def test_a_better_variant_wins_within_so_many_scores(effect, scores, power):
    ends = means([normal(), normal(effect)], scores=scores, runs=RUNS, seed=17)
    assert ends.won(1) >= power
    assert ends.won(0) <= ALPHA / 2


@pytest.mark.parametrize(("share", "scores", "power"), [(0.7, 200, 0.99), (0.6, 500, 0.92)])
def test_a_preferred_variant_wins_within_so_many_comparisons(share, scores, power):
    assert wins(share, scores=scores, runs=RUNS, seed=18).won(1) >= power


def test_of_two_proportions_the_greater_wins():
    draws = [proportion(0.5), proportion(0.6)]
    assert means(draws, scores=1000, runs=RUNS, seed=19, binary=True).won(1) >= 0.93


def test_scores_of_one_session_taken_for_independent_are_wrong_more_often_than_alpha():
    """Which is why a session is one unit."""
    together = means([sessions(4)] * 2, scores=500, runs=RUNS, seed=20)
    assert at_most_alpha(together.won())

    def apart(random, shape):
        common = random.normal(size=(shape[0], shape[1] // 4, 1)) * 1.5
        return (common + random.normal(size=(*common.shape[:2], 4))).reshape(shape)

    assert not at_most_alpha(means([apart] * 2, scores=1000, runs=RUNS, seed=20).won())


@pytest.mark.parametrize("binary", [False, True])
def test_the_simulated_rule_is_the_one_that_ends_tests(binary):
    draws = [proportion(0.4), proportion(0.6)] if binary else [normal(), normal(0.5)]
    ends = means(draws, scores=300, runs=1, seed=21, binary=binary)
    assert ends.winners[0] == 1
    random = np.random.default_rng(21)
    values = [draw(random, (1, 300))[0] for draw in draws]

    def winner(count):
        samples = [
            Sample(name, count, count, float(each[:count].mean()), float(each[:count].var(ddof=1)))
            for name, each in zip("ab", values, strict=True)
        ]
        return ab_statistics.of_direct_scores(
            samples, binary=binary, higher_is_better=True, alpha=ALPHA, min_scores=START
        ).winner

    assert winner(ends.scores[0]) == "b"
    assert winner(ends.scores[0] - 1) is None


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (7, 3), (60, 90), (400, 320)])
def test_wins_are_weighed_by_the_beta_mixture_of_their_likelihoods(won, lost):
    concentration = (1 / always_valid.SPREAD**2 - 1) / 2

    def weighed(share):
        ratio = stats.binom.pmf(won, won + lost, share) / stats.binom.pmf(won, won + lost, 0.5)
        return ratio * stats.beta.pdf(share, concentration, concentration)

    ratio, _ = integrate.quad(weighed, 0, 1, points=[0.4, 0.5, 0.6])
    assert always_valid.of_wins(won, lost) == pytest.approx(min(1, 1 / ratio), rel=1e-6)


@pytest.mark.parametrize(("difference", "first", "second"), [(0.0, 50, 50), (0.4, 100, 60), (-0.9, 40, 400)])
def test_means_are_weighed_by_the_normal_mixture_of_their_likelihoods(difference, first, second):
    error = math.sqrt(1 / first + 1 / second)

    def weighed(effect):
        ratio = stats.norm.pdf(difference, effect, error) / stats.norm.pdf(difference, 0, error)
        return ratio * stats.norm.pdf(effect, 0, always_valid.SPREAD)

    ratio, _ = integrate.quad(weighed, -4, 4, points=[0, difference], limit=200)
    found = always_valid.of_means(difference, error**2, first, second)
    assert found == pytest.approx(min(1, 1 / ratio), rel=1e-6)
