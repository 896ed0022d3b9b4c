"""From what was counted of an A/B test to its report. Pure statistics."""

import math
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
from scipy import stats

from server import always_valid
from server.ab_report import Interval, Pair, Report, Sample, Tally, VariantReport

_FEW_EXPECTED = 5  # below which Fisher's exact test takes the place of the chi-squared one (Cochran's rule)


def of_direct_scores(
    samples: Sequence[Sample], *, binary: bool, higher_is_better: bool, alpha: float, min_scores: int
) -> Report:
    """`samples` are of all variants, those without scores too; scores of a `binary` metric are 0 and 1.

    Two variants are compared by Welch's t-test, several by Welch's analysis of variance; proportions by the
    chi-squared test, or of two and with few scores by Fisher's. `min_scores` counts units, of each variant.
    """
    # The mean of a session's several scores need be neither 0 nor 1.
    binary = binary and all(sample.units == sample.scores for sample in samples)
    sequential = _proportions_at_any_time if binary else _means_at_any_time
    pairs = _pairs(
        [sample.model for sample in samples],
        _each_two(samples, _proportions_p if binary else _welch_p),
        _each_two(samples, sequential),
    )
    sign = 1 if higher_is_better else -1
    best = max(samples, key=lambda sample: sign * sample.mean if sample.units else -math.inf)
    return Report(
        p_value=_overall_p(samples, pairs, binary=binary),
        sequential_p_value=(level := _level(best.model, pairs)),
        variants=[
            VariantReport(each.model, each.scores, _mean_interval(each, alpha, binary=binary), None)
            for each in samples
        ],
        pairs=pairs,
        has_enough_scores=(enough := len(samples) > 1 and all(each.units >= min_scores for each in samples)),
        winner=best.model if enough and level is not None and level <= alpha else None,
    )


def of_comparisons(
    models: Sequence[str], tallies: Sequence[Tally], *, alpha: float, min_scores: int
) -> Report:
    """By the sign test. Ties say nothing of which is better, and are left out of it; `min_scores` counts them
    too, of each pair. The best of several variants is preferred to each of the others."""
    seen = {(first, second): Tally(first, second) for first in models for second in models if first != second}
    for each in (side for tally in tallies for side in (tally, tally.turned)):
        if (two := (each.first, each.second)) in seen:
            seen[two] = seen[two].plus(each)
    of_model = {model: [seen[model, other] for other in models if other != model] for model in models}
    each_two = list(combinations(models, 2))
    pairs = _pairs(
        models,
        [_sign_p(seen[two]) for two in each_two],
        [_sign_at_any_time(seen[two]) for two in each_two],
    )
    best = next((model for model in models if all(each.wins > each.losses for each in of_model[model])), None)
    level = _level(best, pairs)
    enough = bool(each_two) and all(seen[two].scores >= min_scores for two in each_two)
    return Report(
        p_value=_least([pair.p_value for pair in pairs]),
        sequential_p_value=level,
        variants=[_compared(model, of_model[model], alpha) for model in models],
        pairs=pairs,
        has_enough_scores=enough,
        winner=best if enough and level is not None and level <= alpha else None,
    )


def _pairs(
    models: Sequence[str], p_values: Sequence[float | None], at_any_time: Sequence[float | None]
) -> Sequence[Pair]:
    """Standard p-values are adjusted by Holm's method.

    A variant wins by beating each of the others. One that is not the best can do so only by beating the best
    too, so that a wrong winner takes one error among the pairs of the best: as many as there are others.
    """
    others = len(models) - 1
    return [
        Pair(first, second, p_value, None if level is None else min(1.0, level * others))
        for (first, second), p_value, level in zip(
            combinations(models, 2), _holm(p_values), at_any_time, strict=True
        )
    ]


def _level(best: str | None, pairs: Sequence[Pair]) -> float | None:
    """At which `best` wins: the greatest of its pairs' p-values. 1 where none is the best."""
    levels = [pair.sequential_p_value for pair in pairs if best is None or best in (pair.first, pair.second)]
    known = [level for level in levels if level is not None]
    if not known or len(known) < len(levels):
        return None
    return 1.0 if best is None else max(known)


def _each_two(
    samples: Sequence[Sample], p_value: Callable[[Sample, Sample], float]
) -> Sequence[float | None]:
    """One unit alone does not show how much they vary."""
    return [
        p_value(first, second) if min(first.units, second.units) > 1 else None
        for first, second in combinations(samples, 2)
    ]


def _least(p_values: Sequence[float | None]) -> float | None:
    known = [p_value for p_value in p_values if p_value is not None]
    return min(known, default=None)


