"""Reports of A/B tests against scipy's tests of the raw scores."""

import math

import numpy as np
import pytest
from scipy import stats

from server.ab_report import Sample, Tally
from server.ab_statistics import of_comparisons, of_direct_scores
from tests.bench.ab_power import coverage, exponential, normal, proportion

RANDOM = np.random.default_rng(4)


def sample(model, values, scores=None):
    values = np.asarray(values, float)
    variance = float(values.var(ddof=1)) if len(values) > 1 else 0.0
    mean = float(values.mean()) if len(values) else 0.0
    return Sample(model, len(values) if scores is None else scores, len(values), mean, variance)


def report(*samples, binary=False, higher=True, alpha=0.05, least=30):
    return of_direct_scores(samples, binary=binary, higher_is_better=higher, alpha=alpha, min_scores=least)


def compared(models, *tallies, alpha=0.05, least=30):
    return of_comparisons(models, tallies, alpha=alpha, min_scores=least)


def test_two_variants_are_compared_by_welchs_t_test():
    first, second = RANDOM.normal(1, 1, 40), RANDOM.normal(1.4, 3, 90)
    expected = stats.ttest_ind(first, second, equal_var=False).pvalue
    assert report(sample("a", first), sample("b", second)).p_value == pytest.approx(expected)


def test_three_variants_are_compared_by_welchs_analysis_of_variance():
    groups = RANDOM.normal(1, 1, 40), RANDOM.normal(1.4, 3, 90), RANDOM.normal(2, 2, 25)
    found = report(*(sample(name, group) for name, group in zip("abc", groups, strict=True)))
    assert found.p_value == pytest.approx(stats.f_oneway(*groups, equal_var=False).pvalue)


def test_pairs_of_variants_are_adjusted_by_holms_method():
    groups = RANDOM.normal(1, 1, 40), RANDOM.normal(1.4, 1, 40), RANDOM.normal(1.5, 1, 40)
    raw = [
        stats.ttest_ind(groups[first], groups[second], equal_var=False).pvalue
        for first, second in ((0, 1), (0, 2), (1, 2))
    ]
    found = report(*(sample(name, group) for name, group in zip("abc", groups, strict=True)))
    adjusted = [pair.p_value for pair in found.pairs]
    ranks = np.argsort(raw)
    expected = np.minimum(1, np.maximum.accumulate(np.asarray(raw)[ranks] * [3, 2, 1]))
    assert [adjusted[rank] for rank in ranks] == pytest.approx(list(expected))
    assert [(pair.first, pair.second) for pair in found.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]


def test_proportions_are_compared_by_the_chi_squared_test_without_correction():
    first, second = [1] * 30 + [0] * 20, [1] * 50 + [0] * 10
    both, error = 80 / 110, math.sqrt(80 / 110 * 30 / 110 * (1 / 50 + 1 / 60))
    z = (30 / 50 - 50 / 60) / error  # the two-proportion test, whose square it is
    found = report(sample("a", first), sample("b", second), binary=True)
    assert both > 0.5
    assert found.p_value == pytest.approx(2 * stats.norm.sf(abs(z)))


def test_few_successes_are_compared_by_fishers_exact_test():
    found = report(sample("a", [1] * 1 + [0] * 9), sample("b", [1] * 4 + [0] * 8), binary=True)
    assert found.p_value == pytest.approx(stats.fisher_exact([[1, 4], [9, 8]]).pvalue)


def test_three_proportions_are_compared_together():
    found = report(
        *(sample(name, [1] * won + [0] * (60 - won)) for name, won in zip("abc", (20, 30, 40), strict=True)),
        binary=True,
    )
    table = [[20, 30, 40], [40, 30, 20]]
    assert found.p_value == pytest.approx(stats.chi2_contingency(table).pvalue)


def test_means_of_sessions_of_a_bool_metric_are_no_proportions():
    first, second = [1, 0.5, 0.5, 1, 1, 0, 1, 0.5], [0.5, 0, 0, 0.5, 1, 0, 0, 0]
    found = report(sample("a", first, scores=12), sample("b", second, scores=11), binary=True)
    assert found.p_value == pytest.approx(stats.ttest_ind(first, second, equal_var=False).pvalue)
    assert [variant.scores for variant in found.variants] == [12, 11]
    assert found.scores == 23


def test_an_interval_of_a_mean_is_students():
    values = RANDOM.normal(5, 2, 20)
    interval = report(sample("a", values), sample("b", values)).variants[0].interval
    low, high = stats.t.interval(0.95, 19, loc=values.mean(), scale=stats.sem(values))
    assert (interval.start, interval.middle, interval.end) == pytest.approx((low, values.mean(), high))


def test_an_interval_of_a_proportion_is_wilsons_and_stays_within_it():
    none = report(sample("a", [0] * 40), sample("b", [1] * 40), binary=True).variants[0].interval
    z = stats.norm.isf(0.025)
    assert none.start == pytest.approx(0, abs=1e-12)
    assert none.end == pytest.approx(z**2 / (40 + z**2))


