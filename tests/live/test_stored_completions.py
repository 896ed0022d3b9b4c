"""Stored chat completions of the running server, by OpenAI's own client."""

import json
import subprocess
import sys
import uuid

import httpx
import openai
import pytest
from sqlalchemy import text

from server.embedded import NAME
from server.store import Store
from steering.train.pairs import read_jsonl

pytestmark = pytest.mark.engine

MESSAGES = [{"role": "user", "content": "Name a river."}]
CHAT = "/v1/chat/completions"


@pytest.fixture
def run():
    """A label of this test's own, so that it finds its completions alone."""
    return {"run": uuid.uuid4().hex}


def create(oai, run, **fields):
    fields = {"messages": MESSAGES, "max_tokens": 8, "temperature": 0, "store": True, **fields}
    return oai.chat.completions.create(model=NAME, metadata=run, **fields)


def listed(oai, run, **fields):
    return [each.id for each in oai.chat.completions.list(metadata=run, **fields)]


def test_a_stored_completion_is_found_at_once(oai, run):
    """The same object, with its labels; what did not ask to be stored is not found."""
    answer = create(oai, run)
    found = oai.chat.completions.retrieve(answer.id)
    assert found.metadata == run
    assert found.choices == answer.choices
    assert found.usage == answer.usage
    assert (found.id, found.model, found.created) == (answer.id, answer.model, answer.created)
    assert found.model_extra["steersman"] == answer.model_extra["steersman"]
    assert found.model_extra["temperature"] == 0
    other = oai.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=2)
    with pytest.raises(openai.NotFoundError):
        oai.chat.completions.retrieve(other.id)


def test_a_stream_is_stored_as_the_answer_that_it_was(oai, run):
    """Text, finish reason and usage of the same greedy answer without a stream, usage asked for or not."""
    whole = create(oai, run)
    for options in ({}, {"stream_options": {"include_usage": True}}):
        chunks = list(create(oai, run, stream=True, **options))
        streamed = "".join(each.choices[0].delta.content or "" for each in chunks if each.choices)
        found = oai.chat.completions.retrieve(chunks[0].id)
        assert found.choices[0].message.content == streamed == whole.choices[0].message.content
        assert found.choices[0].finish_reason == whole.choices[0].finish_reason
        assert found.usage.completion_tokens == whole.usage.completion_tokens
        assert found.usage.prompt_tokens == whole.usage.prompt_tokens
        assert found.model_extra["steersman"]["method_used"] == "greedy"


def test_siblings_and_tools_are_stored_from_streams(oai, run):
    """Each choice in its place; a call's arguments whole."""
    chunks = list(create(oai, run, stream=True, n=3, temperature=1, max_tokens=6))
    found = oai.chat.completions.retrieve(chunks[0].id)
    for index in range(3):
        said = [c.delta.content or "" for each in chunks for c in each.choices if c.index == index]
        assert found.choices[index].message.content == "".join(said)
    clock = {
        "type": "function",
        "function": {
            "name": "get_time",
            "parameters": {
                "type": "object",
                "properties": {"zone": {"type": "string", "enum": ["UTC", "CET"]}},
                "required": ["zone"],
                "additionalProperties": False,
            },
        },
    }
    named = {"type": "function", "function": {"name": "get_time"}}
    chunks = list(create(oai, run, stream=True, tools=[clock], tool_choice=named, max_tokens=160))
    found = oai.chat.completions.retrieve(chunks[0].id)
    (call,) = found.choices[0].message.tool_calls
    assert call.function.name == "get_time"
    assert json.loads(call.function.arguments)["zone"] in ("UTC", "CET")


def test_steering_is_stored_with_the_answer(oai, run, vector):
    steered = create(oai, run, extra_body={"steering_vector_id": vector, "steering_strength": 0.1})
    found = oai.chat.completions.retrieve(steered.id)
    assert found.model_extra["steersman"] == steered.model_extra["steersman"]
    assert found.model_extra["steersman"]["steering"]["vectors"][0]["id"] == vector


