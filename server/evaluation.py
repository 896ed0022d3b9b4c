"""How well a vector works: what it does to the margin between answers, and to neutral text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from server.together import together
from steering.spec import SteeringSpec
from steering.train.pairs import Answer, EncodedPair


class Engine(Protocol):
    async def score(self, tokens: Sequence[int], spec: SteeringSpec | None) -> list[float]: ...


@dataclass(frozen=True, slots=True)
class Effect:
    """`margins` per pair and the loss of neutral text, both in nats per token.

    A margin is the mean log-probability of the positive answer's tokens minus that of the negative's.
    `neutral` is minus the mean log-probability of neutral text, and NaN where there was none; what steering
    costs is how much higher it is than without.
    """

    margins: NDArray[np.float64]
    neutral: float

    @property
    def margin(self) -> float:
        return float(self.margins.mean())


async def effect(
    engine: Engine,
    pairs: Sequence[EncodedPair],
    neutral: Sequence[Sequence[int]],
    spec: SteeringSpec | None,
) -> Effect:
    """Score both answers of every pair and the neutral texts under `spec`."""

    async def scored(tokens: Sequence[int], start: int) -> float:
        return float(np.mean((await engine.score(tokens, spec))[start:]))

    async def answered(answer: Answer | None) -> float:
        assert answer is not None
        return await scored(answer.tokens[: answer.end + 1], answer.start)

    texts = [pair.positive for pair in pairs] + [pair.negative for pair in pairs]
    calls = [*(partial(answered, text) for text in texts), *(partial(scored, ids, 0) for ids in neutral)]
    scores = await together(calls)
    positive, negative = np.array(scores[: len(pairs)]), np.array(scores[len(pairs) : 2 * len(pairs)])
    lost = -float(np.mean(scores[2 * len(pairs) :])) if neutral else math.nan
    return Effect(positive - negative, lost)
