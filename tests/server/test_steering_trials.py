"""Trying vectors over HTTP, in an application with these routes alone and an engine of arithmetic."""

import asyncio
import json
import math
import threading
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from server.applied import Counted
from server.auth import Authentication, KeyRing
from server.errors import NotFound
from server.pair_writer import SCHEMA
from server.residency import Residency
from server.routes import steering_trials
from server.steering import SteeredModel, Steering
from server.store import DEFAULT_ACCOUNT
from server.studio import Studio
from server.training import Tokenizer, Trainer
from server.trials import cosine_metrics
from server.vectors import NewVector, Vectors
from steering.vector import SteeringVector
from tests.server.apps import routes_alone

MODEL = SteeredModel("org/model", "f" * 64, layers=4, width=3, norms=np.full(4, 2.0, np.float32))
VECTOR = SteeringVector.of({1: np.array([1, 0, 0], np.float32), 2: np.array([0, 1, 0], np.float32)})
LIMIT = 3000


def encode(text):
    """A token per character."""
    return list(text.encode())


class Engine:
    """A text's state points along its vector's axes by its share of `+`; steering makes `+` likelier."""

    def __init__(self):
        self.loaded, self.spans, self.forgotten = {}, [], []

    async def load(self, digest, blob):
        self.loaded[digest] = blob

    async def unload(self, digests):
        for digest in digests:
            del self.loaded[digest]

    async def evidence(self, trace):
        return Counted(1, 0)

    def forget(self, trace):
        self.forgotten.append(trace)

    async def capture(self, tokens, spans, layers):
        self.spans += spans
        [(start, end)] = spans
        share = np.mean([token == ord("+") for token in tokens[start:end]])
        return SimpleNamespace(means=np.tile(np.array([share, share, 1], np.float32), (1, len(layers), 1)))

    async def score(self, tokens, spec):
        strength = sum(term.strength for term in spec.terms) if spec else 0
        if spec:
            assert all(term.vector in self.loaded for term in spec.terms)
        return [-1 + 0.1 * strength * (token == ord("+")) - 0.02 * strength**2 for token in tokens[1:]]


class Serving:
    """Says what `say` makes of a prompt; `asked` keeps the requests."""

    def __init__(self, models):
        self.models, self.asked = models, []
        self.say = lambda asked: "yes" + "!" * bool(asked["steering"])

    def prompted(self, prompt, model, max_tokens, fields, **more):
        return {"prompt": prompt, "model": model, "max_tokens": max_tokens, **more}

    async def decode(self, request, raw, planned=None, *, steering):
        request["steering"] = {path: (entry.vector_id, entry.strength) for path, entry in steering.items()}
        self.asked.append(request)
        said = self.say(request)
        said = await said if asyncio.iscoroutine(said) else said
        return SimpleNamespace(response=SimpleNamespace(choices=[SimpleNamespace(text=said)]))


class Models:
    names, default, max_model_len = ("org/model", "adapter"), "org/model", LIMIT

    def resolve(self, name, bound=None):
        if name in (None, "default"):
            return bound or "org/model"
        if name not in self.names:
            raise NotFound(f"model '{name}' is not served here", param="model")
        return name


@pytest.fixture
def database_url(tmp_path):
    """One kind is enough: the store has tests of its own."""
    return f"sqlite:///{tmp_path / 'steersman.db'}"


@pytest.fixture
async def client(store):
    """A client with the first key; `client.state` is what the routes share, `client.vector` a vector's id."""
    app = routes_alone(steering_trials.router)
    engine, vectors, models = Engine(), Vectors(store.database), Models()
    residency = Residency(engine, 16, 0)
    steering = Steering(engine, vectors, None, residency, MODEL, safe_dose=1.0, max_dose=2.0)
    tokenizer = Tokenizer(encode, encode, lambda prompt: f"user: {prompt}\n", str)
    trainer = Trainer(engine, tokenizer, MODEL, "", ["neutral text", "and more"])
    studio = Studio(MODEL, engine, steering, trainer, None, None, None, None, None)
    app.state.steersman = SimpleNamespace(studio=studio, models=models, serving=Serving(models))
    keyring = KeyRing(store.find_key, ttl=60)
    transport = httpx.ASGITransport(Authentication(app, keyring, lambda method, outcome: None))
    headers = {"x-api-key": await store.first_key()}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        client.state, client.residency = app.state.steersman, residency
        client.vector = await vectors.add(
            NewVector(
                DEFAULT_ACCOUNT,
                VECTOR,
                "caa",
                model_name=MODEL.name,
                model_fingerprint=MODEL.fingerprint,
            )
        )
        yield client


