"""Adaptive's routes over Steersman's own serving, on an engine that answers from a script."""

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from uuid import UUID

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vllm.entrypoints.generate.base.protocol import DeltaMessage
from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionResponse,
    ChatCompletionResponseStreamChoice,
    ChatCompletionStreamResponse,
)
from vllm.exceptions import VLLMError

from server.completion_ids import completion_id
from server.interaction_log import InteractionLog, Keep
from server.marks import Marks
from server.media_hosts import MediaHosts
from server.refusal import refusal
from server.routes.adaptive import router
from server.vllm_errors import as_steersman
from tests.adaptive import check, refused
from tests.server.apps import routes_alone
from tests.server.directories import Plain
from tests.server.responses import payloads
from tests.server.steering_app import SignedIn
from tests.server.test_interaction_log import Keeper
from tests.server.vllm_policy_world import Engine, always, interaction_log, policy_runs, serving

pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated")

CHAT = "/api/v1/chat/completions"
ASKED = [{"role": "user", "content": "Name a fruit."}]
SESSION = "7d1a4c4e-3f5b-4e0b-9c55-1b1f0c9a9d11"
PIXEL = "data:image/png;base64,iVBORw0KGgo="
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}},
}


@asynccontextmanager
async def opened(engine=None, *, modalities=(), hosts=(), log=None, seconds=60.0, ranks=1):
    plain = serving(engine or Engine(always("A pear."), lora=["tuned"]))
    sees = replace(plain.models, modalities=frozenset(modalities))
    served = replace(plain, ranks=ranks, models=sees)
    app = routes_alone(router)
    app.add_exception_handler(VLLMError, _shown)
    app.state.steersman = SimpleNamespace(
        serving=served,
        models=served.models,
        media_hosts=MediaHosts.of(hosts),
        policy_runs=policy_runs(served),
        policies=None,
        interaction_log=log or interaction_log(Keep.NONE),
        directory=Plain(served.models),
        settings=SimpleNamespace(adaptive_seconds=seconds),
    )
    transport = httpx.ASGITransport(SignedIn(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield http


async def _shown(request, error):
    """As the whole server does."""
    return refusal(request.scope, as_steersman(error))


@asynccontextmanager
async def sdk(engine=None, **options):
    """OpenAI's client, pointed where Adaptive's documentation points it."""
    async with opened(engine, **options) as http:
        yield openai.AsyncOpenAI(
            base_url="http://test/api/v1", api_key="key", http_client=http, max_retries=0
        )


async def posted(engine=None, *, world=None, headers=None, **body):
    async with opened(engine, **(world or {})) as http:
        return await http.post(CHAT, json={"model": "base", "messages": ASKED, **body}, headers=headers)


async def answered(engine=None, **more):
    response = await posted(engine, **more)
    assert response.status_code == 200, response.text
    return check(response.json(), "ChatResponse")


def chunks(response):
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    found = payloads([f"{part}\n\n" for part in response.text.split("\n\n") if part])
    return [check(chunk, "ChatResponseChunk") for chunk in found]


# Answers


async def test_an_answer_fits_the_vendors_description():
    """And is OpenAI's beside it: one object for both clients."""
    body = await answered(model="tuned", max_tokens=5, session_id=SESSION)
    (choice,) = body["choices"]
    assert (body["object"], body["model"], body["session_id"]) == ("chat.completion", "tuned", SESSION)
    assert (choice["message"]["content"], choice["model"]) == ("A pear.", "tuned")
    assert choice["completion_id"] == completion_id("me", body["id"], 0)
    ChatCompletionResponse.model_validate(body)


async def test_a_request_without_a_session_begins_one():
    """Each its own."""
    first, second = (await answered())["session_id"], (await answered())["session_id"]
    assert UUID(first) != UUID(second)


async def test_choices_have_ids_of_their_own():
    """One for each, with the model that answered."""
    engine = Engine(always("one", "two"))
    for fields in ({}, {"sampling_method": "ads"}, {"best_of": 4, "temperature": 1}):
        choices = (await answered(engine, n=2, **fields))["choices"]
        assert len({choice["completion_id"] for choice in choices}) == 2
        assert {choice["model"] for choice in choices} == {"base"}


async def test_fields_of_adaptive_reach_the_engine():
    """As they stand, but for those that are not the model's business."""
    engine = Engine(always("A pear."))
    noted = {"role": "user", "content": "a", "name": "n", "completion_id": SESSION, "metadata": {"k": 1}}
    await answered(
        engine,
        messages=[noted],
        stop=["a", "b"],
        max_tokens=9,
        temperature=0.5,
        top_p=0.8,
        stream_options={},
        user="u-1",
        labels={"a": "b"},
        metadata={"c": "d"},
        tags=["t"],
        system_prompt_args={},
        use_tools=False,
        max_ttft_ms=60_000,
        response_format={"type": "json_object"},
    )
    (request,) = engine.requests
    assert request.messages == [{"role": "user", "content": "a", "name": "n"}]
    assert (request.max_tokens, request.temperature, request.top_p) == (9, 0.5, 0.8)
    assert (request.stop, request.response_format.type) == (["a", "b"], "json_object")


@pytest.mark.parametrize(
    ("asked", "field", "value"),
    [
        ({"format": "regex", "schema": "(yes|no)"}, "regex", "(yes|no)"),
        ({"format": "json_schema", "schema": '{"type": "object"}'}, "json", {"type": "object"}),
    ],
)
async def test_constrained_decoding(asked, field, value):
    """It is the constraint of its kind."""
    engine = Engine(always("yes"))
    await answered(engine, constrained_decoding=asked)
    held = getattr(engine.requests[0].structured_outputs, field)
    assert (json.loads(held) if field == "json" and isinstance(held, str) else held) == value


async def test_policies_methods_and_steering_work_here_too():
    """What is Steersman's own is told where it is told on /v1."""
    body = await answered(Engine(always("no", "{}")), policy=JUDGED)
    assert (body["choices"][0]["message"]["content"], body["steersman"]["policy"]["accepted"]) == ("{}", True)
    assert body["choices"][0]["model"] == "base"
    assert (await answered(sampling_method="typical"))["steersman"]["method_used"] == "typical"
    assert refused(await posted(steering_vector_id="v-1"), 501).startswith("steering_vector_id: ")


JUDGED = {
    "constraints": {"json_mode": True},
    "verifiers": {"repair_on_failure": False},
    "optimization": {"best_of_n": 2},
}


# Streams


@pytest.mark.parametrize("asked", [None, {}, {"include_usage": False}, {"include_usage": True}])
async def test_every_chunk_is_as_adaptive_reads_it(asked):
    """A session, and a choice with an id and strings alone; the usage only where it is asked for."""
    response = await posted(Pieces(), stream=True, stream_options=asked, session_id=SESSION)
    found = chunks(response)
    if asked == {"include_usage": True}:
        last = found.pop()
        assert (last["choices"], last["usage"]["total_tokens"]) == ([], 9)
    assert {chunk["session_id"] for chunk in found} == {SESSION}
    assert {chunk["model"] for chunk in found} == {"base"}
    own = completion_id("me", found[0]["id"], 0)
    assert {chunk["choices"][0]["completion_id"] for chunk in found} == {own}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in found) == "A pear."
    assert [chunk["choices"][0]["finish_reason"] for chunk in found] == [None, None, None, "stop"]


class Pieces(Engine):
    """Streams as vLLM writes it: a role, pieces, an end without text."""

    def __init__(self, deltas=None):
        super().__init__(always("A pear."))
        texts = ({"role": "assistant", "content": ""}, {"content": "A "}, {"content": "pear."}, {})
        self.deltas = deltas or texts

    async def create_chat_completion(self, request, raw):
        self.requests.append(request)
        usage = request.stream_options is not None and request.stream_options.include_usage
        return self._stream(usage)

    async def _stream(self, usage):
        head = {"id": "chatcmpl-1", "created": 5, "model": "base"}
        for count, delta in enumerate(self.deltas, 1):
            reason = "stop" if count == len(self.deltas) else None
            yield event(head, DeltaMessage(**delta), reason)
        if usage:
            counts = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
            last = ChatCompletionStreamResponse(**head, choices=[], usage=counts)
            yield f"data: {last.model_dump_json(exclude_unset=True, exclude_none=True)}\n\n"
        yield "data: [DONE]\n\n"


def event(head, delta, reason=None, **more):
    choice = ChatCompletionResponseStreamChoice(
        index=0, delta=delta, logprobs=None, finish_reason=reason, **more
    )
    chunk = ChatCompletionStreamResponse(**head, object="chat.completion.chunk", choices=[choice])
    return f"data: {chunk.model_dump_json(exclude_unset=True)}\n\n"


DELTAS = [
    {"role": "assistant", "content": ""},
    {"content": 'a "quoted" {text}\n'},
    {"content": None},
    {"reasoning": "hm"},
    {"reasoning": "hm", "content": "a"},
    {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"content":"'}}], "content": ""},
    {},
]


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("more", [{}, {"stop_reason": 3, "token_ids": [1, 2]}])
def test_vllms_own_chunks_are_marked_without_being_parsed(monkeypatch, delta, more):
    """All of them that are written token by token; what they said stays."""
    head = {"id": "chatcmpl-a.b-1", "created": 5, "model": 'a "model"'}
    given = event(head, DeltaMessage(**delta), None, **more)
    marks = Marks("me", SESSION, "base", texts=True)
    if None not in delta.values() and len(delta) < 2:
        monkeypatch.setattr(marks, "_parsed", None)
    chunk, before = json.loads(marks.event(given)[6:]), json.loads(given[6:])
    own = completion_id("me", before["id"], 0)
    (choice,) = before["choices"]
    said = {name: value for name, value in choice["delta"].items() if value is not None}
    choice["delta"] = {"role": "assistant", "content": "", **said, "id": own}
    choice |= {"completion_id": own, "model": "base"}
    assert chunk == {**before, "session_id": SESSION}


async def test_a_stream_of_a_judged_answer():
    """In one piece, which has the same marks."""
    response = await posted(Engine(always("no", "{}")), policy=JUDGED, stream=True, session_id=SESSION)
    found = chunks(response)
    assert found[-1]["steersman"]["policy"]["accepted"]
    (choice,) = found[0]["choices"]
    assert (choice["delta"]["content"], choice["completion_id"]) == (
        "{}",
        completion_id("me", found[0]["id"], 0),
    )


async def test_siblings_stream_with_ids_of_their_own():
    """By their index."""
    response = await posted(Engine(always("one", "two")), stream=True, sampling_method="ads", n=2)
    for chunk in chunks(response):
        (choice,) = chunk["choices"]
        assert choice["completion_id"] == completion_id("me", chunk["id"], choice["index"])


async def test_calls_stream_with_an_empty_text():
    """The pieces of a call, and an end."""
    response = await posted(Pieces(DELTAS[5:]), stream=True, tools=[WEATHER])
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks(response)]
    assert [delta["content"] for delta in deltas] == ["", "", ""]
    assert deltas[0]["tool_calls"][0]["function"]["name"] == "f"


async def test_an_error_within_a_stream_is_as_on_v1():
    """An event, then the end."""

    class Failing(Pieces):
        async def _stream(self, usage):
            yield event({"id": "x", "created": 5, "model": "base"}, DeltaMessage(content="a"))
            yield 'data: {"error":{"message":"gone"}}\n\n'
            yield "data: [DONE]\n\n"

    response = await posted(Failing(), stream=True)
    *_, last = payloads([f"{part}\n\n" for part in response.text.split("\n\n") if part])
    assert last == {"error": {"message": "gone"}}


async def test_openais_client_reads_both():
    """With `metadata` for `labels`, at the base URL that is documented."""
    async with sdk(Pieces()) as client:
        stream = await client.chat.completions.create(model="base", messages=ASKED, stream=True)
        pieces = [chunk.choices[0].delta.content async for chunk in stream]
    async with sdk() as client:
        answer = await client.chat.completions.create(model="base", messages=ASKED, metadata={"a": "b"})
        message = answer.choices[0].message
        again = await client.chat.completions.create(model="base", messages=[*ASKED, message, *ASKED])
    assert message.content == again.choices[0].message.content == "".join(pieces) == "A pear."


# Stored


async def stored(engine=None, *, which=Keep.ASKED, **body):
    keeper = Keeper()
    log = InteractionLog(keeper, which=which, most=9, days=1)
    response = await posted(engine, world={"log": log}, **body)
    await log.flush()
    return response, keeper.kept


@pytest.mark.parametrize("store", [None, True])
async def test_answers_are_stored_unless_they_decline(store):
    """With one map of labels, the session, and what the request says of itself."""
    fields = {"labels": {"a": "b"}, "metadata": {"c": "d"}, "tags": ["t"], "user": "u"}
    response, (kept,) = await stored(store=store, session_id=SESSION.upper(), **fields)
    assert (kept.answer, kept.messages) == (response.json(), ASKED)
    assert (kept.labels, kept.session_id) == ({"a": "b", "c": "d"}, SESSION)
    assert (kept.parameters["tags"], kept.parameters["user"]) == (["t"], "u")


async def test_a_stream_is_stored_as_the_answer_that_it_is():
    """With ids, session and models, which no piece repeats."""
    response, (kept,) = await stored(Pieces(), stream=True)
    found = chunks(response)
    (choice,) = kept.answer["choices"]
    assert choice["completion_id"] == choice["message"]["id"] == completion_id("me", kept.id, 0)
    assert (choice["message"]["content"], choice["model"]) == ("A pear.", "base")
    assert kept.answer["session_id"] == kept.session_id == found[0]["session_id"]


async def test_what_declines_is_not_stored():
    _, kept = await stored(store=False)
    assert kept == []


async def test_a_server_that_stores_nothing_answers():
    """But for who asks to be stored, who is told."""
    response, kept = await stored(which=Keep.NONE)
    assert (response.status_code, kept) == (200, [])
    response, kept = await stored(which=Keep.NONE, store=True)
    assert "store" in refused(response, 501)


# Sessions


async def test_a_session_stays_with_one_engine():
    """All its turns, whoever sends them; another account's of the same name may be elsewhere."""
    ranks = [await rank(session_id=SESSION) for _ in range(3)]
    assert len(set(ranks)) == 1
    assert ranks[0] in {"0", "1", "2", "3"}
    assert await rank(headers={"x-session-id": SESSION}) == ranks[0]
    others = {await rank(session_id=str(UUID(int=number))) for number in range(40)}
    assert others == {"0", "1", "2", "3"}


async def test_who_names_no_session_goes_where_there_is_room():
    """vLLM balances; an engine that the client names is the one."""
    assert await rank() is None
    assert await rank(session_id=SESSION, headers={"x-data-parallel-rank": "3"}) == "3"
    assert await rank(session_id=SESSION, ranks=1) is None


async def test_siblings_of_a_session_stay_with_its_engine():
    """As its other turns do."""
    assert await rank(session_id=SESSION, sampling_method="ads", n=2) == await rank(session_id=SESSION)


async def rank(*, ranks=4, **more):
    """The engine that a request is sent to, as the header names it."""

    class Noting(Engine):
        async def create_chat_completion(self, request, raw):
            self.rank = raw.headers.get("x-data-parallel-rank")
            return await super().create_chat_completion(request, raw)

    engine = Noting(always("a", "b"))
    await answered(engine, world={"ranks": ranks}, **more)
    return engine.rank


@pytest.mark.parametrize("sent", [{"session_id": "s"}, {"headers": {"x-session-id": "s"}}])
async def test_a_session_that_is_no_uuid_is_refused(sent):
    """Whoever says it."""
    assert "is a UUID" in refused(await posted(**sent), 400)


async def test_a_header_names_the_session_where_the_body_does_not():
    other = str(UUID(int=7))
    assert (await answered(headers={"x-session-id": SESSION}))["session_id"] == SESSION
    assert (await answered(headers={"x-session-id": SESSION}, session_id=other))["session_id"] == other


# Errors


async def test_an_unknown_model():
    """404, in the words by which Adaptive's clients know it."""
    assert refused(await posted(model="llama"), 404).startswith("EntityNotFound: model 'llama'")


async def test_no_model_is_the_default_one():
    async with opened() as http:
        for model in ({}, {"model": None}, {"model": "default"}):
            response = await http.post(CHAT, json={"messages": ASKED, **model})
            assert response.json()["choices"][0]["model"] == "base", response.text


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"messages": []}, "messages"),
        ({"model": 3}, "model"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": "x"}, "top_p"),
        ({"budget": 1}, "budget"),
        ({"max_ttft_ms": -1}, "max_ttft_ms"),
        ({"tags": "x"}, "tags"),
        ({"labels": {"a": 1}}, "labels"),
        ({"labels": {"a": "b"}, "metadata": {"a": "c"}}, "labels"),
        ({"tools": [{"id": "search", "enabled": True}]}, "tools"),
        ({"use_tools": True}, "use_tools"),
        ({"system_prompt_args": {"name": "Ann"}}, "system_prompt_args"),
        ({"messages": [{**ASKED[0], "completion_id": "x"}]}, "completion_id"),
        ({"constrained_decoding": {"schema": "a", "format": "xml"}}, "constrained_decoding.format"),
        ({"constrained_decoding": {"schema": "{", "format": "json"}}, "constrained_decoding.schema"),
        (
            {"constrained_decoding": {"schema": "a", "format": "regex"}, "regex_pattern": "b"},
            "constrained_decoding",
        ),
        ({"ab_campaign": "none-such"}, "ab_campaign"),
        ({"sampling_method": "nope"}, "sampling_method"),
    ],
)
async def test_a_wrong_field(fields, field):
    """400 that names it."""
    assert field in refused(await posted(**fields), 400)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
