"""What an A/B test has found.

Two kinds of p-value. Those of `Report.p_value` and `Pair.p_value` are of standard tests, as if the scores had
been looked at once. Scores that come in are looked at all the time, so what ends a test is
`sequential_p_value`: see `server/always_valid.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Sample:
    """The direct scores of one variant. The scores of a session are not independent, so a session is one
    unit, whose value is their mean; `mean` and the unbiased `variance` are those of the units."""

    model: str
    scores: int
    units: int
    mean: float
    variance: float


@dataclass(frozen=True, slots=True)
class Tally:
    """How often answers of `first` were preferred to those of `second`."""

    first: str
    second: str
    wins: int = 0
    losses: int = 0
    ties_good: int = 0
    ties_bad: int = 0

    @property
    def scores(self) -> int:
        return self.wins + self.losses + self.ties_good + self.ties_bad

    def plus(self, other: "Tally") -> "Tally":
        return Tally(
            self.first,
            self.second,
            self.wins + other.wins,
            self.losses + other.losses,
            self.ties_good + other.ties_good,
            self.ties_bad + other.ties_bad,
        )

    @property
    def turned(self) -> "Tally":
        """The same, as `second` sees it."""
        return replace(self, first=self.second, second=self.first, wins=self.losses, losses=self.wins)


@dataclass(frozen=True, slots=True)
class Interval:
    start: float
    middle: float
    end: float


@dataclass(frozen=True, slots=True)
class VariantReport:
    """`interval` is of the mean, or of comparisons of the share won among those decided; None: too few
    scores. `comparisons` are as this variant sees them, one for each other variant; None in a test by direct
    scores."""

    model: str
    scores: int
    interval: Interval | None
    comparisons: Sequence[Tally] | None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two variants; the p-values are adjusted for how many pairs there are."""

    first: str
    second: str
    p_value: float | None
    sequential_p_value: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """`p_value` is of all variants being alike; None: too few scores. `sequential_p_value` is the level at
    which the test ends, and `winner` the best variant where that is at most the test's alpha."""

    p_value: float | None
    sequential_p_value: float | None
    variants: Sequence[VariantReport]
    pairs: Sequence[Pair]
    has_enough_scores: bool
    winner: str | None

    @property
    def scores(self) -> int:
        """Of all variants; a comparison of two is one score."""
        if any(each.comparisons is not None for each in self.variants):
            return sum(tally.scores for each in self.variants for tally in each.comparisons or ()) // 2
        return sum(each.scores for each in self.variants)
