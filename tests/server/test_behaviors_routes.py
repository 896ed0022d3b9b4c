"""Behaviours over HTTP, in an application with these routes alone."""

from types import SimpleNamespace

import httpx
import pytest
from sqlalchemy import text

from server.auth import Authentication, KeyRing
from server.errors import NotSupported
from server.routes.behaviors import router
from tests.server.apps import routes_alone
from tests.server.behavior_world import LAYER, MINE, MODEL, PAIRS, World, new

BODY = {
    "behavior_name": "agreeing",
    "prompts": [pair.prompt for pair in PAIRS],
    "positive_answers": [pair.positive for pair in PAIRS],
    "negative_answers": [pair.negative for pair in PAIRS],
    "description": "",  # as Axionic's client sends it
}


class Shared:
    """What the routes use of the server's state; `steered` False: this server cannot steer."""

    def __init__(self, world: World) -> None:
        self.behaviors, self.vectors, self._maker = world.behaviors, world.vectors, world.maker
        self.models = SimpleNamespace(bases=["org/model", "alias"])
        self.steered = True

    @property
    def steered_model(self):
        return MODEL if self.steered else None

    @property
    def behavior_maker(self):
        if not self.steered:
            raise NotSupported("steering is not available here: no test passed")
        return self._maker


@pytest.fixture
async def client(store):
    """A client with the first key; `client.other` are the headers of another account's key."""
    app = routes_alone(router)
    keyring = KeyRing(store.find_key, ttl=60)
    key = await store.first_key()
    async with store.database.writing() as connection:
        await connection.execute(
            text("INSERT INTO accounts VALUES ('other', 'other@localhost', '2026-01-01 00:00:00+00')")
        )
    world = World(store)
    app.state.steersman = Shared(world)
    transport = httpx.ASGITransport(Authentication(app, keyring, lambda method, outcome: None))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", headers={"x-api-key": key}
    ) as client:
        client.world, client.state = world, app.state.steersman
        client.other = {"x-api-key": (await store.create_key("other", None)).key}
        yield client


async def create(client, **body):
    response = await client.post("/behaviors/create", json=BODY | body)
    assert response.status_code == 200, response.text
    return response.json()


def refused(response):
    """Status, path and message."""
    assert response.status_code == 422, response.text
    item = response.json()["detail"][0]
    return item["loc"], item["msg"]


async def test_a_behaviour_is_created_and_looked_up(client):
    """The answer has every field of Axionic's API and documentation, and so have the list and the item."""
    made = await create(client)
    assert (made["behavior_name"], made["description"], made["model_id"]) == ("agreeing", "", "org/model")
    assert made["sae_baseline"]["latents"]
    assert (made["sae_id"], made["sae_release"]) == ("small", "trained here")
    assert (made["hook_name"], made["layer"]) == (f"blocks.{LAYER}.hook_resid_post", LAYER)
    assert (made["auroc"], made["peak_auroc"], made["true_positive_rate"]) == (1.0, 1.0, 1.0)
    assert made["false_positive_rate"] <= 0.2
    assert made["threshold"] == made["sae_baseline"]["threshold"]
    assert made["steering_strength"] < 0
    assert made["readiness"] == {
        "ready": True,
        "state": "ready",
        "monitored": True,
        "corrected": True,
        "missing": [],
    }
    assert (await client.get(f"/behaviors/{made['id']}")).json() == made
    assert (await client.get("/behaviors")).json() == [made]
    assert (await client.get(made["sae_baseline_path"])).json() == made
    [first, *others] = (await client.get(made["generation_prompts_path"])).json()
    assert first == {
        "prompt": PAIRS[0].prompt,
        "positive_answer": PAIRS[0].positive,
        "negative_answer": PAIRS[0].negative,
    }
    assert len(others) == len(PAIRS) - 1
    record = await client.world.vectors.get(MINE, made["steering_vector_id"])
    assert record.category == "behavior"


async def test_prompts_may_be_left_out(client):
    """Answers then stand alone."""
    made = await create(client, prompts=None)
    assert {pair.prompt for pair in await client.world.behaviors.pairs(MINE, made["id"])} == {""}


