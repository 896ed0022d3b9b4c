"""Trying a vector: where it points among the states of texts, what it does to answers, what a judge says."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from server.errors import InvalidRequest
from server.together import together
from server.training import Engine
from steering.train.auroc import auroc
from steering.vector import Array, SteeringVector

_EXAMPLES = 3  # texts of each kind that stand in for a description
_EXAMPLE_CHARACTERS = 200
_PROMPTS_AT_ONCE = 8  # each with two answers

REASON_CHARACTERS = 160
JUDGE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "reason": {"type": "string", "maxLength": REASON_CHARACTERS},
        "score": {"type": "integer", "minimum": 0, "maximum": 10},
    },
    "required": ["reason", "score"],
    "additionalProperties": False,
}


def tokenised(
    texts: Sequence[str], field: str, encode: Callable[[str], list[int]], limit: int
) -> list[list[int]]:
    """Raises InvalidRequest naming the text that has too few tokens, or too many for the model."""
    found = []
    for index, text in enumerate(texts):
        tokens = encode(text)
        if len(tokens) < 2:
            raise InvalidRequest(
                "a text needs at least 2 tokens: the state of the first is left out",
                param=f"{field}.{index}",
            )
        if len(tokens) >= limit:
            raise InvalidRequest(
                f"the text has {len(tokens)} tokens; the model takes {limit - 1}", param=f"{field}.{index}"
            )
        found.append(tokens)
    return found


async def mean_states(engine: Engine, texts: Sequence[Sequence[int]], layers: Sequence[int]) -> Array:
    """`[texts, layers, hidden]`: the mean state of each text without its first position, which is an
    attention sink in most models."""

    async def captured(tokens: Sequence[int]) -> Array:
        states = await engine.capture(tokens, [(1, len(tokens))], layers)
        mean: Array = states.means[0]
        return mean

    return np.stack(await together([partial(captured, tokens) for tokens in texts]))


@dataclass(frozen=True, slots=True)
class Separation:
    """Mean cosines of a vector with the states of both kinds of text, and how well they part these."""

    positive: float
    negative: float
    difference: float
    auroc: float

    @classmethod
    def of(cls, positive: NDArray[np.float64], negative: NDArray[np.float64]) -> "Separation":
        above, below = float(positive.mean()), float(negative.mean())
        return cls(above, below, above - below, auroc(positive, negative))


def cosine_metrics(
    vector: SteeringVector, layers: Sequence[int], positive: Array, negative: Array
) -> tuple[Separation, dict[int, Separation]]:
    """Overall, by each text's mean over layers, and by layer; states are `[texts, layers, hidden]`."""
    directions = np.stack([vector.layers[layer].direction for layer in layers])
    above, below = _cosines(positive, directions), _cosines(negative, directions)
    by_layer = {layer: Separation.of(above[:, axis], below[:, axis]) for axis, layer in enumerate(layers)}
    return Separation.of(above.mean(axis=1), below.mean(axis=1)), by_layer


def _cosines(states: Array, directions: Array) -> NDArray[np.float64]:
    wide, unit = states.astype(np.float64), directions.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    return np.asarray(np.einsum("tlh,lh->tl", wide, unit) / np.linalg.norm(wide, axis=-1))


def criterion(description: str | None, positive: Sequence[str], negative: Sequence[str]) -> str:
    """What a judge looks for: the description, or else examples."""
    if description and description.strip():
        return description.strip()
    wanted = "\n".join(f"- {text[:_EXAMPLE_CHARACTERS]}" for text in positive[:_EXAMPLES])
    unwanted = "\n".join(f"- {text[:_EXAMPLE_CHARACTERS]}" for text in negative[:_EXAMPLES])
    return f"it sounds like these texts:\n{wanted}\nand unlike these:\n{unwanted}"


def judge_prompt(looked_for: str, prompt: str, answer: str) -> str:
    return (
        "Rate how much an answer has of what is looked for, from 0 (nothing of it) to 10 (very much).\n\n"
        f"Looked for: {looked_for}\n\nMessage: {prompt}\n\nAnswer: {answer}\n\n"
        "Give JSON: `reason`, one short sentence; `score`, the number."
    )


class Asks(Protocol):
    async def __call__(self, prompt: str) -> str: ...


@dataclass(frozen=True, slots=True)
class Judged:
    """`score` is None where the judge's text was cut off."""

    answer: str
    score: int | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Compared:
    prompt: str
    unsteered: Judged
    steered: Judged

    @property
    def difference(self) -> int | None:
        plain, steered = self.unsteered.score, self.steered.score
        return None if plain is None or steered is None else steered - plain


@dataclass(frozen=True, slots=True)
class Jury:
    """Who answers, unsteered and steered, and who rates the answers."""

    plain: Asks
    steered: Asks
    judge: Asks
    looked_for: str

    async def evaluate(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Means are over the answers that have a score, `difference` over the `judged` prompts with both."""
        results = await together([partial(self._compared, prompt) for prompt in prompts], _PROMPTS_AT_ONCE)
        differences = [result.difference for result in results]
        return {
            "criterion": self.looked_for,
            "unsteered_score": _mean([result.unsteered.score for result in results]),
            "steered_score": _mean([result.steered.score for result in results]),
            "difference": _mean(differences),
            "judged": len(differences) - differences.count(None),
            "results": [asdict(result) for result in results],
        }

    async def _compared(self, prompt: str) -> Compared:
        sides = [partial(self._rated, asked, prompt) for asked in (self.plain, self.steered)]
        plain, steered = await together(sides)
        return Compared(prompt, plain, steered)

    async def _rated(self, asked: Asks, prompt: str) -> Judged:
        answer = await asked(prompt)
        text = await self.judge(judge_prompt(self.looked_for, prompt, answer))
        try:
            opinion = json.loads(text)
        except ValueError:
            return Judged(answer, None, None)
        return Judged(answer, int(opinion["score"]), str(opinion["reason"]))


def _mean(scores: Sequence[int | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else None