FIELDS = (
    *("model", "messages", "tools", "use_tools", "tags", "stream", "stream_options", "session_id", "user"),
    *("labels", "store", "response_format", "constrained_decoding", "system_prompt_args", "max_ttft_ms"),
    *("ab_campaign", "n", "stop"),
)


@given(field=st.sampled_from(FIELDS), value=JSON)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_json_in_any_field_is_answered(field, value):
    """Or refused in the vendor's shape."""
    async with opened() as http:
        content = json.dumps({"model": "base", "messages": ASKED, field: value})
        response = await http.post(CHAT, content=content, headers={"content-type": "application/json"})
    if response.status_code != 200:
        assert 400 <= response.status_code < 500 or response.status_code == 501, (content, response.text)
        refused(response, response.status_code)


class Slow(Engine):
    """Takes a while."""

    async def create_chat_completion(self, request, raw):
        await asyncio.sleep(9)


@pytest.mark.parametrize("stream", [False, True])
async def test_what_takes_too_long_is_a_408(stream):
    """The server's own limit, and one for the first token that a request asks for."""
    assert "no answer within 0.1 s" in refused(
        await posted(Slow(always("")), world={"seconds": 0.1}, stream=stream), 408
    )
    assert "max_ttft_ms" in refused(await posted(Slow(always("")), max_ttft_ms=50, stream=stream), 408)