@pytest.mark.parametrize(
    ("change", "path", "said"),
    [
        ({"behavior_name": ""}, ["behavior_name"], "at least 1"),
        ({"behavior_name": "x" * 201}, ["behavior_name"], "at most 200"),
        ({"behavior_name": "nul\0"}, ["behavior_name"], "pattern"),
        ({"behavior_name": None}, ["behavior_name"], "valid string"),
        ({"positive_answers": ["a"] * 3}, ["positive_answers"], "at least 4"),
        ({"positive_answers": ["a"] * 5001}, ["positive_answers"], "at most 5000"),
        ({"positive_answers": ["a", "b", "", "d"]}, ["positive_answers", 2], "at least 1 char"),
        ({"negative_answers": None}, ["negative_answers"], "/steering/generate-pairs"),
        ({"negative_answers": []}, ["negative_answers"], "/steering/generate-pairs"),
        ({"negative_answers": ["a"] * 5}, ["negative_answers"], "12 positive answers, so this needs 12"),
        ({"prompts": ["a"] * 5}, ["prompts"], "needs 12 entries, not 5"),
        ({"prompts": []}, ["prompts"], "needs 12 entries, not 0"),
        ({"layer_names": ["layers.3"]}, ["layer_names", 0], "reads layers.4"),
        ({"false_positives": 0.6}, ["false_positives"], "less than or equal to 0.5"),
        ({"false_positives": -0.1}, ["false_positives"], "greater than or equal to 0"),
        ({"threshold": 0.5}, ["threshold"], "unknown field"),
        ({"sae": ""}, ["sae"], "at least 1"),
        ({"negative_answers": BODY["positive_answers"]}, ["positive_answers"], "no latent tells"),
    ],
)
async def test_a_bad_body_is_refused_by_its_field(client, change, path, said):
    loc, message = refused(await client.post("/behaviors/create", json=BODY | change))
    assert loc == ["body", *path]
    assert said in message
    assert (await client.get("/behaviors")).json() == []
    assert await client.world.vectors.list(MINE) == []


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"steering_vector_id": "nothing"}, 404, "nothing"),
        ({"sae": "large"}, 404, "large"),
        ({"sae": "foreign"}, 409, "another model"),
    ],
)
async def test_what_a_body_names_must_be_there(client, change, status, said):
    response = await client.post("/behaviors/create", json=BODY | change)
    assert (response.status_code, said in response.json()["detail"]) == (status, True)


async def test_a_name_that_is_taken_is_a_conflict(client):
    made = await create(client)
    response = await client.post("/behaviors/create", json=BODY)
    assert response.status_code == 409
    assert made["id"] in response.json()["detail"]


async def test_without_an_autoencoder_it_says_what_makes_one(client):
    client.world.saes.known.clear()
    response = await client.post("/behaviors/create", json=BODY)
    assert response.status_code == 409
    assert "steersman sae train" in response.json()["detail"]
    assert "make sae" in response.json()["detail"]


async def test_renaming_and_deleting(client):
    made = await create(client)
    path = f"/behaviors/{made['id']}"
    response = await client.patch(f"{path}/rename", json={"behavior_name": "nodding"})
    assert (response.status_code, response.json()["behavior_name"]) == (200, "nodding")
    loc, _ = refused(await client.patch(f"{path}/rename", json={"behavior_name": ""}))
    assert loc == ["body", "behavior_name"]
    loc, _ = refused(await client.patch(f"{path}/rename", json={"name": "x"}))
    assert loc[0] == "body"
    await create(client)
    assert (await client.patch(f"{path}/rename", json={"behavior_name": "agreeing"})).status_code == 409
    assert (await client.delete(path)).json() == {"id": made["id"], "deleted": True}
    for response in (
        await client.delete(path),
        await client.get(path),
        await client.get(f"{path}/readiness"),
        await client.get(f"{path}/examples"),
        await client.patch(f"{path}/rename", json={"behavior_name": "x"}),
    ):
        assert response.status_code == 404
    assert len((await client.get("/behaviors")).json()) == 1
    kept = await client.world.vectors.get(MINE, made["steering_vector_id"])
    assert kept.id == made["steering_vector_id"]


async def test_another_account_sees_nothing(client):
    made = await create(client)
    for response in (
        await client.get(f"/behaviors/{made['id']}", headers=client.other),
        await client.get(f"/behaviors/{made['id']}/examples", headers=client.other),
        await client.delete(f"/behaviors/{made['id']}", headers=client.other),
        await client.post(
            "/behaviors/recompute-baselines",
            json={"model_id": "default", "behavior_ids": [made["id"]]},
            headers=client.other,
        ),
    ):
        assert response.status_code == 404
    assert (await client.get("/behaviors", headers=client.other)).json() == []
    observed = (await client.get("/observability/behaviors", headers=client.other)).json()
    assert observed == {"behaviors": [], "total": 0, "ready": 0, "partial": 0}


