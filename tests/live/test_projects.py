"""Projects and served aliases against the live server, with OpenAI's client."""

import uuid
from contextlib import ExitStack

import httpx
import openai
import pytest

pytestmark = pytest.mark.engine

QUESTION = [{"role": "user", "content": "Name a colour."}]


@pytest.fixture(scope="module")
def lab(server):
    """A project of this module alone: its key, and a client of the server's owner."""
    key = f"lab-{uuid.uuid4().hex[:8]}"
    with httpx.Client(base_url=server.url, headers={"x-api-key": server.key}, timeout=600) as http:
        http.post("/projects", json={"key": key}).raise_for_status()
        yield key, http
        http.delete(f"/projects/{key}").raise_for_status()


@pytest.fixture
def clients():
    """OpenAI's clients of a test, closed at its end."""
    with ExitStack() as stack:
        yield lambda **given: stack.enter_context(openai.OpenAI(**given))


def test_an_alias_answers_under_its_name(server, lab, clients):
    """With what is bound to it: steered, at its temperature; listed to its project and to nobody else."""
    key, http = lab
    client = clients(base_url=f"{server.url}/v1", api_key=server.key, project=key)
    served = client.models.list().data[0].id
    bound = {"steering_preset": "brevity", "temperature": 0, "max_tokens": 4}
    http.put(f"/projects/{key}/models/terse", json={"model": served, "defaults": bound}).raise_for_status()
    assert "terse" in [model.id for model in client.models.list().data]
    assert client.models.retrieve("terse").id == "terse"
    answer = client.chat.completions.create(model="terse", messages=QUESTION)
    assert (answer.model, answer.usage.completion_tokens) == ("terse", 4)
    assert answer.steersman["steering"]["dose"] > 0
    at_home = clients(base_url=f"{server.url}/v1", api_key=server.key)
    assert "terse" not in [model.id for model in at_home.models.list().data]
    named = at_home.chat.completions.create(model=f"{key}/terse", messages=QUESTION)
    assert (named.model, named.choices[0].message.content) == (
        f"{key}/terse",
        answer.choices[0].message.content,
    )
    plain = at_home.chat.completions.create(model=f"{key}/{served}", messages=QUESTION, max_tokens=4)
    assert "steering" not in plain.steersman
    with pytest.raises(openai.NotFoundError):
        at_home.chat.completions.create(model="terse", messages=QUESTION)
    events = list(client.chat.completions.create(model="terse", messages=QUESTION, stream=True))
    assert {event.model for event in events} == {"terse"}


def test_a_policy_bound_to_the_default_model_of_a_project(server, lab):
    """A request that names the project alone runs it, also as text completion; explicit fields still win."""
    key, http = lab
    policy = {"sampling": {"num_candidates": 2}, "constraints": {"stop_sequences": ["."]}}
    served = http.get("/v1/models").json()["data"][0]["id"]
    alias = {"model": served, "defaults": {"policy": policy, "max_tokens": 8}}
    http.put(f"/projects/{key}/models/judged", json=alias).raise_for_status()
    http.patch(f"/projects/{key}", json={"default_model": "judged"}).raise_for_status()
    body = http.post("/v1/chat/completions", json={"model": key, "messages": QUESTION}).json()
    assert body["model"] == key
    assert body["steersman"]["policy"]["accepted"] in (True, False)
    text = http.post("/v1/completions", json={"model": key, "prompt": "Red is"}).json()
    assert (text["model"], "policy" in text["steersman"]) == (key, True)
    refused = http.post("/generate", json={"prompt": "x", "model": key, "stream": False})
    assert (refused.status_code, "policy" in refused.text) == (422, True)


def test_what_is_stored_in_a_project_stays_there(server, lab):
    """Its interactions are listed within it and not at home."""
    key, http = lab
    served = http.get("/v1/models").json()["data"][0]["id"]
    body = {"model": f"{key}/{served}", "messages": QUESTION, "max_tokens": 2, "store": True}
    made = http.post("/v1/chat/completions", json=body).json()
    path = f"/v1/chat/completions/{made['id']}"
    assert http.get(path).status_code == 404
    assert http.get(path, headers={"OpenAI-Project": key}).status_code == 200


def test_a_read_only_key_generates_nothing(server, lab, clients):
    """It lists models; whatever generates is refused at the door."""
    key, http = lab
    made = http.post("/auth/api-keys", json={"role": "read-only"}, headers={"OpenAI-Project": key}).json()
    client = clients(base_url=f"{server.url}/v1", api_key=made["api_key"])
    served = client.models.list().data[0].id
    with pytest.raises(openai.PermissionDeniedError, match="read-only"):
        client.chat.completions.create(model=served, messages=QUESTION)
