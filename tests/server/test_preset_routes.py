"""GET and POST /steering/presets."""

import pytest

from policies.steering import OWN_EXAMPLES, PRESET_FLOORS
from tests.server.steering_app import PAIRS, Behind, opened, vector

FOUR = {name: texts * 4 for name, texts in PAIRS.items()}


@pytest.fixture
async def behind():
    """What stands behind the routes."""
    return Behind()


@pytest.fixture
async def client(behind):
    """A client of the routes; `client.state` may be changed."""
    async with opened(behind) as http:
        yield http


async def test_presets_are_listed(client, behind):
    """Each with its least strength, and its vector where there is one: one's own for one's own examples."""
    behind.known = {
        ("brevity", None): vector("brevity", None),
        (OWN_EXAMPLES, "me"): vector(OWN_EXAMPLES, "me"),
        (OWN_EXAMPLES, None): vector("shared", None),
    }
    listed = {each["name"]: each for each in (await client.get("/steering/presets")).json()}
    assert {name: each["minimum_strength"] for name, each in listed.items()} == PRESET_FLOORS
    made = {name: each["vector_id"] for name, each in listed.items() if each["vector_id"]}
    assert made == {"brevity": "v-brevity", OWN_EXAMPLES: f"v-{OWN_EXAMPLES}"}


async def test_a_preset_is_built_ahead(client, behind):
    """By its name in any case, without a body."""
    response = await client.post("/steering/presets/Brevity")
    assert (response.status_code, response.json()["preset"]) == (200, "brevity")


async def test_a_preset_is_made_from_ones_own_examples(client, behind):
    """The pairs go to the account's own preset."""
    response = await client.post(f"/steering/presets/{OWN_EXAMPLES}", json=FOUR)
    assert (response.status_code, response.json()["id"]) == (200, f"v-{OWN_EXAMPLES}")
    ((name, pairs, account),) = behind.built
    assert (name, len(pairs), account) == (OWN_EXAMPLES, 4, "me")


@pytest.mark.parametrize(
    ("preset", "body", "message"),
    [
        ("brevity", FOUR, "only domain_specific takes examples"),
        ("json_compliance", None, "has no vector"),
        (OWN_EXAMPLES, None, "send at least 4 prompts"),
        (OWN_EXAMPLES, PAIRS, "send at least 4 prompts"),
        (OWN_EXAMPLES, {**FOUR, "negative_answers": None, "method": "few-shot"}, "method has no effect"),
        (OWN_EXAMPLES, {**FOUR, "layer_idxs": [1]}, "layer_idxs has no effect here"),
        (OWN_EXAMPLES, {**FOUR, "name": "n"}, "name has no effect here"),
    ],
)
async def test_presets_that_cannot_be_built(client, behind, preset, body, message):
    """Examples belong to one preset alone, which takes nothing but pairs of both kinds, at least four."""
    response = await client.post(f"/steering/presets/{preset}", json=body)
    assert response.status_code == 422
    assert message in response.text
    assert behind.built == []


async def test_an_unknown_preset_is_not_found(client):
    """404, with the names that there are."""
    response = await client.post("/steering/presets/irony")
    assert response.status_code == 404
    assert "known: brevity" in response.json()["detail"]
