"""Adaptive's chat completions on the running server: its own SDK, OpenAI's client, and plain HTTP."""

import time
from typing import Literal
from uuid import UUID, uuid4

import httpx
import openai
import pytest
from pydantic import BaseModel, Field

from server.embedded import NAME
from tests.adaptive import check, refused

pytestmark = pytest.mark.engine

CHAT = "/api/v1/chat/completions"
ASKED = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "Say hello in exactly 3 words."},
]
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJ"
    "RU5ErkJggg=="
)
PROMPT = 2000  # characters of a first turn: more than a few blocks of the prefix cache


class Score(BaseModel):
    value: int = Field(ge=0, le=9)


class Classification(BaseModel):
    label: Literal["good", "bad"]
    score: Score


@pytest.fixture(scope="module")
def sdk(server):
    """Adaptive's client as its documentation makes one."""
    adaptive_sdk = pytest.importorskip("adaptive_sdk", reason="scripts/install.sh installs it")
    made = adaptive_sdk.Adaptive(base_url=server.url, api_key=server.key)
    made.set_default_project("default")
    yield made
    made.close()


@pytest.fixture
def chat(sdk):
    def ask(**fields):
        return sdk.chat.create(**{"messages": ASKED, "max_tokens": 12, "temperature": 0, **fields})

    return ask


def answered(client, **more):
    response = client.post(CHAT, json={"messages": ASKED, "max_tokens": 8, **more})
    assert response.status_code == 200, response.text
    return check(response.json(), "ChatResponse")


def stored(client, label):
    """The completions that are stored under a label."""
    response = client.get("/v1/chat/completions", params={"metadata[test]": label})
    assert response.status_code == 200, response.text
    return response.json()["data"]


def test_the_documented_example_answers(chat, client):
    """By a model of the project, with labels, and is logged without being asked to be."""
    label = str(uuid4())
    response = chat(model=NAME, labels={"test": label})
    (choice,) = response.choices
    assert choice.message.content
    assert (choice.message.role, choice.index, choice.model) == ("assistant", 0, NAME)
    assert response.usage.total_tokens == response.usage.prompt_tokens + response.usage.completion_tokens
    (kept,) = stored(client, label)
    assert kept["id"] == response.id
    assert kept["choices"][0]["completion_id"] == str(UUID(choice.completion_id))
    assert kept["session_id"] == str(response.session_id)


def test_no_model_is_the_projects_own(chat):
    """Its default answers, and the choice says which that was."""
    assert chat().choices[0].model == NAME


def test_a_stream_is_the_whole_answer(chat):
    """Greedy, its text is the same; the usage comes only to who asks."""
    whole = chat()
    pieces = list(chat(stream=True))
    assert "".join(piece.choices[0].delta.content for piece in pieces) == whole.choices[0].message.content
    assert len(pieces) > 3
    assert len({piece.choices[0].completion_id for piece in pieces}) == 1
    assert len({(piece.id, piece.session_id) for piece in pieces}) == 1
    assert pieces[-1].choices[0].finish_reason in ("stop", "length")
    *_, last = chat(stream=True, stream_include_usage=True)
    assert (last.choices, last.usage.completion_tokens) == ([], whole.usage.completion_tokens)


async def test_the_asynchronous_client_does_both(server):
    """With its project named in each call."""
    adaptive_sdk = pytest.importorskip("adaptive_sdk", reason="scripts/install.sh installs it")
    client = adaptive_sdk.AsyncAdaptive(base_url=server.url, api_key=server.key)
    asked = {"messages": ASKED, "max_tokens": 12, "temperature": 0, "project": "default"}
    whole = await client.chat.create(**asked)
    stream = await client.chat.create(**asked, stream=True)
    text = "".join([piece.choices[0].delta.content async for piece in stream])
    assert text == whole.choices[0].message.content
    await client.close()