async def test_a_lost_vector_makes_a_behaviour_partial(client):
    """Its readiness, the list and what is observed say so; calibrating anew makes it ready."""
    made, whole = await create(client), await create(client, behavior_name="whole")
    await client.world.vectors.delete(MINE, made["steering_vector_id"])
    found = (await client.get(f"/behaviors/{made['id']}/readiness")).json()
    assert (found["id"], found["behavior_name"], found["state"]) == (made["id"], "agreeing", "partial")
    assert (found["ready"], found["monitored"], found["corrected"]) == (False, True, False)
    assert [each["part"] for each in found["missing"]] == ["steering_vector"]
    listed = {item["id"]: item["readiness"]["state"] for item in (await client.get("/behaviors")).json()}
    assert listed == {made["id"]: "partial", whole["id"]: "ready"}

    async def observed(**query):
        answer = (await client.get("/observability/behaviors", params=query)).json()
        assert (answer["total"], answer["ready"], answer["partial"]) == (2, 1, 1)
        return {item["id"] for item in answer["behaviors"]}

    assert await observed() == await observed(state="all") == {made["id"], whole["id"]}
    assert await observed(state="ready") == {whole["id"]}
    assert await observed(state="partial") == {made["id"]}
    loc, _ = refused(await client.get("/observability/behaviors", params={"state": "broken"}))
    assert loc[-1] == "state"

    answer = (await client.post("/behaviors/recompute-baselines", json={"model_id": "alias"})).json()
    assert (answer["model_id"], answer["total"]) == ("alias", 2)
    assert (answer["succeeded"], answer["failed"], answer["skipped"]) == (1, 0, 1)
    by_id = {result["behavior_id"]: result for result in answer["results"]}
    assert by_id[made["id"]] == {
        "behavior_id": made["id"],
        "behavior_name": "agreeing",
        "status": "succeeded",
        "baseline_path": f"/behaviors/{made['id']}",
        "error": None,
    }
    assert by_id[whole["id"]]["status"] == "skipped"
    assert (await client.get(f"/behaviors/{made['id']}/readiness")).json()["ready"] is True


async def test_a_failure_to_calibrate_anew_is_told(client):
    made = await client.world.behaviors.add(new(model_fingerprint="e" * 64, model_name="org/old"))
    client.world.saes.known.clear()
    answer = (await client.post("/behaviors/recompute-baselines", json={"model_id": "default"})).json()
    assert (answer["total"], answer["failed"]) == (1, 1)
    [result] = answer["results"]
    assert (result["behavior_id"], result["status"], result["baseline_path"]) == (made.id, "failed", None)
    assert "steersman sae train" in result["error"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"model_id": "gpt-17"}, 404, "gpt-17"),
        ({}, 422, "model_id"),
        ({"model_id": "default", "behavior_ids": []}, 422, "behavior_ids"),
        ({"model_id": "default", "behavior_ids": ["nothing"]}, 404, "nothing"),
        ({"model_id": "default", "ids": ["nothing"]}, 422, "ids"),
    ],
)
async def test_bad_requests_to_calibrate_anew(client, body, status, said):
    response = await client.post("/behaviors/recompute-baselines", json=body)
    assert (response.status_code, said in response.text) == (status, True)


async def test_a_server_that_cannot_steer(client):
    """Makes none and says why; what there is can be listed, renamed and deleted."""
    made = await create(client)
    client.state.steered = False
    for path, body in (("create", BODY), ("recompute-baselines", {"model_id": "default"})):
        response = await client.post(f"/behaviors/{path}", json=body)
        assert (response.status_code, "no test passed" in response.text) == (501, True)
    [item] = (await client.get("/behaviors")).json()
    assert [each["part"] for each in item["readiness"]["missing"]] == ["model"]
    path = f"/behaviors/{made['id']}"
    assert (await client.patch(f"{path}/rename", json={"behavior_name": "x"})).status_code == 200
    assert (await client.delete(path)).status_code == 200


async def test_the_schemas_have_axionic_s_names(client):
    schemas = routes_alone(router).openapi()["components"]["schemas"]
    assert {
        "BehaviorRequest",
        "BehaviorResponse",
        "RenameBehaviorRequest",
        "RecomputeBaselinesRequest",
        "RecomputeBaselinesResponse",
        "RecomputeBaselineResult",
    } <= set(schemas)
    required = {"id", "steering_vector_id", "sae_baseline_path", "created_at"}
    assert required <= set(schemas["BehaviorResponse"]["required"])