async def evaluate(client, **body):
    texts = {"positive_texts": ["a++", "++b"], "negative_texts": ["abc"]}
    vector = {"steering_vector_id": client.vector}
    return await client.post("/steering/evaluate", json={**vector, **texts, **body})


async def test_cosines_tell_how_well_a_vector_parts_texts(client):
    """Means, their difference, AUROC and dose are given over all layers and for each, without a judge."""
    response = await evaluate(client, multiplier=-2)
    body = response.json()
    assert body["judge_evaluation"] is None
    assert body["steering_vector_id"] == client.vector
    found = body["cosine_metrics"]
    both = [1 / math.sqrt(3), 0.5 / math.sqrt(1.5)]  # shares of 1 and 1/2 after the first position
    assert found["positive"] == pytest.approx(np.mean(both))
    assert (found["negative"], found["auroc"]) == (0, 1)
    assert found["difference"] == pytest.approx(found["positive"])
    assert found["relative_dose"] == pytest.approx(math.sqrt(2))  # of both layers together
    assert found["layers"].keys() == {"1", "2"}
    assert found["layers"]["2"]["relative_dose"] == pytest.approx(1)
    assert found["layers"]["2"]["positive"] == pytest.approx(found["positive"])
    assert response.headers["x-steersman-warning"] == body["warning"]


async def test_cosines_are_computed_beside_the_event_loop(client, monkeypatch):
    """Many long texts hold up nobody else's request."""
    threads = []

    def computed(*args):
        threads.append(threading.current_thread())
        return cosine_metrics(*args)

    monkeypatch.setattr(steering_trials, "cosine_metrics", computed)
    assert (await evaluate(client)).status_code == 200
    assert threading.current_thread() not in threads


async def test_the_first_position_is_left_out(client):
    """States are captured from the second token to the last, an attention sink is not among them."""
    await evaluate(client, positive_texts=["four"], negative_texts=["no"])
    assert sorted(client.state.studio.engine.spans) == [(1, 2), (1, 4)]


@pytest.mark.parametrize("name", [None, "default", "meta-llama/llama-3-8b-instruct"])
async def test_the_served_model_judges(client, name):
    """Every prompt is answered greedily with and without the vector, and both are rated under a schema."""
    serving = client.state.serving
    serving.say = lambda asked: (
        json.dumps({"reason": "so", "score": 9 if "yes!" in asked["prompt"] else 2})
        if "json_schema" in asked
        else "yes" + "!" * bool(asked["steering"])
    )
    response = await evaluate(
        client, judge_model=name, test_prompts=["One?", "Two?"], persona_description="shouts", multiplier=0.5
    )
    judged = response.json()["judge_evaluation"]
    assert (judged["judge_model"], judged["criterion"], judged["judged"]) == ("org/model", "shouts", 2)
    assert (judged["unsteered_score"], judged["steered_score"], judged["difference"]) == (2, 9, 7)
    assert judged["results"][1] == {
        "prompt": "Two?",
        "unsteered": {"answer": "yes", "score": 2, "reason": "so"},
        "steered": {"answer": "yes!", "score": 9, "reason": "so"},
    }
    assert {asked["temperature"] for asked in serving.asked} == {0.0}
    steered = [asked["steering"] for asked in serving.asked if asked["steering"]]
    assert steered == [{"multiplier": (client.vector, 0.5)}] * 2


async def test_the_base_model_speaks_for_a_key_bound_to_an_adapter(client, store):
    """Answers and pairs are of the model whose states and scores they are compared with; the judge may be
    the adapter."""
    [key] = await store.list_keys(DEFAULT_ACCOUNT)
    await store.set_model(key.id, "adapter")
    serving = client.state.serving
    response = await evaluate(client, test_prompts=["One?"])
    assert response.json()["judge_evaluation"]["judge_model"] == "adapter"
    models = {"json_schema" in asked: asked["model"] for asked in serving.asked}
    assert models == {True: "adapter", False: "org/model"}
    serving.asked.clear()
    serving.say = lambda asked: written(1)
    await pairs(client, num_pairs=1)
    assert {asked["model"] for asked in serving.asked} == {"org/model"}


def _times(rows, factor):
    return SteeringVector.of({layer: row * np.float32(factor) for layer, row in rows.items()})


