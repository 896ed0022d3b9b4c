"""What a server finds out about its model at start, from a model whose every state is known."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from server.calibration import SelfTestFailed, neutral_texts, self_test, state_norms
from server.errors import SteersmanError, Unavailable
from steering.vector import SteeringVector

LAYERS, WIDTH = 3, 8


def encode(text: str) -> list[int]:
    return list(text.encode())


class Engine:
    """Scores move by the steered layer's number plus one; `dead` layers do not, `broken` ones give NaN."""

    def __init__(self, dead=(), broken=(), noise=0.0) -> None:
        self.noise = noise  # what a request's scores move by in another batch
        self.dead, self.broken = set(dead), set(broken)
        self.resident: dict[str, SteeringVector] = {}
        self.doses: dict[int, float] = {}
        self.full = False
        self.captures: list[tuple[int, tuple[int, int]]] = []
        self.scoring = self.most = 0

    async def capture(self, tokens, spans, layers):
        self.captures.append((len(tokens), *spans))
        ((start, end),) = spans
        norms = [np.mean([position * (layer + 1) for position in range(start, end)]) for layer in layers]
        return SimpleNamespace(norms=np.array([norms], np.float32))

    async def load(self, digest: str, blob: bytes) -> None:
        if self.full and self.resident:
            raise SteersmanError("the engine did not load the vector: 1 lines wanted, 0 free")
        self.resident[digest] = SteeringVector.from_blob(blob)

    async def unload(self, digests) -> None:
        for digest in digests:
            self.resident.pop(digest, None)

    async def likeliest(self, tokens, spec):
        self.scoring += 1
        self.most = max(self.most, self.scoring)
        await asyncio.sleep(0)
        self.scoring -= 1
        scores = [-2.0 + self.noise * (self.scoring % 2)] * (len(tokens) - 1)
        if spec is None:
            return scores
        (term,) = spec.terms
        (layer,) = term.layers
        if term.vector not in self.resident:
            raise Unavailable("the request ran unsteered: not resident")
        self.doses[layer] = self.resident[term.vector].norms[layer]
        if layer in self.broken:
            return [*scores[:-1], float("nan")]
        return scores if layer in self.dead else [*scores[:-1], -2.0 - (layer + 1)]


def test_neutral_texts():
    """Several paragraphs of prose, none of them empty, ship with the package."""
    texts = neutral_texts()
    assert len(texts) >= 3
    assert all(len(text.split()) > 60 for text in texts)


async def test_norms_are_means_over_positions():
    """Every position of every text counts the same, but for each text's first one; long texts are cut."""
    engine = Engine()
    norms = await state_norms(engine, encode, LAYERS)
    assert {length for length, _ in engine.captures} == {96}
    assert all(span == (1, length) for length, span in engine.captures)
    assert norms.dtype == np.float32
    assert norms == pytest.approx(np.mean(range(1, 96)) * np.arange(1, LAYERS + 1))


async def test_texts_of_different_length_weigh_by_their_positions():
    """A short text does not count as much as a long one."""
    lengths = iter([*([3] * (len(neutral_texts()) - 1)), 9])
    norms = await state_norms(Engine(), lambda _: [0] * next(lengths), 1)
    positions = [1, 2] * (len(neutral_texts()) - 1) + list(range(1, 9))
    assert norms[0] == pytest.approx(np.mean(positions))


NORMS = np.array([1, 20, 300], np.float32)


async def test_a_model_that_can_be_steered():
    """Every layer is steered by itself, as strongly as its states are long, in one batch; nothing stays."""
    engine = Engine()
    await self_test(engine, encode, NORMS, WIDTH)
    assert engine.doses == pytest.approx(dict(enumerate(NORMS)))
    assert engine.most == LAYERS + 1
    assert engine.resident == {}


@pytest.mark.parametrize("norm", [0.0, float("nan"), float("inf")])
async def test_states_without_a_length_fail(norm):
    """A layer whose states are nought or no numbers is named, before anything is steered by it."""
    with pytest.raises(SelfTestFailed, match=f"the states at layer 1 have length {norm}"):
        await self_test(Engine(), encode, np.array([1, norm, 1], np.float32), WIDTH)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (Engine(dead=[1]), "steering at layer 1 changes nothing"),
        # more than it takes to tell states apart, where batches of different shapes agree
        (Engine(dead=[0, 1, 2], noise=0.1), "steering at layer 0 changes nothing"),
        (Engine(broken=[2]), "steering at layer 2 gives log-probabilities that are not numbers"),
    ],
)
async def test_a_layer_without_effect_fails(engine, message):
    """One layer that changes nothing, or breaks the model, is found and named; nothing stays loaded."""
    with pytest.raises(SelfTestFailed, match=message):
        await self_test(engine, encode, NORMS, WIDTH)
    assert engine.resident == {}


async def test_an_engine_that_refuses_fails_the_test():
    """A table too small for the test says so as a failed test, and what was loaded leaves again."""
    engine = Engine()
    engine.full = True
    with pytest.raises(SelfTestFailed, match="1 lines wanted, 0 free"):
        await self_test(engine, encode, NORMS, WIDTH)
    assert engine.resident == {}
