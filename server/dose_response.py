"""What a vector does to held-out pairs, dose by dose, against vectors that should do nothing.

All shifts are of margins in nats per token: the mean log-probability of a pair's positive answer minus that
of its negative one. Intervals are bootstrap percentiles, over pairs and, for controls, also over vectors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steering.vector import Array, SteeringVector

RESAMPLES = 2000
_LEVELS = (2.5, 97.5)

Wide = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    def beats_zero(self, direction: float) -> bool:
        """Whether the interval lies wholly on the side of `direction`."""
        return self.low > 0 if direction > 0 else self.high < 0


@dataclass(frozen=True, slots=True)
class Point:
    """One strength. `against` is the shift minus that of each control, pair by pair.

    `contrary` is the share of pairs that move against the sign of the strength; `cost` is what neutral text
    loses, in nats per token.
    """

    strength: float
    dose: float
    margin: float
    shift: Estimate
    against: Mapping[str, Estimate]
    contrary: float | None
    cost: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """`monotone` is Spearman's correlation of strength and mean margin, `monotone_pairs` its mean over pairs.

    `anti_steerable` is the share of pairs whose margin falls with strength, by a straight line through all.
    """

    points: tuple[Point, ...]
    monotone: float
    monotone_pairs: float
    anti_steerable: float

    def plain(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Curve:
    """Strengths ascend, 0 among them; `margins` is `[strengths, pairs]`, the others `[strengths]`."""

    strengths: tuple[float, ...]
    margins: Wide
    doses: tuple[float, ...]
    neutral: tuple[float, ...] | None = None

    @property
    def zero(self) -> int:
        return self.strengths.index(0.0)

    @property
    def shifts(self) -> Wide:
        return np.asarray(self.margins - self.margins[self.zero])


def summary(curve: Curve, controls: Mapping[str, Sequence[Curve]], *, seed: int = 0) -> Summary:
    """`controls` are curves over the same strengths and pairs, several for each name."""
    shifts = curve.shifts
    others = {name: np.stack([each.shifts for each in curves]) for name, curves in controls.items()}
    points = []
    for index, strength in enumerate(curve.strengths):
        points.append(
            Point(
                strength=strength,
                dose=curve.doses[index],
                margin=float(curve.margins[index].mean()),
                shift=_mean(shifts[index], None, seed),
                against={name: _mean(shifts[index], each[:, index], seed) for name, each in others.items()},
                contrary=float((shifts[index] * strength < 0).mean()) if strength else None,
                cost=None if curve.neutral is None else curve.neutral[index] - curve.neutral[curve.zero],
            )
        )
    strengths = np.array(curve.strengths)
    pairs = [spearman(strengths, margins) for margins in curve.margins.T]
    slopes = (strengths - strengths.mean()) @ curve.margins
    return Summary(
        points=tuple(points),
        monotone=spearman(strengths, curve.margins.mean(axis=1)),
        monotone_pairs=float(np.mean(pairs)),
        anti_steerable=float((slopes < 0).mean()),
    )


def _mean(shifts: Wide, controls: Wide | None, seed: int) -> Estimate:
    """Of `shifts` `[pairs]`, minus the mean of `controls` `[vectors, pairs]` where there are some."""
    rng = np.random.default_rng(seed)
    pairs = _weights(rng, len(shifts))
    drawn, mean = pairs @ shifts, float(shifts.mean())
    if controls is not None:
        vectors = _weights(rng, len(controls))
        drawn = drawn - np.einsum("rv,vp,rp->r", vectors, controls, pairs, optimize=True)
        mean -= float(controls.mean())
    low, high = np.percentile(drawn, _LEVELS)
    return Estimate(mean, float(low), float(high))


def _weights(rng: np.random.Generator, count: int) -> Wide:
    """`[resamples, count]`: how often each of `count` is drawn with replacement, as shares of 1."""
    return rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count


def spearman(x: Wide, y: Wide) -> float:
    """Rank correlation; 0 where one of them never changes."""
    ranks = [_ranks(values) for values in (x, y)]
    left, right = (rank - rank.mean() for rank in ranks)
    length = float(np.linalg.norm(left) * np.linalg.norm(right))
    return float(left @ right) / length if length else 0.0


def _ranks(values: Wide) -> Wide:
    """From 0; equal values share the mean of their places."""
    ordered = np.sort(values)
    first, last = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return np.asarray((first + last - 1) / 2)


def random_like(vector: SteeringVector, rng: np.random.Generator) -> SteeringVector:
    """A random direction at each layer, as long as the vector's own."""
    rows = {layer: rng.standard_normal(vector.width).astype(np.float32) for layer in sorted(vector.layers)}
    return as_long_as(vector, rows)


def as_long_as(vector: SteeringVector, rows: Mapping[int, Array]) -> SteeringVector:
    """`rows` with the length that `vector` has at each layer."""
    lengths = {layer: float(np.linalg.norm(row)) for layer, row in rows.items()}
    return SteeringVector.of(
        {layer: row * np.float32(vector.norms[layer] / lengths[layer]) for layer, row in rows.items()}
    )


def draw(
    path: str, title: str, curve: Curve, controls: Mapping[str, Sequence[Curve]], found: Summary
) -> None:
    """Write the dose-response as a picture. Raises ImportError without matplotlib."""
    from matplotlib.figure import Figure  # noqa: PLC0415  # an extra: only who draws needs it

    figure = Figure(figsize=(7, 6 if curve.neutral else 4), layout="constrained")
    heights = [3, 1] if curve.neutral else [1]
    rows = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)
    axes = rows[0][0]
    strengths = list(curve.strengths)
    points = found.points
    axes.plot(strengths, [point.shift.mean for point in points], "o-", label="vector", color="C0")
    axes.fill_between(
        strengths, [point.shift.low for point in points], [point.shift.high for point in points], alpha=0.2
    )
    for number, (name, curves) in enumerate(controls.items(), start=1):
        for index, each in enumerate(curves):
            label = f"{name} ({len(curves)})" if index == 0 else None
            axes.plot(strengths, each.shifts.mean(axis=1), "-", color=f"C{number}", alpha=0.6, label=label)
    axes.axhline(0, color="0.7", linewidth=0.8)
    axes.set_ylabel("shift of the margin, nats per token")
    axes.set_title(title)
    axes.legend()
    if curve.neutral:
        below = rows[1][0]
        below.plot(strengths, [point.cost or 0.0 for point in points], "s-", color="0.3")
        below.set_ylabel("neutral cost")
    rows[-1][0].set_xlabel("strength")
    figure.savefig(path, dpi=150)
