"""How often A/B tests end, rightly and wrongly, when they are looked at after every score: simulations.

    python tests/bench/ab_power.py [--runs 2000] [--markdown FILE]

Variants get their scores in turn, and from `START` of each on the rule that ends a test is asked after every
one. "Looked at always" is the standard test at the same looks, to show what such looking does to it.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from server import ab_statistics, always_valid
from server.ab_report import Sample

ALPHA, START = 0.05, 30
Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
_CELLS = 1_000_000  # held at once


def normal(mean: float = 0.0) -> Draw:
    return lambda random, shape: random.normal(mean, 1, shape)


def exponential(mean: float = 1.0) -> Draw:
    return lambda random, shape: random.exponential(mean, shape)


def lognormal(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return np.exp(random.normal(size=shape))


def proportion(share: float) -> Draw:
    return lambda random, shape: (random.random(shape) < share).astype(float)


def sessions(scores: int) -> Draw:
    """The means of sessions, each with that many scores that have as much in common as they differ."""

    def draw(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        return random.normal(size=shape) + random.normal(size=(*shape, scores)).mean(axis=2)

    return draw


@dataclass(frozen=True, slots=True)
class Ends:
    """Of each run: which variant won (-1: none), and how many scores each variant had then, or at last."""

    winners: np.ndarray
    scores: np.ndarray

    def won(self, variant: int | None = None) -> float:
        return float(np.mean(self.winners >= 0 if variant is None else self.winners == variant))

    def within(self, scores: int, variant: int) -> float:
        return float(np.mean((self.winners == variant) & (self.scores <= scores)))

    @property
    def median(self) -> int:
        return int(np.median(self.scores))


def means(
    draws: Sequence[Draw], *, scores: int, runs: int, seed: int, binary: bool = False, naive: bool = False
) -> Ends:
    """Tests by direct scores, of as many variants as `draws`."""
    random = np.random.default_rng(seed)
    found = []
    for count in _portions(runs, scores * len(draws)):
        moments = [_running(draw(random, (count, scores))) for draw in draws]
        levels = np.stack([_level(moments, index, binary=binary, naive=naive) for index in range(len(draws))])
        best = np.argmax([mean for mean, _ in moments], axis=0)
        found.append(_ends(np.take_along_axis(levels, best[None], 0)[0], best))
    return _joined(found)


def wins(share: float, *, scores: int, runs: int, seed: int, naive: bool = False) -> Ends:
    """Tests by comparisons of two variants, of which the second wins that share."""
    random = np.random.default_rng(seed)
    found = []
    for count in _portions(runs, scores):
        won = np.cumsum(random.random((count, scores)) < share, axis=1)
        lost = np.arange(1, scores + 1) - won
        level = (
            2 * stats.binom.cdf(np.minimum(won, lost), won + lost, 0.5)
            if naive
            else always_valid.of_wins(won, lost)
        )
        found.append(_ends(level, (won > lost).astype(int)))
    return _joined(found)


def coverage(draw: Draw, mean: float, *, scores: int, runs: int, seed: int, binary: bool = False) -> float:
    """How often a variant's interval has the true mean in it."""
    values = draw(np.random.default_rng(seed), (runs, scores))
    moments = zip(values.mean(axis=1).tolist(), values.var(axis=1, ddof=1).tolist(), strict=True)
    within = 0
    for (found, variance), times in Counter(moments).items():  # proportions recur
        report = ab_statistics.of_direct_scores(
            [Sample("a", scores, scores, found, variance)],
            binary=binary,
            higher_is_better=True,
            alpha=ALPHA,
            min_scores=START,
        )
        interval = report.variants[0].interval
        assert interval is not None
        within += times * (interval.start <= mean <= interval.end)
    return within / runs