# Prompts


async def prompted(engine=None, *, world=None, **body):
    async with opened(engine, **(world or {})) as http:
        return await http.post(
            "/api/v1/completions", json={"model": "base", "prompt": "Name a fruit.", **body}
        )


async def test_a_prompt_is_answered_with_a_text():
    """As a user's message, with the ids of a chat completion, by which it is stored."""
    keeper, engine = Keeper(), Engine(always("A pear.", "A plum."))
    log = InteractionLog(keeper, which=Keep.ASKED, most=9, days=1)
    fields = {"labels": {"a": "b"}, "tags": ["t"], "session_id": SESSION, "n": 2, "stop": ["x"], "top_p": 0.5}
    response = await prompted(engine, world={"log": log}, **fields)
    assert response.status_code == 200, response.text
    body = check(response.json(), "GenerateResponse")
    assert [(each["index"], each["text"]) for each in body["choices"]] == [(0, "A pear."), (1, "A plum.")]
    assert body["choices"][1]["completion_id"] == completion_id("me", body["id"], 1)
    assert "x-steersman-method" in response.headers
    assert engine.requests[0].messages == ASKED
    await log.flush()
    (kept,) = keeper.kept
    assert (kept.id, kept.messages, kept.session_id, kept.labels) == (body["id"], ASKED, SESSION, {"a": "b"})