def test_pages_labels_and_deletion(oai, run):
    made = [create(oai, {**run, "turn": str(index % 2)}, max_tokens=2).id for index in range(5)]
    assert listed(oai, run, limit=2) == made
    assert listed(oai, run, limit=2, order="desc") == made[::-1]
    assert listed(oai, {**run, "turn": "1"}, model=NAME) == made[1::2]
    assert listed(oai, run, after=made[2]) == made[3:]
    assert listed(oai, run, model="none") == []
    changed = oai.chat.completions.update(made[0], metadata={**run, "rating": "good"})
    assert changed.metadata == {**run, "rating": "good"}
    assert listed(oai, {"rating": "good", **run}) == [made[0]]
    gone = oai.chat.completions.delete(made[0])
    assert (gone.deleted, gone.object) == (True, "chat.completion.deleted")
    assert listed(oai, run) == made[1:]
    with pytest.raises(openai.NotFoundError):
        oai.chat.completions.delete(made[0])


def test_the_messages_are_those_of_the_request(oai, run):
    messages = [{"role": "system", "content": "Be brief."}, *MESSAGES]
    answer = create(oai, run, messages=messages)
    found = list(oai.chat.completions.messages.list(answer.id, limit=1))
    assert [(each.role, each.content) for each in found] == [
        ("system", "Be brief."),
        ("user", "Name a river."),
    ]


async def test_another_account_sees_nothing(server, oai, run):
    """Its key is made in the server's own database."""
    answer = create(oai, run)
    store = Store(f"sqlite:///{server.home / 'test.db'}")
    account = uuid.uuid4().hex
    async with store.database.writing() as connection:
        await connection.execute(
            text("INSERT INTO accounts VALUES (:id, :id, '2026-01-01 00:00:00+00')"), {"id": account}
        )
    key = (await store.create_key(account, None)).key
    await store.close()
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as other:
        assert [each.id async for each in other.chat.completions.list()] == []
        for act in (
            other.chat.completions.retrieve(answer.id),
            other.chat.completions.delete(answer.id),
            other.chat.completions.update(answer.id, metadata={}),
        ):
            with pytest.raises(openai.NotFoundError):
                await act
    assert oai.chat.completions.retrieve(answer.id).id == answer.id


def test_core_routes_beneath_the_path_still_answer(client):
    """vLLM has /v1/chat/completions/render and others, which an id must not hide."""
    answer = client.post(f"{CHAT}/render", json={"model": NAME, "messages": MESSAGES})
    assert "is stored" not in answer.text
    assert answer.status_code != 404 or "completion_id" not in answer.text


def test_a_client_that_leaves_leaves_nothing_behind(server, client, oai, run):
    """Of an answer that it did not wait for."""
    body = {"messages": MESSAGES, "max_tokens": 1500, "ignore_eos": True, "store": True, "metadata": run}
    with (
        pytest.raises(httpx.ReadTimeout),
        httpx.Client(base_url=server.url, headers=client.headers, timeout=0.5) as hasty,
    ):
        hasty.post(CHAT, json=body)
    with client.stream("POST", CHAT, json={**body, "stream": True}) as response:
        next(response.iter_lines())
    assert listed(oai, run) == []


def test_feedback_is_given_on_a_stored_completion(client, oai, run):
    answer = create(oai, run)
    path = f"{CHAT}/{answer.id}/feedback"
    given = client.post(path, json={"metric": "polite", "value": 1, "reason": "kind"})
    assert given.status_code == 201, given.text
    assert client.get(path).json()["data"] == [given.json()]


def test_ratings_become_pairs_for_training(server, oai, run, tmp_path):
    """Two answers to one prompt, labelled afterwards, exported by the command line."""
    good, bad = (create(oai, run, temperature=1, seed=seed, max_tokens=12) for seed in (1, 2))
    oai.chat.completions.update(good.id, metadata={**run, "rating": "good"})
    oai.chat.completions.update(bad.id, metadata={**run, "rating": "bad"})
    path = tmp_path / "pairs.jsonl"
    url = f"sqlite:///{server.home / 'test.db'}"
    command = [sys.executable, "-m", "server", "interactions", "--steersman-database-url", url, "export"]
    flags = ["--format", "pairs", "--positive", "rating=good", "--negative", "rating=bad"]
    label = f"run={run['run']}"
    done = subprocess.run(
        [*command, *flags, "--metadata", label, "--output", str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [pair] = read_jsonl(path.read_text())
    assert pair.prompt == "Name a river."
    assert pair.positive == good.choices[0].message.content
    assert pair.negative == bad.choices[0].message.content
