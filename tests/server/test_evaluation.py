"""What a vector does to the margin between answers, on scores that are known."""

import asyncio
import math

import numpy as np
import pytest

from server.evaluation import effect
from steering.spec import SteeringSpec, Term
from steering.train.pairs import Pair, encoded


def encode(text: str) -> list[int]:
    return [0, *text.encode()]


class Engine:
    """Each token's score is minus its number, less `gain` where it is steered."""

    def __init__(self, gain: float = 0.0) -> None:
        self.gain = gain
        self.asked: list[tuple[int, ...]] = []
        self.running = self.most = 0

    async def score(self, tokens, spec):
        self.asked.append(tuple(tokens))
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        shift = self.gain if spec is not None else 0.0
        return [shift - token for token in tokens[1:]]


SPEC = SteeringSpec((Term("d", (1,)),))
PAIRS = encoded(encode, [Pair("say ", "b", "ac"), Pair("", "cc", "a")])


async def test_margins_are_of_the_answers_alone():
    """The mean score of the positive answer's tokens minus that of the negative's; prompts do not count."""
    found = await effect(Engine(), PAIRS, [encode("ab")], None)
    a, b, c = (ord(letter) for letter in "abc")
    assert found.margins.tolist() == [-b + (a + c) / 2, -c + a]
    assert found.margin == pytest.approx(np.mean(found.margins))
    assert found.neutral == (a + b) / 2


async def test_every_text_is_scored_as_asked():
    """The spec applies to answers and neutral texts alike, so that a gain for all changes no margin."""
    plain = await effect(Engine(5.0), PAIRS, [encode("ab")], None)
    steered = await effect(Engine(5.0), PAIRS, [encode("ab")], SPEC)
    assert steered.margins == pytest.approx(plain.margins)
    assert steered.neutral == pytest.approx(plain.neutral - 5)


async def test_without_neutral_texts():
    """Then their loss is unknown, and the margins are there all the same."""
    found = await effect(Engine(), PAIRS, [], None)
    assert math.isnan(found.neutral)
    assert len(found.margins) == 2


async def test_texts_are_scored_side_by_side_but_not_all_at_once():
    """Hundreds of texts go to the engine a few at a time."""
    engine = Engine()
    await effect(engine, PAIRS * 40, [], None)
    assert len(engine.asked) == 160
    assert 1 < engine.most <= 16
