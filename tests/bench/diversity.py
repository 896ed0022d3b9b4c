"""How different are samples of one prompt, and what does the difference cost? Metrics and their frontiers.

A setting is compared with a family of rivals, one method over several temperatures, at equal mean negative
log-likelihood: the family's metrics are interpolated there, never extrapolated. Prompts are resampled jointly
for all settings and the interpolation is repeated in each resample, which gives the interval.
"""

import itertools
import math
import re
import zlib
from collections import Counter
from dataclasses import dataclass

import numpy as np

METRICS = ("distinct2", "self_bleu", "dispersion", "vendi", "duplicates", "compression", "length")


@dataclass(frozen=True)
class Sample:
    """One generation: text, token ids and the model's log p of each, before temperature and truncation."""

    text: str
    tokens: list[int]
    logprobs: list[float]


@dataclass(frozen=True)
class Scores:
    """Per prompt, [P]: summed NLL and tokens of its group, and a column per name in `METRICS`, [P, M]."""

    nll: np.ndarray
    tokens: np.ndarray
    metrics: np.ndarray

    def means(self, prompts: np.ndarray) -> tuple[float, np.ndarray]:
        return float(self.nll[prompts].sum() / self.tokens[prompts].sum()), self.metrics[prompts].mean(0)


def score(groups: list[list[Sample]], table: np.ndarray) -> Scores:
    """`groups` [P][n]; `table` [V, d] unit rows, the token embeddings behind dispersion and Vendi."""
    nll = np.array([-sum(sum(s.logprobs) for s in group) for group in groups])
    tokens = np.array([sum(len(s.tokens) for s in group) for group in groups])
    return Scores(nll, tokens, np.array([group_metrics(group, table) for group in groups]))


def group_metrics(group: list[Sample], table: np.ndarray) -> list[float]:
    words = [re.findall(r"\w+|[^\w\s]", s.text.lower()) for s in group]
    means = np.array([table[s.tokens].astype(np.float64).mean(0) for s in group])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    cosine = means @ means.T
    n = len(group)
    text = "\n".join(s.text for s in group).encode()
    return [
        distinct2(words),
        self_bleu(words),
        float(1 - (cosine.sum() - n) / (n * (n - 1))),
        vendi(cosine),
        1 - len({s.text for s in group}) / n,
        len(text) / len(zlib.compress(text, 9)),
        float(np.mean([len(s.tokens) for s in group])),
    ]


def distinct2(texts: list[list[str]]) -> float:
    """Different word bigrams per bigram, pooled over the group (Li et al., arXiv 1510.03055)."""
    bigrams = [pair for words in texts for pair in itertools.pairwise(words)]
    return len(set(bigrams)) / len(bigrams) if bigrams else 0.0


def self_bleu(texts: list[list[str]]) -> float:
    """Mean BLEU-4 of each text against the others (arXiv 1802.01886); smoothing .1, no brevity penalty."""
    counts = [[ngrams(words, size) for size in range(1, 5)] for words in texts]
    total = 0.0
    for i, own in enumerate(counts):
        logs = 0.0
        for size in range(4):
            best: Counter[tuple[str, ...]] = Counter()
            for j, other in enumerate(counts):
                if j != i:
                    best |= other[size]
            matched = sum((own[size] & best).values())
            logs += math.log(max(matched, 0.1) / max(sum(own[size].values()), 1)) / 4
        total += math.exp(logs)
    return total / len(texts)


def ngrams(words: list[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))


def vendi(similarity: np.ndarray) -> float:
    """Effective number of different samples: exp of the entropy of K/n's eigenvalues (arXiv 2210.02410)."""
    values = np.linalg.eigvalsh(similarity / len(similarity))
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


@dataclass(frozen=True)
class Difference:
    """Setting minus family at equal NLL, per metric, with 95 % interval; share of resamples bracketed."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    bracketed: float


def at_equal_nll(setting: Scores, family: list[Scores], resamples: int = 2000) -> Difference:
    """Difference to the family's curve; NaN where the setting's NLL lies outside the curve's ends."""
    count = len(setting.nll)
    random = np.random.default_rng(0)
    draws = np.array([_gap(setting, family, random.integers(0, count, count)) for _ in range(resamples)])
    inside = ~np.isnan(draws[:, 0])
    if not inside.any():
        nothing = np.full(len(METRICS), np.nan)
        return Difference(nothing, nothing, nothing, 0.0)
    low, high = np.quantile(draws[inside], [0.025, 0.975], axis=0)
    return Difference(_gap(setting, family, np.arange(count)), low, high, float(inside.mean()))


def nll_cost(setting: Scores, base: Scores, resamples: int = 2000) -> tuple[float, float, float]:
    """Extra nats per token over `base`: estimate, low, high."""
    count = len(setting.nll)
    random = np.random.default_rng(0)
    draws = []
    for _ in range(resamples):
        prompts = random.integers(0, count, count)
        draws.append(setting.means(prompts)[0] - base.means(prompts)[0])
    everyone = np.arange(count)
    low, high = np.quantile(draws, [0.025, 0.975])
    return setting.means(everyone)[0] - base.means(everyone)[0], float(low), float(high)


def _gap(setting: Scores, family: list[Scores], prompts: np.ndarray) -> np.ndarray:
    nll, metrics = setting.means(prompts)
    points = sorted((rival.means(prompts) for rival in family), key=lambda point: point[0])
    for (left, below), (right, above) in itertools.pairwise(points):
        if left <= nll <= right:
            share = (nll - left) / (right - left)
            return metrics - (below + share * (above - below))
    return np.full(len(metrics), np.nan)