async def test_a_prompt_streams_texts():
    """Each with what was used until then."""
    response = await prompted(Pieces(), stream=True)
    found = payloads([f"{part}\n\n" for part in response.text.split("\n\n") if part])
    assert all(check(chunk, "GenerateResponse") for chunk in found)
    assert "".join(choice["text"] for chunk in found for choice in chunk["choices"]) == "A pear."
    assert found[-1]["usage"]["total_tokens"] == 9


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"messages": ASKED}, "messages"),
        ({"tools": [WEATHER]}, "tools"),
        ({"temperature": 3}, "temperature"),
        ({"echo": "x"}, "echo"),
        ({"best_of": 0}, "best_of"),
        ({"budget": 1}, "budget"),
    ],
)
async def test_a_wrong_field_of_a_prompt(fields, field):
    """400 that names it."""
    assert field in refused(await prompted(**fields), 400)


# Images


def looked_at(url):
    return [
        {
            "role": "user",
            "content": [{"type": "text", "text": "See?"}, {"type": "image_url", "image_url": url}],
        }
    ]


@pytest.mark.parametrize("url", [PIXEL, {"url": PIXEL}])
async def test_an_image_reaches_a_model_that_takes_it(url):
    """From the flat form of Adaptive's clients and OpenAI's nested one."""
    engine = Engine(always("A pear."))
    await answered(engine, world={"modalities": ["image"]}, messages=looked_at(url))
    _, part = list(engine.requests[0].messages[0]["content"])
    assert part == {"type": "image_url", "image_url": {"url": PIXEL}}


async def test_an_image_that_is_not_taken():
    """By a model of text, of another type, or from a host that is not listed: 400 that names the part."""
    sees = {"modalities": ["image"]}
    assert "takes no image" in refused(await posted(messages=looked_at(PIXEL)), 400)
    tiff = PIXEL.replace("png", "tiff")
    assert "image/webp" in refused(await posted(world=sees, messages=looked_at(tiff)), 400)
    elsewhere = await posted(world=sees, messages=looked_at("https://elsewhere.example/a.png"))
    assert "messages.0.content.1" in refused(elsewhere, 400)
