"""Presets: built once, on the layer that works best, as strong as neutral text can bear."""

import asyncio
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from policies.steering import OWN_EXAMPLES, PRESET_FLOORS
from server import presets as module
from server.errors import InvalidRequest, SteersmanError
from server.presets import Presets, shipped
from server.residency import Residency
from server.steering import SteeredModel
from server.store import DEFAULT_ACCOUNT, Store
from server.training import Tokenizer, Trainer
from server.vectors import Vectors
from steering.train.pairs import Pair, digest

LAYERS, WIDTH = 12, 4
MODEL = SteeredModel("org/model", "f" * 64, LAYERS, WIDTH, np.linspace(1, 12, LAYERS, dtype=np.float32))
WITH_DATA = [name for name, floor in PRESET_FLOORS.items() if floor is not None and name != OWN_EXAMPLES]
BEST = round(LAYERS * module._DEPTHS[1])
PAIRS = [Pair(f"q{number} ", f"yes{number}", f"no{number}") for number in range(96)]
LEARNT = 64  # of these, and of the pairs shipped with a preset


class Engine:
    """Steering at `best` helps most; `cost` gives what a relative dose costs neutral text."""

    def __init__(self, best: int, cost) -> None:
        self.best, self.cost = best, cost
        self.resident = set()
        self.captured: list[tuple[int, ...]] = []
        self.scored: set[tuple[int, ...]] = set()
        self.doses: list[tuple[int, float]] = []

    async def load(self, digest: str, blob: bytes) -> None:
        self.resident.add(digest)

    async def unload(self, digests) -> None:
        self.resident -= set(digests)

    async def capture(self, tokens, spans, layers):
        self.captured.append(tuple(tokens))
        await asyncio.sleep(0)
        states = np.zeros((len(spans), len(layers), WIDTH), np.float32)
        states[:, :, 0] = ord("y") in tokens
        return SimpleNamespace(means=states)

    async def score(self, tokens, spec):
        self.scored.add(tuple(tokens))
        if spec is None:
            return [-2.0] * (len(tokens) - 1)
        (term,) = spec.terms
        assert term.vector in self.resident
        (layer,) = term.layers
        dose = term.strength / float(MODEL.norms[layer])  # the raw directions have length 1
        if (layer, round(dose, 6)) not in self.doses:
            self.doses.append((layer, round(dose, 6)))
        gain = dose * (2 if layer == self.best else 1) if ord("y") in tokens else 0.0
        neutral = ord("q") not in tokens
        return [-2.0 + gain - (self.cost(dose) if neutral else 0.0)] * (len(tokens) - 1)


def encode(text: str) -> list[int]:
    return [1, *map(ord, text)]


@pytest.fixture
async def vectors(tmp_path):
    """Vectors of an empty SQLite file with a second account."""
    store = Store(f"sqlite:///{tmp_path / 'steersman.db'}")
    await asyncio.to_thread(store.migrate)
    yield Vectors(store.database)
    await store.close()


def opened(vectors: Vectors, engine: Engine) -> Presets:
    tokenizer = Tokenizer(encode, encode, None, str)
    trainer = Trainer(engine, tokenizer, MODEL, "folder", ["blue moon", "a mule"])
    return Presets(vectors, trainer, engine, Residency(engine, 64, 1.0))


def linear(dose: float) -> float:
    return dose


@pytest.mark.parametrize("name", WITH_DATA)
def test_shipped_pairs(name):
    """Each preset that has a vector ships 60 pairs or more, all different, each with both answers."""
    pairs = shipped(name)
    assert len(pairs) >= 60
    assert len({digest([pair]) for pair in pairs}) == len(pairs)
    assert all(pair.prompt and pair.positive and pair.negative for pair in pairs)
    assert all(pair.positive != pair.negative for pair in pairs)
    assert len(pairs) >= LEARNT + 8, "some are held out"