async def test_a_dose_alone_waits_for_no_room(client):
    """Without prompts nothing is loaded: cosines come also while others hold the whole table."""
    large = {layer: np.ones(3, np.float32) for layer in range(4)}
    lease = await client.residency.hold([_times(large, factor) for factor in range(1, 5)])
    response = await evaluate(client, multiplier=0.5)
    assert response.status_code == 200
    assert response.json()["cosine_metrics"]["relative_dose"] > 0
    assert client.state.studio.engine.forgotten == []
    lease.release()


@pytest.mark.parametrize("field", ["judge_model", "persona_description"])
@pytest.mark.parametrize("prompts", [{}, {"test_prompts": None}, {"test_prompts": []}])
async def test_what_only_a_judge_reads_needs_prompts(client, field, prompts):
    """A judge or what it looks for, without anything to judge, is refused by name."""
    response = await evaluate(client, **prompts, **{field: "org/model"})
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", field]


@pytest.mark.parametrize("name", [None, "default", "meta-llama/llama-3-8b-instruct"])
async def test_the_vendors_default_judge_needs_none(client, name):
    """What Axionic's clients may always send is not refused."""
    response = await evaluate(client, judge_model=name, persona_description=None)
    assert (response.status_code, response.json()["judge_evaluation"]) == (200, None)


async def test_a_judge_that_is_cut_off_has_no_score(client):
    """A judge's text that is no JSON leaves its answer without a score, and the means without it."""
    response = await evaluate(client, test_prompts=["One?"])
    judged = response.json()["judge_evaluation"]
    assert (judged["judged"], judged["steered_score"], judged["difference"]) == (0, None, None)
    assert judged["results"][0]["steered"]["score"] is None


async def test_a_judge_that_is_not_served_is_not_found(client):
    """Another model's name is a 404; a served one may judge."""
    assert (await evaluate(client, judge_model="gpt", test_prompts=["One?"])).status_code == 404
    response = await evaluate(client, judge_model="adapter", test_prompts=["One?"])
    assert response.json()["judge_evaluation"]["judge_model"] == "adapter"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"positive_texts": []}, ["positive_texts"]),
        ({"negative_texts": ["ok"] * 513}, ["negative_texts"]),
        ({"negative_texts": ["ok", ""]}, ["negative_texts", 1]),
        ({"negative_texts": ["ok", "x"]}, ["negative_texts", 1]),
        ({"positive_texts": ["x" * LIMIT]}, ["positive_texts", 0]),
        ({"test_prompts": ["ok"] * 33}, ["test_prompts"]),
        ({"test_prompts": ["ok", "x" * LIMIT]}, ["test_prompts", 1]),
        ({"multiplier": 100}, ["multiplier"]),
        ({"strength": 1}, ["strength"]),
    ],
)
async def test_what_cannot_be_evaluated_is_named(client, body, field):
    """Empty, too many, too short and too long texts and too high a dose are 422 and name their field."""
    response = await evaluate(client, **body)
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", *field]


async def test_a_vector_that_is_not_there(client):
    """An unknown vector is a 404."""
    assert (await evaluate(client, steering_vector_id="none")).status_code == 404


async def pairs(client, **body):
    return await client.post("/steering/generate-pairs", json={"persona_name": "pirate", **body})


def written(number, **changes):
    pair = {"prompt": f"Prompt {number}?", "positive_answer": f"+ {number}", "negative_answer": f"- {number}"}
    return json.dumps(pair | changes)


async def test_the_served_model_writes_pairs(client):
    """Each is asked for by schema with another topic and seed; its score is between 0 and 1."""
    serving = client.state.serving
    serving.say = lambda asked: written(asked["seed"])
    response = await pairs(client, persona_description="says arr", num_pairs=3, batch_size=2, seed=5)
    body = response.json()
    assert (body["persona"], body["persona_description"], body["total_pairs"]) == ("pirate", "says arr", 3)
    assert body["pairs"][0] == {
        "prompt": "Prompt 5?",
        "positive_answer": "+ 5",
        "negative_answer": "- 5",
        "score": 0.5,
    }
    assert body["avg_final_score"] == 0.5
    seeds = [asked["seed"] for asked in serving.asked]
    assert seeds == sorted(set(seeds))
    assert len({asked["prompt"] for asked in serving.asked}) == len(seeds)
    assert all("pirate: says arr" in asked["prompt"] for asked in serving.asked)
    assert all(asked["json_schema"] == SCHEMA for asked in serving.asked)
    assert {asked["temperature"] for asked in serving.asked} == {1.0}