def _holm(p_values: Sequence[float | None]) -> Sequence[float | None]:
    known = sorted((p_value, index) for index, p_value in enumerate(p_values) if p_value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p_value, index) in enumerate(known):
        adjusted[index] = least = max(least, min(1.0, p_value * (len(p_values) - rank)))
    return adjusted


def _welch_p(first: Sample, second: Sample) -> float:
    if _same_mean(first, second):
        return 1.0
    if first.variance == second.variance == 0:  # the test divides by them
        return 0.0
    return float(
        stats.ttest_ind_from_stats(
            first.mean,
            math.sqrt(first.variance),
            first.units,
            second.mean,
            math.sqrt(second.variance),
            second.units,
            equal_var=False,
        ).pvalue
    )


def _proportions_p(*samples: Sample) -> float:
    won = np.array([_successes(sample) for sample in samples])
    table = np.array([won, [sample.units for sample in samples] - won])
    if not table.sum(axis=1).all():
        return 1.0  # all alike
    if len(samples) == 2 and stats.contingency.expected_freq(table).min() < _FEW_EXPECTED:
        return float(stats.fisher_exact(table).pvalue)
    return float(stats.chi2_contingency(table, correction=False).pvalue)


def _sign_p(tally: Tally) -> float | None:
    decided = tally.wins + tally.losses
    return float(stats.binomtest(tally.wins, decided).pvalue) if decided else None


def _overall_p(samples: Sequence[Sample], pairs: Sequence[Pair], *, binary: bool) -> float | None:
    if len(samples) < 3 or any(pair.p_value is None for pair in pairs):
        return pairs[0].p_value if len(samples) == 2 else None
    if binary:
        return _proportions_p(*samples)
    if any(sample.variance == 0 for sample in samples):  # the analysis of variance divides by it
        return _least([pair.p_value for pair in pairs])
    return _welch_anova_p(samples)


def _welch_anova_p(samples: Sequence[Sample]) -> float:
    """Welch, 1951: "On the comparison of several mean values: an alternative approach"."""
    groups = len(samples)
    units = np.array([sample.units for sample in samples])
    means = np.array([sample.mean for sample in samples])
    weights = units / np.array([sample.variance for sample in samples])
    share = weights / weights.sum()
    between = (weights * (means - (share * means).sum()) ** 2).sum() / (groups - 1)
    uncertainty = ((1 - share) ** 2 / (units - 1)).sum() / (groups**2 - 1)
    statistic = between / (1 + 2 * (groups - 2) * uncertainty)
    return float(stats.f.sf(statistic, groups - 1, 1 / (3 * uncertainty)))


def _means_at_any_time(first: Sample, second: Sample) -> float:
    if _same_mean(first, second):
        return 1.0
    variance = first.variance / first.units + second.variance / second.units
    return float(always_valid.of_means(first.mean - second.mean, variance, first.units, second.units))


def _proportions_at_any_time(first: Sample, second: Sample) -> float:
    """With the variance that both have if they are alike: few successes of one say little of its own."""
    both = first.units + second.units
    proportion = (_successes(first) + _successes(second)) / both
    variance = proportion * (1 - proportion) * (1 / first.units + 1 / second.units)
    return float(always_valid.of_means(first.mean - second.mean, variance, first.units, second.units))


def _sign_at_any_time(tally: Tally) -> float | None:
    return float(always_valid.of_wins(tally.wins, tally.losses)) if tally.wins + tally.losses else None


def _same_mean(first: Sample, second: Sample) -> bool:
    """But for rounding, which is no difference where scores do not vary."""
    return math.isclose(first.mean, second.mean, rel_tol=1e-12)


def _successes(sample: Sample) -> int:
    return round(sample.mean * sample.units)


def _mean_interval(sample: Sample, alpha: float, *, binary: bool) -> Interval | None:
    """Student's, or Wilson's of a proportion."""
    if binary and sample.units:
        return _share_interval(_successes(sample), sample.units, alpha)
    if sample.units < 2:
        return None
    reach = stats.t.isf(alpha / 2, sample.units - 1) * math.sqrt(sample.variance / sample.units)
    return Interval(float(sample.mean - reach), sample.mean, float(sample.mean + reach))


def _share_interval(count: int, of: int, alpha: float) -> Interval:
    found = stats.binomtest(count, of).proportion_ci(1 - alpha, method="wilson")
    return Interval(float(found.low), count / of, float(found.high))


def _compared(model: str, tallies: Sequence[Tally], alpha: float) -> VariantReport:
    wins = sum(tally.wins for tally in tallies)
    decided = wins + sum(tally.losses for tally in tallies)
    interval = _share_interval(wins, decided, alpha) if decided else None
    return VariantReport(model, sum(tally.scores for tally in tallies), interval, tallies)
