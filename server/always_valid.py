"""P-values that hold however often one looks, and whenever one stops: what an A/B test ends by.

Both are one over a mixture likelihood ratio. Under the null hypothesis such a ratio is a martingale from 1
on, so by Ville's inequality the probability that it ever exceeds 1/alpha is at most alpha (Robbins, 1970:
"Statistical methods related to the law of the iterated logarithm"; for A/B tests: Johari, Koomen, Pekelis and
Walsh, 2022: "Always Valid Inference: Continuous Monitoring of A/B Tests"). Alpha spending on looks would have
to know beforehand how many scores will come; here nobody says, nor when they are looked at.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

# The mixtures are of effects of about this many standard deviations. Any number is valid; the bound is the
# tightest for tests that end near 9 / SPREAD² comparisons, or twice as many scores of each variant.
SPREAD = 0.3
_CONCENTRATION = (1 / SPREAD**2 - 1) / 2  # of the symmetric beta with that spread


def of_means(
    difference: ArrayLike, variance: ArrayLike, first: ArrayLike, second: ArrayLike
) -> NDArray[np.float64]:
    """That two means are alike, by the `difference` of those of `first` and `second` independent values, and
    the `variance` of this estimate.

    The normal mixture. It holds as the central limit theorem does, from a few dozen values on (Waudby-Smith,
    Arbour, Sinha, Kennedy and Ramdas, 2024: "Time-uniform central limit theory and asymptotic confidence
    sequences"), before which nobody may stop.
    """
    difference, variance = np.asarray(difference, float), np.asarray(variance, float)
    first, second = np.asarray(first, float), np.asarray(second, float)
    information = first * second / (first + second) * SPREAD**2
    with np.errstate(divide="ignore", invalid="ignore"):
        squared = np.where(difference == 0, 0.0, difference**2 / variance)
    return _inverse(squared / 2 * information / (1 + information) - np.log1p(information) / 2)


def of_wins(wins: ArrayLike, losses: ArrayLike) -> NDArray[np.float64]:
    """That to win is as likely as to lose. The beta mixture, exact for any number of comparisons."""
    wins, losses = np.asarray(wins, float), np.asarray(losses, float)
    likelihood = special.betaln(wins + _CONCENTRATION, losses + _CONCENTRATION)
    of_none = special.betaln(_CONCENTRATION, _CONCENTRATION)
    return _inverse(likelihood - of_none + (wins + losses) * np.log(2))


def _inverse(log_ratio: NDArray[np.float64]) -> NDArray[np.float64]:
    """At most one: a ratio below it is no evidence."""
    return np.asarray(np.exp(-np.maximum(log_ratio, 0)))
