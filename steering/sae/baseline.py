"""What tells a behaviour from its opposite in the latents of texts, and from where on that counts as drift.

The vendor's client fires wherever a cosine is above zero. Here the score is calibrated: few latents that
discriminate, in standard deviations of texts that do not show the behaviour, with a threshold chosen for a
share of false alarms that held-out texts confirm.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from steering.drift import drift
from steering.sae.errors import SaeError
from steering.train.auroc import mean_auroc

Wide = NDArray[np.float64]
Rows = NDArray[np.floating[Any]]
# Of these latents, `[tokens, latents]` of each text: first the positive ones, then the negative, the neutral.
TokenLatents = Callable[[Sequence[int]], Sequence[Rows]]

_PEAKS = 200
_VERSION: Final = 2


class BaselineError(SaeError):
    """These texts make no baseline, or this is not one; the message says why."""


class Scoring(StrEnum):
    STANDARDISED = (
        "standardised"  # latents in standard deviations, weighed by how far they tell classes apart
    )
    LOGISTIC = "logistic"  # logistic regression on the same latents


@dataclass(frozen=True, slots=True)
class Options:
    """At most `latents` are kept: those of the largest standardised difference of class means.

    One has to be active in a share `presence` of the texts of the class that it speaks for, and, where
    densities are given, in at most a share `dense` of all states: what is active everywhere says little about
    a token. `false_positives` is the share of texts without the behaviour that may drift.
    """

    scoring: Scoring = Scoring.STANDARDISED
    latents: int = 16
    presence: float = 0.3
    dense: float = 0.3
    false_positives: float = 0.05
    folds: int = 5
    l2: float = 0.1

    def __post_init__(self) -> None:
        if self.latents < 1 or self.folds < 2:
            raise BaselineError("at least one latent and two folds are needed")
        if not (0 <= self.presence <= 1 and 0 < self.dense <= 1 and 0 <= self.false_positives < 1):
            raise BaselineError("presence, dense and false_positives are shares")
        if not 0 < self.l2 < math.inf:
            raise BaselineError("l2 is a positive number")


@dataclass(frozen=True, slots=True)
class Evidence:
    """Of held-out texts, scored by baselines made without them.

    `auroc` compares mean scores of positive with those of negative texts, `peak_auroc` the peaks of their
    drift. The two rates are of peaks above thresholds chosen without the text in question:
    `false_positive_rate` of negative and neutral texts, `true_positive_rate` of positive ones. `target` is
    the rate that was asked for; with few texts, no threshold can promise a small one. A peak is higher the
    longer a text: the rates hold for texts about as long as these. `peaks` and `peaks_without` are those
    peaks themselves, ascending, of texts with and without the behaviour: at most `_PEAKS` of each, evenly
    chosen, and none of behaviours that older versions made.
    """

    auroc: float | None
    peak_auroc: float | None
    false_positive_rate: float
    true_positive_rate: float
    target: float
    positive: int
    negative: int
    neutral: int
    peaks: tuple[float, ...] = ()
    peaks_without: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Baseline:
    """The score of a state is its `latents · weights + bias`; a text whose `watch.drift` rises above
    `threshold` shows the behaviour from there on.

    The score is 0 at the mean of texts without the behaviour, and 1 is one of their standard deviations. As
    it is linear, the score of a text's mean latents is the mean score of its tokens. `differences` are the
    standardised differences of class means, by which latents were chosen; `sae` is the autoencoder's digest.
    """

    sae: str
    latents: tuple[int, ...]
    weights: tuple[float, ...]
    bias: float
    threshold: float
    differences: tuple[float, ...]
    scoring: Scoring
    evidence: Evidence

    def __post_init__(self) -> None:
        if not self.latents or len({len(self.latents), len(self.weights), len(self.differences)}) != 1:
            raise BaselineError("a baseline has one weight and one difference for each of its latents")
        if len(set(self.latents)) != len(self.latents) or min(self.latents) < 0:
            raise BaselineError("the latents of a baseline are different numbers from 0 on")
        if not all(map(math.isfinite, (*self.weights, *self.differences, self.bias, self.threshold))):
            raise BaselineError("a baseline holds finite numbers")

    def scores(self, some: Rows) -> Wide:
        """`[...]` of the baseline's own latents `[..., latents]`, in their order."""
        return np.asarray(np.asarray(some, np.float64) @ np.array(self.weights) + self.bias, np.float64)

    def encode(self) -> dict[str, Any]:
        """JSON-safe; `decode` reads it back."""
        return {"version": _VERSION, **asdict(self)}

    @classmethod
    def decode(cls, data: Mapping[str, Any]) -> "Baseline":
        """Raises BaselineError for what `encode` does not write."""
        try:
            if data["version"] != _VERSION:
                raise BaselineError(f"a baseline of version {data['version']}, known is {_VERSION}")
            return cls(
                sae=str(data["sae"]),
                latents=tuple(int(latent) for latent in data["latents"]),
                weights=tuple(float(weight) for weight in data["weights"]),
                bias=float(data["bias"]),
                threshold=float(data["threshold"]),
                differences=tuple(float(difference) for difference in data["differences"]),
                scoring=Scoring(data["scoring"]),
                evidence=_evidence(data["evidence"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, BaselineError):
                raise
            raise BaselineError(f"not an encoded baseline: {error!r}") from error


def calibrate(
    positive: Rows,
    negative: Rows,
    sae: str,
    options: Options | None = None,
    *,
    tokens: TokenLatents,
    neutral: Rows | None = None,
    density: Rows | None = None,
) -> Baseline:
    """A baseline from the mean latents of texts, `[texts, d_sae]`, with and without a behaviour.

    Means choose latents and weights; `tokens`, asked once for the latents that matter, gives the peaks of
    drift that choose the threshold, for a monitor sees an answer token by token. Text i of both classes may
    be one pair: they are held out together. `neutral` texts count when the threshold is chosen and the rate
    of false alarms told, not when latents are chosen. `density` `[d_sae]` is the share of states in which
    each latent is active (see `quality.Quality`). Raises BaselineError where texts are too few, or no latent
    tells them apart.
    """
    options = options or Options()
    positive, negative, neutral = _checked(positive, negative, neutral)
    allowed = _sparse(positive.shape[1], density, options)
    made = _Score.of(positive, negative, allowed, options)
    held = _held_out((positive, negative, neutral), tokens, allowed, options)
    false_alarms, hits = _rates(held, options)
    threshold = threshold_for(np.concatenate([fold.without for fold in held]), options.false_positives)
    return Baseline(
        sae=sae,
        latents=tuple(int(latent) for latent in made.latents),
        weights=tuple(float(weight) for weight in made.weights),
        bias=made.bias,
        threshold=threshold,
        differences=tuple(float(difference) for difference in made.differences),
        scoring=options.scoring,
        evidence=Evidence(
            auroc=mean_auroc([fold.means for fold in held]),
            peak_auroc=mean_auroc([(fold.positive, fold.negative) for fold in held]),
            false_positive_rate=false_alarms,
            true_positive_rate=hits,
            target=options.false_positives,
            positive=len(positive),
            negative=len(negative),
            neutral=len(neutral),
            peaks=_ascending(np.concatenate([fold.positive for fold in held])),
            peaks_without=_ascending(np.concatenate([fold.without for fold in held])),
        ),
    )


def _ascending(peaks: Wide) -> tuple[float, ...]:
    chosen = np.linspace(0, len(peaks) - 1, min(len(peaks), _PEAKS)).round().astype(int)
    return tuple(float(round(peak, 4)) for peak in np.sort(peaks)[chosen])


def _evidence(data: Mapping[str, Any]) -> Evidence:
    peaks = {name: tuple(map(float, data.get(name, ()))) for name in ("peaks", "peaks_without")}
    return Evidence(**{**data, **peaks})


def threshold_for(scores: Rows, false_positives: float) -> float:
    """The lowest score such that at most this share of `scores`, all without the behaviour, lies above it."""
    if not len(scores):
        raise BaselineError("a threshold needs scores of texts without the behaviour")
    above = math.floor(false_positives * len(scores) + 1e-9)
    return float(np.sort(np.asarray(scores, np.float64))[len(scores) - 1 - min(above, len(scores) - 1)])


@dataclass(frozen=True, slots=True)
class _Score:
    latents: NDArray[np.int64]
    weights: Wide
    bias: float
    differences: Wide

    @classmethod
    def of(cls, positive: Wide, negative: Wide, allowed: NDArray[np.bool_], options: Options) -> "_Score":
        difference, spread = _differences(positive, negative)
        speaks_for = np.where(difference > 0, (positive > 0).mean(axis=0), (negative > 0).mean(axis=0))
        usable = allowed & (speaks_for >= options.presence) & (difference != 0)
        ranked = np.argsort(-np.where(usable, np.abs(difference), -1.0), kind="stable")
        latents = ranked[: min(options.latents, int(usable.sum()))]
        if not len(latents):
            raise BaselineError(
                "no latent tells these texts apart: give more texts, or an autoencoder of more latents"
            )
        sides = positive[:, latents] / spread[latents], negative[:, latents] / spread[latents]
        weights = _weights(*sides, difference[latents], options) / spread[latents]
        without = negative[:, latents] @ weights
        deviation = float(without.std(ddof=1))
        # Texts that all lack these latents have no spread: the gap to the others is what there is.
        scale = max(deviation, 1e-3 * abs(float((positive[:, latents] @ weights).mean() - without.mean())))
        return cls(latents, weights / scale, -float(without.mean()) / scale, difference[latents])

    def __call__(self, rows: Wide) -> Wide:
        return np.asarray(rows[:, self.latents] @ self.weights + self.bias, np.float64)

    def peak(self, tokens: Rows, latents: NDArray[np.int64]) -> float:
        """The highest drift of a text whose tokens have these values `[tokens, latents]` of ascending
        `latents`."""
        own = tokens[:, np.searchsorted(latents, self.latents)]
        return float(drift(own @ self.weights + self.bias).max())


def _differences(positive: Wide, negative: Wide) -> tuple[Wide, Wide]:
    """Standardised differences of class means (Cohen's d), and what they are standardised by.

    Deviations are raised by their median over active latents: a latent that is rare and steady by chance
    would else come first (as in Tusher et al. 2001).
    """
    counts = len(positive) - 1, len(negative) - 1
    within = counts[0] * positive.var(axis=0, ddof=1) + counts[1] * negative.var(axis=0, ddof=1)
    deviation = np.sqrt(within / sum(counts))
    floor = float(np.median(deviation[deviation > 0])) if (deviation > 0).any() else 1.0
    spread = deviation + floor
    return (positive.mean(axis=0) - negative.mean(axis=0)) / spread, spread


def _weights(above: Wide, below: Wide, difference: Wide, options: Options) -> Wide:
    if options.scoring is Scoring.STANDARDISED:
        return difference
    from steering.train import logistic  # noqa: PLC0415  # torch, which who reads a baseline does without

    rows = np.concatenate([above, below])
    side = np.arange(len(rows)) < len(above)
    fitted = logistic.fit(
        rows - rows.mean(axis=0), side.astype(np.float64), logistic.balanced(side), options.l2
    )
    return fitted.weight


@dataclass(frozen=True, slots=True)
class _Fold:
    """Of texts held out: the peaks of their drift, and the mean scores of positive and negative ones."""

    positive: Wide
    negative: Wide
    neutral: Wide
    means: tuple[Wide, Wide]

    @property
    def without(self) -> Wide:
        return np.concatenate([self.negative, self.neutral])


def _held_out(
    classes: tuple[Wide, Wide, Wide], tokens: TokenLatents, allowed: NDArray[np.bool_], options: Options
) -> list[_Fold]:
    positive, negative, _ = classes
    folds = min(options.folds, len(positive) // 2, len(negative) // 2)
    first, second, third = (np.arange(len(rows)) % folds for rows in classes)
    made = [
        _Score.of(positive[first != fold], negative[second != fold], allowed, options)
        for fold in range(folds)
    ]
    texts = _Tokens.of(tokens, made, sum(map(len, classes)))
    each = np.concatenate([first, second, third])
    ends = np.cumsum([len(positive), len(negative)])
    peaks = np.array([made[fold].peak(texts.rows[text], texts.latents) for text, fold in enumerate(each)])
    above, below, beside = np.split(peaks, ends)
    return [
        _Fold(
            above[first == fold],
            below[second == fold],
            beside[third == fold],
            (score(positive[first == fold]), score(negative[second == fold])),
        )
        for fold, score in enumerate(made)
    ]


@dataclass(frozen=True, slots=True)
class _Tokens:
    """`rows` holds `[tokens, latents]` of each text, for `latents` in ascending order."""

    latents: NDArray[np.int64]
    rows: Sequence[Rows]

    @classmethod
    def of(cls, tokens: TokenLatents, scores: Sequence["_Score"], texts: int) -> "_Tokens":
        latents = np.unique(np.concatenate([score.latents for score in scores]))
        rows = tokens([int(latent) for latent in latents])
        if len(rows) != texts:
            raise BaselineError(f"there are {texts} texts, and the tokens of {len(rows)}")
        for text in rows:
            if text.ndim != 2 or not len(text) or text.shape[1] != len(latents):
                raise BaselineError(
                    f"the latents of a text are [tokens, {len(latents)}], not {list(text.shape)}"
                )
            if not np.isfinite(text).all():
                raise BaselineError("latents of tokens hold values that are not finite numbers")
        return cls(latents, rows)


def _rates(held: list[_Fold], options: Options) -> tuple[float, float]:
    """Shares of false alarms and of hits, each fold at the threshold that the others give."""
    alarms, hits = [], []
    for index, fold in enumerate(held):
        others = np.concatenate([other.without for at, other in enumerate(held) if at != index])
        threshold = threshold_for(others, options.false_positives)
        alarms.append(fold.without > threshold)
        hits.append(fold.positive > threshold)
    return float(np.concatenate(alarms).mean()), float(np.concatenate(hits).mean())


def _sparse(width: int, density: Rows | None, options: Options) -> NDArray[np.bool_]:
    if density is None:
        return np.ones(width, np.bool_)
    if density.shape != (width,):
        raise BaselineError(f"densities are one per latent, {width} in all, not {list(density.shape)}")
    return np.asarray(density <= options.dense, np.bool_)


def _checked(positive: Rows, negative: Rows, neutral: Rows | None) -> tuple[Wide, Wide, Wide]:
    for rows in (positive, negative) if neutral is None else (positive, negative, neutral):
        if rows.ndim != 2 or rows.shape[1] != positive.shape[-1]:
            raise BaselineError("mean latents are [texts, d_sae], of one autoencoder")
        if not np.isfinite(rows).all():
            raise BaselineError("mean latents hold values that are not finite numbers")
    if min(len(positive), len(negative)) < 4:
        raise BaselineError(
            f"a baseline needs 4 positive and 4 negative texts at least, not {len(positive)} and "
            f"{len(negative)}: held-out texts tell where its threshold lies"
        )
    neutral = np.zeros((0, positive.shape[1])) if neutral is None else neutral
    return positive.astype(np.float64), negative.astype(np.float64), neutral.astype(np.float64)