@pytest.mark.parametrize("stream", [False, True])
def test_structured_output_parses(chat, stream):
    """A pydantic class, which the client inlines, holds what is generated, streamed or not."""
    asked = [{"role": "user", "content": "Classify: 'late and damaged'"}]
    found = chat(messages=asked, response_format=Classification, max_tokens=120, stream=stream)
    if stream:
        text = "".join(piece.choices[0].delta.content for piece in found)
    else:
        text = found.choices[0].message.content
    assert Classification.model_validate_json(text).score.value in range(10)


def test_what_declines_is_not_stored(chat, client):
    """It is answered like any other."""
    label = str(uuid4())
    assert chat(labels={"test": label}, store=False).choices
    assert stored(client, label) == []


def test_a_session_is_the_requests(chat, client):
    """In whole answers and streams, and in what is stored."""
    session, label = uuid4(), str(uuid4())
    whole = chat(session_id=session, labels={"test": label}, user=uuid4())
    pieces = list(chat(session_id=str(session), labels={"test": label}, stream=True))
    assert {whole.session_id, *(piece.session_id for piece in pieces)} == {session}
    kept = stored(client, label)
    assert [each["session_id"] for each in kept] == [str(session)] * 2
    first, second = (each["choices"][0] for each in kept)
    assert second["message"]["content"] == first["message"]["content"]
    assert second["completion_id"] == pieces[0].choices[0].completion_id


def hits(client):
    lines = [line.split() for line in client.get("/metrics").text.splitlines()]
    return sum(
        float(line[-1]) for line in lines if line and line[0].startswith("vllm:prefix_cache_hits_total")
    )