async def test_no_pair_is_an_error(client):
    """A model that writes nothing usable is a 503 that says so, not an empty data set."""
    client.state.serving.say = lambda asked: '{"prompt": "cut o'
    response = await pairs(client, num_pairs=2)
    assert response.status_code == 503
    assert "no usable pair" in response.json()["detail"]
    assert len(client.state.serving.asked) == 3 * 2 + 5


async def test_descriptions_must_leave_room(client):
    """A description as long as the model's context is a 422 that names it."""
    response = await pairs(client, persona_description="x" * LIMIT)
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", "persona_description"]


@pytest.mark.parametrize(
    "body",
    [{"num_pairs": 0}, {"num_pairs": 501}, {"batch_size": 0}, {"batch_size": 33}, {"persona_name": ""}],
)
async def test_pairs_are_bounded(client, body):
    """Between 1 and 500 pairs, 1 and 32 at once, for a persona with a name."""
    assert (await pairs(client, **body)).status_code == 422


PAIR = {"prompt": "Say", "positive_answer": "++", "negative_answer": "--"}


async def margins(client, **body):
    vector = {"steering_vector_id": client.vector}
    given = {"pairs": [PAIR], "strengths": [0, 1], **vector, **body}
    return await client.post("/steering/evaluate/margins", json=given)


async def test_margins_follow_the_strength(client):
    """Per strength: each pair's margin in nats per token, the mean, the neutral cost and the dose."""
    body = (await margins(client, strengths=[0, 1, -1], pairs=[PAIR, PAIR | {"positive_answer": "-"}])).json()
    assert body["steering_vector_id"] == client.vector
    zero, up, down = body["results"]
    assert (zero["strength"], zero["margins"], zero["relative_dose"]) == (0, [0, 0], 0)
    assert up["margins"] == pytest.approx([0.1, 0])
    assert (up["mean"], down["mean"]) == (pytest.approx(0.05), pytest.approx(-0.05))
    assert (zero["neutral"], up["neutral"]) == (pytest.approx(1), pytest.approx(1.02))
    assert up["relative_dose"] == pytest.approx(math.sqrt(2) / 2)


async def test_an_inline_vector_has_margins_too(client):
    """A flat vector acts as a stored one, at some layers, and without neutral text there is no cost."""
    flat = {"1": [1, 0, 0], "2": [0, 1, 0]}
    response = await margins(client, steering_vector_id=None, vector=flat, layers=[2], neutral=False)
    _, up = response.json()["results"]
    assert (up["margins"], up["neutral"]) == ([pytest.approx(0.1)], None)
    assert up["relative_dose"] == pytest.approx(0.5)


async def test_margins_release_their_vector(client):
    """When the answer is there, the vector's lines are free for others."""
    await margins(client)
    assert [entry.holders for entry in client.residency._entries.values()] == [0]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"vector": {"1": [1, 0, 0]}}, []),
        ({"steering_vector_id": None}, []),
        ({"pairs": []}, ["pairs"]),
        ({"pairs": [PAIR, {"prompt": "p", "positive_answer": "a"}]}, ["pairs", 1, "negative_answer"]),
        ({"pairs": [PAIR] * 513}, ["pairs"]),
        ({"pairs": [PAIR, PAIR | {"prompt": "x" * LIMIT}]}, ["pairs", 1]),
        ({"strengths": []}, ["strengths"]),
        ({"pairs": [PAIR] * 500, "strengths": [1] * 9}, ["strengths"]),
        ({"strengths": [1, 9]}, ["strengths", 1]),
        ({"layers": [3]}, ["layers"]),
        ({"steering_vector_id": None, "vector": {"1": [1, 0]}}, ["vector"]),
    ],
)
async def test_margins_that_cannot_be_measured_are_named(client, body, field):
    """Sizes, doses, layers and vectors that do not fit are 422 and name their field."""
    response = await margins(client, **body)
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", *field]


async def test_the_score_asks_for_the_persona(client, monkeypatch):
    """A pair is scored after a prompt that asks for the persona, in the model's chat template."""
    seen = []

    async def score(tokens, spec):
        seen.append(bytes(tokens).decode())
        return [-1.0 if "-" in seen[-1] else -0.5] * (len(tokens) - 1)

    monkeypatch.setattr(client.state.studio.engine, "score", score)
    client.state.serving.say = lambda asked: written(1)
    body = (await pairs(client, num_pairs=1)).json()
    assert seen[0] == "user: Answer in this way: pirate.\n\nPrompt 1?\n+ 1"
    assert body["pairs"][0]["score"] == pytest.approx(1 / (1 + math.exp(-0.5)))