def _portions(runs: int, cells: int) -> Iterator[int]:
    most = max(1, _CELLS // cells)
    while runs > 0:
        yield min(runs, most)
        runs -= most


def _running(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and unbiased variances of the first values, one, two and so on."""
    count = np.arange(1, values.shape[1] + 1)
    mean = np.cumsum(values, axis=1) / count
    squares = np.cumsum(values**2, axis=1) - count * mean**2
    return mean, np.maximum(squares, 0) / np.maximum(count - 1, 1)


def _level(
    moments: Sequence[tuple[np.ndarray, np.ndarray]], index: int, *, binary: bool, naive: bool
) -> np.ndarray:
    """The greatest p-value of a variant against each of the others."""
    mean, variance = moments[index]
    count = np.arange(1, mean.shape[1] + 1)
    found = []
    for other_mean, other_variance in (moment for at, moment in enumerate(moments) if at != index):
        both = (mean + other_mean) / 2
        error = 2 * both * (1 - both) / count if binary else (variance + other_variance) / count
        if naive:
            with np.errstate(divide="ignore", invalid="ignore"):
                found.append(2 * stats.norm.sf(np.abs(mean - other_mean) / np.sqrt(error)))
        else:
            p_value = always_valid.of_means(mean - other_mean, error, count, count)
            found.append(np.minimum(1, p_value * (len(moments) - 1)))
    return np.max(found, axis=0)


def _ends(level: np.ndarray, best: np.ndarray) -> Ends:
    over = level[:, START - 1 :] <= ALPHA
    first = over.argmax(axis=1) + START - 1
    winners = np.where(over.any(axis=1), np.take_along_axis(best, first[:, None], 1)[:, 0], -1)
    return Ends(winners, np.where(winners >= 0, first + 1, level.shape[1]))


def _joined(found: Sequence[Ends]) -> Ends:
    return Ends(
        np.concatenate([each.winners for each in found]), np.concatenate([each.scores for each in found])
    )


def _tables(runs: int) -> Iterator[str]:
    yield f"{runs} runs each, alpha {ALPHA}, from {START} scores of each variant on.\n"
    yield "Variants that are alike, 2,000 scores each, looked at after every one:\n"
    yield "| scores | ended with a winner | the standard test, looked at always |\n|---|---|---|"
    alike: dict[str, tuple[Sequence[Draw], bool]] = {
        "normal": ([normal()] * 2, False),
        "exponential": ([exponential()] * 2, False),
        "lognormal": ([lognormal] * 2, False),
        "bool, 50 %": ([proportion(0.5)] * 2, True),
        "bool, 5 %": ([proportion(0.05)] * 2, True),
        "bool, 1 %": ([proportion(0.01)] * 2, True),
        "normal, three variants": ([normal()] * 3, False),
        "normal, five variants": ([normal()] * 5, False),
        "sessions of four scores": ([sessions(4)] * 2, False),
    }
    for name, (draws, binary) in alike.items():
        ours, theirs = (
            means(draws, scores=2000, runs=runs, seed=1, binary=binary, naive=naive).won()
            for naive in (False, True)
        )
        yield f"| {name} | **{ours:.3f}** | {theirs:.3f} |"
    ours, theirs = (wins(0.5, scores=2000, runs=runs, seed=1, naive=naive).won() for naive in (False, True))
    yield f"| comparisons | **{ours:.3f}** | {theirs:.3f} |\n"
    yield "Variants that differ; scores are of each variant, or comparisons of the two:\n"
    yield "| scores | ended by 200 | by 500 | by 2,000 | median to the end | wrong winner |"
    yield "|---|---|---|---|---|---|"
    for name, ends in _differing(runs):
        shares = " | ".join(f"{ends.within(most, 1):.3f}" for most in (200, 500, 2000))
        yield f"| {name} | {shares} | {ends.median} | {ends.won(0):.3f} |"
    yield "\nIntervals of 95 %:\n\n| scores | of 30 | of 200 |\n|---|---|---|"
    covered: dict[str, tuple[Draw, float, bool]] = {
        "normal": (normal(), 0.0, False),
        "exponential": (exponential(), 1.0, False),
        "bool, 50 %": (proportion(0.5), 0.5, True),
        "bool, 5 %": (proportion(0.05), 0.05, True),
    }
    for name, (draw, mean, binary) in covered.items():
        few, many = (
            coverage(draw, mean, scores=scores, runs=runs, seed=2, binary=binary) for scores in (30, 200)
        )
        yield f"| {name} | {few:.3f} | {many:.3f} |"


def _differing(runs: int) -> Iterator[tuple[str, Ends]]:
    for effect in (0.1, 0.2, 0.3, 0.5):
        draws = [normal(), normal(effect)]
        yield f"normal, {effect} standard deviations", means(draws, scores=2000, runs=runs, seed=3)
    for low, high in ((0.5, 0.6), (0.1, 0.15), (0.8, 0.9)):
        draws = [proportion(low), proportion(high)]
        ends = means(draws, scores=2000, runs=runs, seed=3, binary=True)
        yield f"bool, {low:.0%} and {high:.0%}".replace("%", " %"), ends
    draws = [normal(), normal(0.3), normal()]
    yield "normal, three variants, one better by 0.3", means(draws, scores=2000, runs=runs, seed=3)
    for share in (0.55, 0.6, 0.7):
        yield f"comparisons, {share:.0%} won".replace("%", " %"), wins(share, scores=2000, runs=runs, seed=3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--markdown", type=Path, help="write the tables there too")
    options = parser.parse_args()
    lines = []
    for line in _tables(options.runs):
        print(line, flush=True)
        lines.append(line)
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
