"""POST /steering/run and /generate: how requests are steered, and answered with what was applied."""

import json

import pytest

from policies.steering import SteeringEntry
from tests.server.steering_app import Behind, detail, events, opened


@pytest.fixture
async def behind():
    """What stands behind the routes."""
    return Behind()


@pytest.fixture
async def client(behind):
    """A client of the routes; `client.state` may be changed."""
    async with opened(behind) as http:
        yield http


@pytest.mark.parametrize(
    ("sent", "strengths"),
    [
        ({"steering_vector_id": "v"}, [1.0]),
        ({"steering_vector_id": "v", "multiplier": 0.5}, [0.5]),
        ({"steering_vector_id": "v", "steering_strength": 2, "multiplier": -1.5}, [-3.0]),
        ({"steering_vector_id": ["v", "w"], "steering_strength": [1, 2], "multiplier": 2}, [2.0, 4.0]),
        ({"steering_vector_id": "v", "multiplier": 0}, [0.0]),
        ({"steering_vector": {"1": [0.5]}, "steering": {"vector_id": "v", "strength": 3}}, [1.0, 3.0]),
        ({"steering_preset": "refusal_strength", "steering_strength": 0.1, "multiplier": 2}, [1.3]),
        ({"steering_preset": "Brevity", "multiplier": 0.35}, [0.35]),
    ],
)
async def test_running_with_a_multiplier(client, behind, sent, strengths):
    """Every strength is multiplied, an absent one counts as 1, and all the rest is as on /generate."""
    body = {"prompt": "p", "max_tokens": 7, "temperature": 0.1, "stream": False, **sent}
    response = await client.post("/steering/run", json=body)
    assert response.json() == {
        "output": "whole",
        "text": "whole",
        "method_used": "top-k",
        "steering": {"dose": 0.5},
    }
    assert response.headers["x-steersman-steering"] == "print"
    assert [entry.effective_strength for entry in behind.entries.values()] == pytest.approx(strengths)
    assert (behind.sent[0].max_tokens, behind.sent[0].fields.temperature) == (7, 0.1)


async def test_running_keeps_what_an_entry_says(client, behind):
    """Operation, layers, tokens and gate of an entry stay as they are."""
    entry = {
        "vector_id": "v",
        "strength": 2,
        "operation": "clamp",
        "low": -1,
        "layers": [1, 2],
        "tokens": "generated",
        "gate": {"threshold": 0.25},
    }
    sent = {"prompt": "p", "steering": entry, "multiplier": 0.5, "stream": False}
    await client.post("/steering/run", json=sent)
    assert behind.entries == {"steering": SteeringEntry.model_validate({**entry, "strength": 1})}


async def test_running_keeps_the_clients_paths(client, behind):
    """Errors can name what the client sent, as on /generate."""
    sent = {"steering_vector": {"1": [0.5]}, "steering": [{"vector_id": "v"}], "multiplier": 2}
    await client.post("/steering/run", json={"prompt": "p", "stream": False, **sent})
    assert list(behind.entries) == ["steering_vector", "steering.0"]


def chunk(text: str, finish: str | None = None) -> str:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return f"data: {json.dumps({'choices': [choice]})}\n\n"


async def test_running_as_events(client, behind):
    """As on /generate: tokens, then the whole text with what was applied."""
    behind.chunks = [chunk("so"), ": keep-alive\n\n", chunk("ft", "stop"), "data: [DONE]\n\n"]
    response = await client.post("/steering/run", json={"prompt": "p", "steering_vector_id": "v"})
    *tokens, last = events(response)
    assert [each["token"] for each in tokens] == ["so", "ft"]
    assert last["status"] == "complete"
    assert (last["result"]["output"], last["result"]["steering"]) == ("soft", {"dose": 0.5})


async def test_a_text_that_was_not_steered_ends_in_an_error_event(client, behind):
    """The error that follows the last chunk reaches Axionic's client as one."""
    failure = {"error": {"message": "the request ran unsteered", "type": "unavailable_error", "code": 503}}
    behind.chunks = [chunk("soft", "stop"), f"data: {json.dumps(failure)}\n\n", "data: [DONE]\n\n"]
    response = await client.post("/steering/run", json={"prompt": "p", "steering_vector_id": "v"})
    assert events(response)[-1] == {"status": "error", "message": "the request ran unsteered"}


@pytest.mark.parametrize(
    ("sent", "path", "message"),
    [
        ({}, ["body", "steering_vector_id"], "name a vector"),
        ({"steering_strength": 0}, ["body", "steering_vector_id"], "name a vector"),
        ({"multiplier": "much", "steering_vector_id": "v"}, ["body", "multiplier"], "valid number"),
        ({"multiplier": 1e6, "steering_vector_id": "v"}, ["body", "multiplier"], "1000"),
        ({"steering_preset": "irony"}, ["body", "steering_preset"], "unknown preset"),
        ({"steering_vector_id": "v", "factor": 2}, ["body", "factor"], "unknown field"),
        ({"steering_preset": "brevity", "multiplier": -1}, ["body", "multiplier"], "at least 0.35, not -1"),
        ({"steering_preset": "brevity", "multiplier": 0}, ["body", "multiplier"], "at least 0.35, not 0"),
        ({"steering": {"preset": "Brevity"}, "multiplier": 0.3}, ["body", "multiplier"], "not 0.3"),
        (
            {"steering_vector_id": "v", "steering_preset": "brevity", "multiplier": -1},
            ["body", "multiplier"],
            "brevity is at least 0.35",
        ),
        (
            {"steering_preset": "brevity", "steering_strength": -1},
            ["body", "steering_strength"],
            "at least 0.35",
        ),
        (
            {"steering_preset": ["brevity", "brevity"], "steering_strength": [1, -1]},
            ["body", "steering_strength", 1],
            "at least 0.35",
        ),
        (
            {"steering": {"preset": "brevity", "strength": -0.1}},
            ["body", "steering", "strength"],
            "at least 0.35",
        ),
    ],
)
async def test_what_cannot_be_run(client, behind, sent, path, message):
    """Nothing to steer by, a preset that would undo the multiplier or turn the strength's sign, or a field
    that is none: refused by name."""
    response = await client.post("/steering/run", json={"prompt": "p", **sent})
    status, where, why = detail(response)
    assert (status, where) == (422, path)
    assert message in why
    assert behind.sent == []


async def test_plain_generation_takes_steering_too(client, behind):
    """/generate passes on what it was given, lists included, and adds nothing."""
    body = {"prompt": "p", "stream": False, "steering_vector_id": ["v", "w"], "steering_strength": 0.5}
    await client.post("/generate", json=body)
    entries = {path: (entry.vector_id, entry.strength) for path, entry in behind.entries.items()}
    assert entries == {"steering_vector_id.0": ("v", 0.5), "steering_vector_id.1": ("w", 0.5)}