@pytest.mark.parametrize(
    ("draw", "mean", "scores", "binary", "least"),
    [
        (normal(3.0), 3.0, 30, False, 0.95),
        (exponential(), 1.0, 200, False, 0.94),
        (proportion(0.5), 0.5, 50, True, 0.95),
        (proportion(0.1), 0.1, 200, True, 0.95),
    ],
    ids=["normal", "exponential", "half", "tenth"],
)
def test_intervals_have_the_true_mean_in_them_as_often_as_they_say(draw, mean, scores, binary, least):
    runs = 1000
    covered = coverage(draw, mean, scores=scores, runs=runs, seed=5, binary=binary) * runs
    assert stats.binom.ppf(0.001, runs, least) <= covered <= stats.binom.ppf(0.9999, runs, 0.97)


def test_without_enough_scores_of_each_variant_none_wins():
    first, second = RANDOM.normal(0, 1, 29), RANDOM.normal(5, 1, 300)
    few = report(sample("a", first), sample("b", second))
    assert (few.winner, few.has_enough_scores) == (None, False)
    assert few.sequential_p_value < 0.001
    assert report(sample("a", first), sample("b", second), least=29).winner == "b"


def test_of_a_metric_whose_lower_values_are_better_the_least_mean_wins():
    first, second = sample("a", RANDOM.normal(0, 1, 80)), sample("b", RANDOM.normal(5, 1, 80))
    assert report(first, second).winner == "b"
    assert report(first, second, higher=False).winner == "a"


def test_a_winner_beats_each_of_the_others():
    low, high = sample("a", RANDOM.normal(0, 1, 200)), sample("b", RANDOM.normal(2, 1, 200))
    as_high = sample("c", RANDOM.normal(2, 1, 200))
    assert report(low, high, as_high).winner is None
    assert report(low, high, as_high).p_value < 0.001
    assert report(low, high, sample("c", RANDOM.normal(1, 1, 200))).winner == "b"


@pytest.mark.parametrize("binary", [False, True])
def test_scores_that_are_all_the_same_tell_no_difference(binary):
    alike = report(sample("a", [1] * 50), sample("b", [1] * 60), binary=binary)
    assert (alike.p_value, alike.sequential_p_value, alike.winner) == (1.0, 1.0, None)


def test_equal_scores_whose_means_were_rounded_differently_tell_no_difference():
    nearly = Sample("b", 50, 50, 0.1 + 2e-17 * 2, 1e-34)
    alike = report(Sample("a", 50, 50, 0.1, 0.0), nearly)
    assert (alike.p_value, alike.sequential_p_value) == (1.0, 1.0)


def test_variants_that_always_get_different_scores_differ():
    apart = report(sample("a", [4] * 50), sample("b", [5] * 50), sample("c", [3] * 50))
    assert (apart.p_value, apart.sequential_p_value, apart.winner) == (0.0, 0.0, "b")


def test_a_variant_without_scores_leaves_all_open():
    found = report(sample("a", RANDOM.normal(0, 1, 50)), sample("b", []), sample("c", [1.0]))
    assert (found.p_value, found.sequential_p_value, found.winner) == (None, None, None)
    assert [variant.interval is None for variant in found.variants] == [False, True, True]


def test_one_variant_alone_has_nothing_to_beat():
    found = report(sample("a", RANDOM.normal(0, 1, 50)))
    assert (found.p_value, found.has_enough_scores, found.winner) == (None, False, None)
    assert compared(["a"]).winner is None


def test_comparisons_are_judged_by_the_sign_test_without_their_ties():
    found = compared(["a", "b"], Tally("a", "b", wins=8, losses=21, ties_good=5, ties_bad=2))
    assert found.p_value == pytest.approx(stats.binomtest(8, 29).pvalue)
    assert found.scores == 36


def test_ties_count_among_the_scores_that_there_have_to_be():
    assert not compared(["a", "b"], Tally("a", "b", wins=1, losses=28)).has_enough_scores
    found = compared(["a", "b"], Tally("a", "b", wins=1, losses=28, ties_good=1))
    assert (found.has_enough_scores, found.winner) == (True, "b")


def test_each_variant_sees_its_comparisons_from_its_own_side():
    found = compared(["a", "b"], Tally("b", "a", wins=8, losses=3, ties_good=2, ties_bad=1))
    first, second = found.variants
    assert first.comparisons == [Tally("a", "b", wins=3, losses=8, ties_good=2, ties_bad=1)]
    assert second.comparisons == [Tally("b", "a", wins=8, losses=3, ties_good=2, ties_bad=1)]
    assert (first.scores, second.scores, first.interval.middle) == (14, 14, 3 / 11)


def test_the_best_of_three_is_preferred_to_each_of_the_others():
    ahead = [Tally("a", "b", wins=70, losses=30), Tally("c", "a", wins=20, losses=80)]
    assert compared(["a", "b", "c"], *ahead).winner is None  # nobody compared the others
    assert compared(["a", "b", "c"], *ahead, Tally("b", "c", wins=50, losses=50)).winner == "a"
    rounds = Tally("a", "b", wins=70, losses=30), Tally("b", "c", wins=70, losses=30)
    found = compared(["a", "b", "c"], *rounds, Tally("c", "a", wins=70, losses=30))
    assert (found.winner, found.sequential_p_value) == (None, 1.0)


def test_comparisons_that_are_all_ties_decide_nothing():
    found = compared(["a", "b"], Tally("a", "b", ties_good=40, ties_bad=40))
    assert (found.p_value, found.sequential_p_value, found.winner) == (None, None, None)
    assert found.variants[0].interval is None