async def test_a_preset_is_calibrated(vectors):
    """The layer that moves the margin most, scaled to the largest dose tried whose cost is bearable."""
    engine = Engine(best=BEST, cost=linear)
    made = await opened(vectors, engine).build("brevity", PAIRS, None)
    assert made.layers == (BEST,)
    safe = max(dose for dose in module._HIGHER if dose <= module.SAFE_COST)
    assert made.norms[BEST] == pytest.approx(safe * float(MODEL.norms[BEST]), rel=1e-4)
    assert made.doses == pytest.approx({BEST: safe}, rel=1e-4)
    assert (made.preset, made.name, made.category, made.scale) == ("brevity", "brevity", "preset", 1.0)
    assert (made.account_id, made.method, made.model_fingerprint) == (None, "caa", MODEL.fingerprint)
    assert made.dataset_digest == digest(PAIRS)
    assert made.evidence.keys() == {str(BEST), "calibration"}
    tried = {row["layer"] for row in made.evidence["calibration"] if "layer" in row}
    assert tried == {round(LAYERS * depth) for depth in module._DEPTHS}
    assert len(engine.captured) == 2 * LEARNT


@pytest.mark.parametrize(("count", "learnt"), [(4, 2), (5, 3), (9, 6), (60, 40), (500, 468)])
async def test_all_examples_are_used_and_none_twice(vectors, count, learnt):
    """Few are held out of learning to measure the effect; nothing is measured on what was learnt from."""
    engine = Engine(best=BEST, cost=linear)
    pairs = [Pair(f"q{number} ", f"yes{number}", f"no{number}") for number in range(count)]
    await opened(vectors, engine).build(OWN_EXAMPLES, pairs, DEFAULT_ACCOUNT)
    assert len(set(engine.captured)) == 2 * learnt
    measured = {tokens for tokens in engine.scored if ord("q") in tokens}
    assert len(measured) == 2 * min(16, count - learnt)
    assert not measured & set(engine.captured)


async def test_too_few_examples(vectors):
    """They are refused by the name of their field, before anything is computed."""
    engine = Engine(best=BEST, cost=linear)
    with pytest.raises(InvalidRequest, match="at least 4 pairs") as refused:
        await opened(vectors, engine).build(OWN_EXAMPLES, PAIRS[:3], DEFAULT_ACCOUNT)
    assert refused.value.param == "prompts"
    assert engine.captured == []


async def test_an_example_that_cannot_be_scored(vectors):
    """It is named as it was sent, although it would have been held out."""
    presets = opened(vectors, Engine(best=BEST, cost=linear))
    presets._trainer = replace(presets._trainer, max_tokens=30)
    with pytest.raises(InvalidRequest, match="at most 30") as refused:
        await presets.build(OWN_EXAMPLES, [*PAIRS[:5], Pair("long " * 9, "y", "n")], DEFAULT_ACCOUNT)
    assert refused.value.param == "prompts.5"


@pytest.mark.parametrize(("bears", "safe"), [(0.05, 0.05), (0.04, 0.025)])
@pytest.mark.parametrize("beyond", [9.0, float("nan")])
async def test_a_preset_that_neutral_text_hardly_bears(vectors, bears, safe, beyond):
    """Where the first dose costs too much, or breaks the text altogether, smaller ones are tried."""
    engine = Engine(best=BEST, cost=lambda dose: beyond if dose > bears + 1e-6 else 0.1)
    made = await opened(vectors, engine).build("brevity", PAIRS, None)
    assert list(made.doses.values()) == pytest.approx([safe], rel=1e-4)
    json.dumps(made.evidence, allow_nan=False)


@pytest.mark.parametrize("cost", [9.0, float("nan")])
async def test_a_preset_that_neutral_text_cannot_bear(vectors, cost):
    """Where every dose costs too much no vector is stored as safe."""
    with pytest.raises(SteersmanError, match="brevity has no safe strength on this model") as refused:
        await opened(vectors, Engine(best=BEST, cost=lambda dose: cost)).build("brevity", PAIRS, None)
    assert not isinstance(refused.value, InvalidRequest)
    assert await vectors.list(None) == []


async def test_a_layer_that_breaks_the_answers_is_not_the_best(vectors):
    """Margins that are not numbers win nothing."""
    engine = Engine(best=BEST, cost=linear)
    score = engine.score

    async def broken(tokens, spec):
        if spec is not None and spec.terms[0].layers == (round(LAYERS * module._DEPTHS[0]),):
            return [float("nan")] * (len(tokens) - 1)
        return await score(tokens, spec)

    engine.score = broken
    made = await opened(vectors, engine).build("brevity", PAIRS, None)
    assert made.layers == (BEST,)
    json.dumps(made.evidence, allow_nan=False)


async def test_calibration_stops_where_it_hurts(vectors):
    """Doses beyond the first that costs too much are not tried."""
    engine = Engine(best=BEST, cost=linear)
    await opened(vectors, engine).build("brevity", PAIRS, None)
    beyond = [dose for _, dose in engine.doses if dose > module.SAFE_COST + 1e-6]
    assert len(beyond) == 1