@pytest.mark.parametrize("stream", [False, True])
def test_the_second_turn_of_a_session_finds_the_first_cached(chat, client, stream):
    """All whole blocks of its prompt, and of the answer to it."""
    session = uuid4()
    asked = [{"role": "user", "content": f"{session} " + "Rivers are long. " * (PROMPT // 17)}]
    first = chat(messages=asked, session_id=session)
    before = hits(client)
    answer = {"role": "assistant", "content": first.choices[0].message.content}
    more = [*asked, answer, {"role": "user", "content": "And lakes?"}]
    second = chat(messages=more, session_id=session, stream=stream)
    if stream:
        list(second)
    assert hits(client) - before >= first.usage.prompt_tokens - 32


def test_responses_fit_the_vendors_description(client, ask):
    """Whole and streamed, with several choices, log-probabilities and functions."""
    schema = {"type": "object", "properties": {"a": {"const": "b"}}, "required": ["a"]}
    function = {"name": "get", "parameters": schema}
    named = {"type": "function", "function": {"name": "get"}}
    calls = {"tools": [{"type": "function", "function": function}], "tool_choice": named, "max_tokens": 60}
    for fields in ({}, {"n": 2}, {"logprobs": True}, calls, {"sampling_method": "constrained-beam-search"}):
        body = answered(client, model=f"default/{NAME}", **fields)
        assert body["model"] == f"default/{NAME}"
        asked = {"model": f"default/{NAME}", "messages": ASKED, "max_tokens": 8, **fields}
        for chunk in ask.events(CHAT, **asked):
            assert check(chunk, "ChatResponseChunk")["choices"]
            assert (chunk["model"], chunk["choices"][0]["model"]) == (f"default/{NAME}", NAME)


def test_openais_client_asks_by_project_and_model(server, client):
    """At the base URL that is documented, with `metadata` for labels."""
    label = str(uuid4())
    with openai.OpenAI(base_url=f"{server.url}/api/v1", api_key=server.key, max_retries=0) as made:
        fields = {"model": f"default/{NAME}", "messages": ASKED, "max_tokens": 8, "temperature": 0}
        whole = made.chat.completions.create(**fields, metadata={"test": label})
        text = "".join(
            chunk.choices[0].delta.content for chunk in made.chat.completions.create(**fields, stream=True)
        )
        assert text == whole.choices[0].message.content
        assert [each["id"] for each in stored(client, label)] == [whole.id]
        with pytest.raises(openai.NotFoundError) as unknown:
            made.chat.completions.create(**{**fields, "model": "default/llama"})
        assert unknown.value.body.startswith("EntityNotFound: model")
        with pytest.raises(openai.BadRequestError) as wrong:
            made.chat.completions.create(**{**fields, "temperature": 3})
        assert "temperature" in wrong.value.body


def test_a_model_of_text_takes_no_image(chat):
    """400, which the SDK tells with the part's place."""
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    with pytest.raises(Exception, match=r"400.*messages\.0\.content\.1.*takes no image"):
        chat(messages=[{"role": "user", "content": parts}])


def test_the_sdk_tells_what_is_wrong(chat, sdk):
    """Unknown names with 404 and the word it knows them by; a bad schema with the compiler's reason."""
    with pytest.raises(Exception, match=r"404.*EntityNotFound: model 'llama'"):
        chat(model="llama")
    with pytest.raises(Exception, match=r"404.*EntityNotFound"):
        chat(project="no-such-project")
    from adaptive_sdk.resources.chat import ResponseFormatJsonSchema

    broken = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(a"}}, "required": ["a"]}
    spec = {"type": "json_schema", "json_schema": {"name": "broken", "schema": broken}}
    with pytest.raises(Exception, match=r"400.*response_format"):
        chat(response_format=ResponseFormatJsonSchema.model_validate(spec))


def test_a_prompt_is_answered(client, ask):
    """By the older route: a text, and a stream of texts that is the same."""
    fields = {"model": "default", "prompt": "Say hello.", "max_tokens": 8, "temperature": 0}
    whole = check(client.post("/api/v1/completions", json=fields).json(), "GenerateResponse")
    found = [check(each, "GenerateResponse") for each in ask.events("/api/v1/completions", **fields)]
    text = "".join(choice["text"] for chunk in found for choice in chunk["choices"])
    assert text == whole["choices"][0]["text"]
    assert found[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"messages": []}, "messages"),
        ({"session_id": "s"}, "session_id"),
        ({"budget": 1}, "budget"),
        ({"tools": [{"id": "search", "enabled": False}]}, "tools.0"),
        ({"system_prompt_args": {"a": 1}}, "system_prompt_args"),
        ({"regex_pattern": "(a"}, "regex_pattern"),
        ({"constrained_decoding": {"schema": "(a", "format": "regex"}}, "constrained_decoding.schema"),
    ],
)
def test_a_wrong_field_is_named(client, fields, field):
    """400, as one text."""
    body = {"messages": ASKED, "max_tokens": 8, **fields}
    assert field in refused(client.post(CHAT, json=body), 400)


@pytest.mark.parametrize("stream", [False, True])
def test_a_first_token_that_comes_too_late_is_a_408(client, stream):
    """Within no time there is none; the next request is answered."""
    body = {"messages": ASKED, "max_tokens": 200, "stream": stream, "max_ttft_ms": 0}
    assert "max_ttft_ms" in refused(client.post(CHAT, json=body), 408)
    answered(client, max_ttft_ms=60_000)


@pytest.mark.parametrize("stream", [False, True])
def test_what_begins_in_time_is_answered_to_its_end(client, stream):
    """However much longer the rest takes."""
    body = {"messages": ASKED, "max_tokens": 300, "min_tokens": 300, "stream": stream}
    started = time.monotonic()
    assert client.post(CHAT, json=body).status_code == 200
    half = int((time.monotonic() - started) * 500)
    assert client.post(CHAT, json={**body, "max_ttft_ms": half}).status_code == 200


def test_a_wrong_key_is_refused_in_the_same_shape(server):
    """401, and an AuthenticationError of OpenAI's client."""
    response = httpx.post(f"{server.url}{CHAT}", json={"messages": ASKED})
    assert "key" in refused(response, 401)
    with (
        openai.OpenAI(base_url=f"{server.url}/api/v1", api_key="ax_" + "0" * 48, max_retries=0) as wrong,
        pytest.raises(openai.AuthenticationError),
    ):
        wrong.chat.completions.create(model=NAME, messages=ASKED)


@pytest.mark.parametrize("path", ["/api/v1/upload/init", "/api/v1/nothing", "/api/v1/"])
def test_what_is_not_served_is_not_found(client, path):
    """404 in the same shape, which names no entity."""
    assert "EntityNotFound" not in refused(client.post(path, json={}), 404)