async def test_calibration_gives_its_vector_free(vectors):
    """Success or failure, the raw vector is not held afterwards."""
    engine = Engine(best=BEST, cost=linear)
    presets = opened(vectors, engine)
    await presets.build("brevity", PAIRS, None)

    async def broken(tokens, spec):
        raise RuntimeError("engine gone")

    engine.score = broken
    with pytest.raises(RuntimeError, match="engine gone"):
        await presets.build("brevity", PAIRS, None)
    assert not any(entry.holders for entry in presets._residency._entries.values())


async def test_a_preset_is_built_on_first_use(vectors):
    """Requests that come together wait for one build, and later ones find it in the database."""
    engine = Engine(best=BEST, cost=lambda dose: 0.0)
    presets = opened(vectors, engine)
    found = await asyncio.gather(*(presets.vector("tone_control", DEFAULT_ACCOUNT) for _ in range(5)))
    assert len({record.id for record in found}) == 1
    captured = len(engine.captured)
    assert captured == 2 * LEARNT
    again = await opened(vectors, engine).vector("tone_control", "another")
    assert again.id == found[0].id
    assert len(engine.captured) == captured


async def test_a_release_with_other_pairs_builds_anew(vectors, monkeypatch):
    """The stored vector is of other pairs, be it only of others held out: a new one takes its place, once."""
    presets = opened(vectors, Engine(best=BEST, cost=linear))
    monkeypatch.setattr(module, "shipped", lambda preset: PAIRS)
    old = await presets.vector("brevity", DEFAULT_ACCOUNT)
    monkeypatch.setattr(module, "shipped", lambda preset: [*PAIRS[:-1], Pair("q ", "yes", "no")])
    new = await presets.vector("brevity", DEFAULT_ACCOUNT)
    assert new.id != old.id
    assert (await presets.vector("brevity", "another")).id == new.id
    assert [record.id for record in await vectors.list(None)] == [new.id]


async def test_a_failed_build_is_tried_again(vectors):
    """A preset that could not be built is built for the next request."""
    engine = Engine(best=BEST, cost=linear)
    presets = opened(vectors, engine)
    capture = engine.capture

    async def broken(tokens, spans, layers):
        raise RuntimeError("engine gone")

    engine.capture = broken
    with pytest.raises(RuntimeError, match="engine gone"):
        await presets.vector("brevity", DEFAULT_ACCOUNT)
    engine.capture = capture
    assert (await presets.vector("brevity", DEFAULT_ACCOUNT)).preset == "brevity"


async def test_a_users_own_preset(vectors):
    """It is made from the user's pairs and theirs alone; without them the request is told where to send."""
    presets = opened(vectors, Engine(best=BEST, cost=linear))
    with pytest.raises(InvalidRequest, match="POST /steering/presets/domain_specific") as refused:
        await presets.vector(OWN_EXAMPLES, DEFAULT_ACCOUNT)
    assert refused.value.param == "steering_preset"
    made = await presets.build(OWN_EXAMPLES, PAIRS[:4], DEFAULT_ACCOUNT)
    assert made.account_id == DEFAULT_ACCOUNT
    assert (await presets.vector(OWN_EXAMPLES, DEFAULT_ACCOUNT)).id == made.id
    with pytest.raises(InvalidRequest):
        await presets.vector(OWN_EXAMPLES, "another")


async def test_a_preset_of_constraints_has_no_vector(vectors):
    """Asked for its vector, it says that it has none."""
    presets = opened(vectors, Engine(best=BEST, cost=linear))
    for attempt in (
        presets.vector("json_compliance", DEFAULT_ACCOUNT),
        presets.build("json_compliance", PAIRS, None),
    ):
        with pytest.raises(InvalidRequest, match="json_compliance has no vector"):
            await attempt


async def test_a_build_outlives_whoever_asked_first(vectors):
    """A client that gives up waiting does not stop it: the next one finds the vector made, or being made."""
    presets = opened(vectors, Engine(best=BEST, cost=linear))
    first = asyncio.create_task(presets.vector("brevity", DEFAULT_ACCOUNT))
    await asyncio.sleep(0)
    (making,) = presets._making.values()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert not making.cancelled()
    assert (await presets.vector("brevity", "another")).id == (await making).id
