"""Oxen.ai's routes over Steersman's own serving, on an engine that answers from a script."""

import json
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace

import httpx
import openai
import pytest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse

from server.interaction_log import InteractionLog, Keep
from server.media_hosts import MediaHosts
from server.routes.oxen import router
from server.streams import as_stream, sse
from tests.oxen import CHUNK, COMPLETION, MODEL, MODELS, check, refused
from tests.server.apps import routes_alone
from tests.server.directories import Plain
from tests.server.responses import payloads
from tests.server.steering_app import SignedIn
from tests.server.test_interaction_log import Keeper
from tests.server.vllm_policy_world import Engine, always, interaction_log, policy_runs, serving

pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated")

CHAT = "/api/ai/chat/completions"
ASKED = [{"role": "user", "content": "Name a fruit."}]
PIXEL = "data:image/png;base64,iVBORw0KGgo="


@asynccontextmanager
async def opened(engine=None, *, modalities=(), hosts=(), log=None):
    plain = serving(engine or Engine(always("A pear.")))
    served = replace(plain, models=replace(plain.models, modalities=frozenset(modalities)))
    app = routes_alone(router)
    app.state.steersman = SimpleNamespace(
        serving=served,
        models=served.models,
        media_hosts=MediaHosts.of(hosts),
        policy_runs=policy_runs(served),
        policies=None,
        interaction_log=log or interaction_log(),
        directory=Plain(served.models),
    )
    transport = httpx.ASGITransport(SignedIn(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield http


@asynccontextmanager
async def sdk(engine=None, **options):
    """OpenAI's client, pointed where Oxen's documentation points it."""
    async with opened(engine, **options) as http:
        yield openai.AsyncOpenAI(
            base_url="http://test/api/ai", api_key="key", http_client=http, max_retries=0
        )


async def posted(engine=None, *, world=None, **body):
    async with opened(engine, **(world or {})) as http:
        return await http.post(CHAT, json={"model": "base", "messages": ASKED, **body})


# Answers


async def test_an_answer_fits_the_vendors_description():
    """And has the model's name as it was asked for."""
    response = await posted(max_tokens=5, temperature=0.1)
    body = check(response.json(), COMPLETION)
    assert (body["model"], body["choices"][0]["message"]["content"]) == ("base", "A pear.")
    assert response.headers["x-steersman-method"] == body["steersman"]["method_used"]


async def test_fields_of_oxen_reach_the_engine():
    """As they stand; the namespace that would be billed goes no further."""
    engine = Engine(always("A pear."))
    response = await posted(
        engine,
        stream=False,
        max_tokens=9,
        temperature=0.5,
        top_p=0.8,
        frequency_penalty=0.1,
        presence_penalty=0.2,
        parallel_tool_calls=True,
        response_format={"type": "json_object"},
        target_namespace="ox",
    )
    assert response.status_code == 200, response.text
    (request,) = engine.requests
    assert (request.max_tokens, request.temperature, request.top_p) == (9, 0.5, 0.8)
    assert (request.frequency_penalty, request.presence_penalty) == (0.1, 0.2)
    assert request.response_format.type == "json_object"


@pytest.mark.parametrize("asked", [False, True])
async def test_every_chunk_has_a_choice(asked):
    """The documented client reads choices[0] of each; only who asks for the usage gets one without."""
    options = {"stream_options": {"include_usage": True}} if asked else {}
    response = await posted(stream=True, **options)
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = payloads([f"{part}\n\n" for part in response.text.split("\n\n") if part])
    if asked:
        assert chunks.pop()["choices"] == []
    for chunk in chunks:
        check(chunk, CHUNK)


async def test_the_documented_clients_work():
    """OpenAI's client at Oxen's base URL: an answer, and a stream."""
    async with sdk() as client:
        answer = await client.chat.completions.create(model="base", messages=ASKED, max_tokens=50)
        stream = await client.chat.completions.create(model="base", messages=ASKED, stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert answer.choices[0].message.content == "".join(pieces) == "A pear."


# Tools

WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}},
}
NAMED = {"type": "function", "function": {"name": "get_weather"}}


def call(place: str):
    arguments = json.dumps({"location": place})
    return {
        "id": f"call_{place}",
        "type": "function",
        "function": {"name": "get_weather", "arguments": arguments},
    }


class Calling(Engine):
    """Calls the weather of each place, as vLLM answers where a tool was named: text "", reason "stop"."""

    def __init__(self, *places: str, reason: str = "stop") -> None:
        super().__init__(always(""))
        self.message = {"role": "assistant", "content": "", "tool_calls": [call(place) for place in places]}
        self.reason = reason

    async def create_chat_completion(self, request, raw):
        self.requests.append(request)
        choice = {"index": 0, "message": self.message, "finish_reason": self.reason}
        usage = {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}
        answer = ChatCompletionResponse(model="base", choices=[choice], usage=usage)
        return as_stream(answer, include_usage=False) if request.stream else answer


async def test_calls_are_as_oxen_writes_them():
    """With an index outside streams too, no text beside them, and their own reason to end."""
    response = await posted(Calling("Rome", "Oslo"), tools=[WEATHER], tool_choice=NAMED)
    (choice,) = check(response.json(), COMPLETION)["choices"]
    assert [each["index"] for each in choice["message"]["tool_calls"]] == [0, 1]
    assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")


@pytest.mark.parametrize("choice", [NAMED, None])
async def test_an_answer_goes_back_into_the_conversation(choice):
    """As OpenAI's client received it: its calls, with the index they have here, and their results follow."""
    engine = Calling("Rome") if choice else Engine(always("A pear."))
    fields = {"model": "base", "tools": [WEATHER], **({"tool_choice": choice} if choice else {})}
    async with sdk(engine) as client:
        answer = (await client.chat.completions.create(messages=ASKED, **fields)).choices[0].message
        results = [
            {"role": "tool", "tool_call_id": each.id, "content": "Sunny."} for each in answer.tool_calls or ()
        ]
        await client.chat.completions.create(messages=[*ASKED, answer, *results], **fields)
    _, message, *_ = engine.requests[1].messages
    assert message["content"] == answer.content
    assert len(message.get("tool_calls") or ()) == len(results) == (1 if choice else 0)


async def test_calls_that_were_cut_say_so():
    """The length stays the reason."""
    response = await posted(Calling("Rome", reason="length"), tools=[WEATHER], tool_choice="required")
    assert response.json()["choices"][0]["finish_reason"] == "length"


async def test_an_answer_without_calls_ends_as_it_did():
    """Tools that were not called change nothing."""
    response = await posted(tools=[WEATHER])
    (choice,) = check(response.json(), COMPLETION)["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("A pear.", "stop")
    assert "tool_calls" not in choice["message"]


class Streaming(Calling):
    """The same in pieces, as vLLM streams them: two choices, of which the second only talks."""

    async def create_chat_completion(self, request, raw):
        self.requests.append(request)
        head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "base"}
        started, cut = call("Rome"), call("Rome")["function"]["arguments"]

        def piece(index, delta, reason=None):
            return sse({**head, "choices": [{"index": index, "delta": delta, "finish_reason": reason}]})

        def calling(**function):
            return {"tool_calls": [{"index": 0, "function": function}]}

        async def events():
            yield ": keep-alive\n\n"
            for index in (0, 1):
                yield piece(index, {"role": "assistant", "content": ""})
            first = {**started, "index": 0, "function": {"name": "get_weather", "arguments": ""}}
            yield piece(0, {"tool_calls": [first]})
            yield piece(1, {"content": '"tool_calls":['})
            yield piece(0, calling(arguments=cut[:4]))
            yield piece(0, calling(arguments=cut[4:]))
            yield piece(1, {"content": ""}, "stop")
            yield piece(0, {}, "stop")
            yield "data: [DONE]\n\n"

        return events()


async def test_streamed_calls_end_with_their_reason():
    """Of the choice that called alone; the pieces pass as they came, comments too."""
    async with sdk(Streaming()) as client:
        stream = await client.chat.completions.create(
            model="base", messages=ASKED, tools=[WEATHER], tool_choice=NAMED, n=1, stream=True
        )
        chunks = [chunk async for chunk in stream]
    pieces = [each.function.arguments for chunk in chunks for each in chunk.choices[0].delta.tool_calls or ()]
    assert json.loads("".join(pieces)) == {"location": "Rome"}
    ends = {chunk.choices[0].index: chunk.choices[0].finish_reason for chunk in chunks}
    assert ends == {0: "tool_calls", 1: "stop"}
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].index == 1]
    assert "".join(texts) == '"tool_calls":['


async def test_a_stream_in_one_piece_ends_with_its_reason():
    """As the answers are streamed that were chosen before."""
    response = await posted(Calling("Rome"), tools=[WEATHER], tool_choice=NAMED, stream=True)
    (chunk,) = payloads([f"{part}\n\n" for part in response.text.split("\n\n") if part])
    assert check(chunk, CHUNK)["choices"][0]["finish_reason"] == "tool_calls"


# What is Steersman's own works here too


async def test_sampling_methods():
    """The method is named, and siblings are choices."""
    engine = Engine(always("one", "two"))
    response = await posted(engine, sampling_method="ads", n=2)
    assert response.json()["steersman"]["method_used"] == "ads"
    assert len(response.json()["choices"]) == len(engine.requests) == 2


async def test_constraints():
    """They reach the engine as its own."""
    engine = Engine(always("yes"))
    response = await posted(engine, regex_pattern="(yes|no)")
    assert response.status_code == 200, response.text
    assert engine.requests[0].structured_outputs.regex


@pytest.mark.parametrize("stream", [False, True])
async def test_policies(stream):
    """The outcome stands where it stands on /v1, in an answer or at the end of a stream."""
    policy = {"constraints": {"json_mode": True}, "verifiers": {"repair_on_failure": False}}
    engine = Engine(always("no", "{}"))
    response = await posted(engine, policy={**policy, "optimization": {"best_of_n": 2}}, stream=stream)
    assert response.status_code == 200, response.text
    if stream:
        chunks = payloads([f"{part}\n\n" for part in response.text.split("\n\n") if part])
        body = {**chunks[-1], "text": "".join(each["choices"][0]["delta"]["content"] for each in chunks)}
    else:
        body = check(response.json(), COMPLETION)
        body["text"] = body["choices"][0]["message"]["content"]
    assert (body["text"], body["steersman"]["policy"]["accepted"]) == ("{}", True)


async def test_answers_are_stored_where_that_is_asked():
    """As they were sent and answered here."""
    keeper = Keeper()
    log = InteractionLog(keeper, which=Keep.ASKED, most=9, days=1)
    response = await posted(world={"log": log}, store=True, target_namespace="ox")
    await log.flush()
    (kept,) = keeper.kept
    assert (kept.answer, kept.messages) == (response.json(), ASKED)


async def test_steering_that_cannot_be_is_refused():
    """By the field, in Oxen's shape."""
    error = refused(await posted(steering_vector_id="v-1"), 501, "unknown_error")
    assert error["param"] == "steering_vector_id"


# Errors


@pytest.mark.parametrize("body", [{}, {"model": None}, {"model": ""}, {"messages": []}])
async def test_no_model(body):
    """Oxen's own words, whatever else is wrong."""
    async with opened() as http:
        error = refused(await http.post(CHAT, json={"top_p": "x", **body}), 400)
    assert error["message"] == "You must specify a model to call"


async def test_no_body():
    """The same."""
    async with opened() as http:
        error = refused(await http.post(CHAT), 400)
    assert error["message"] == "You must specify a model to call"


async def test_an_unknown_model():
    """400 here, where OpenAI has 404."""
    error = refused(await posted(model="claude-sonnet-4-6"), 400)
    assert error["message"] == "Model not found: claude-sonnet-4-6"


async def test_no_messages():
    """Oxen's own words."""
    assert refused(await posted(messages=[]), 400)["message"] == "Messages array cannot be empty"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"model": 3}, "model"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": "x"}, "top_p"),
        ({"budget": 1}, "budget"),
        ({"target_namespace": 3}, "target_namespace"),
        ({"sampling_method": "nope"}, "sampling_method"),
        ({"regex_pattern": "a", "json_schema": {"type": "object"}}, "json_schema"),
    ],
)
async def test_a_wrong_field(fields, field):
    """It is named, in the text and as `param`."""
    error = refused(await posted(**fields), 400)
    assert (error["param"].partition(".")[0], field in error["message"]) == (field, True)


@pytest.mark.parametrize("content", [b"{", b"[]", b"3", b'{"model": NaN}'])
async def test_what_is_no_json_object(content):
    """Refused as on every route."""
    async with opened() as http:
        refused(await http.post(CHAT, content=content, headers={"content-type": "application/json"}), 400)


async def test_the_sdk_reads_the_errors():
    """Message, type, field and status of the client's own exceptions."""
    async with sdk() as client:
        with pytest.raises(openai.BadRequestError) as raised:
            await client.chat.completions.create(model="nope", messages=ASKED)
        assert raised.value.body["message"] == "Model not found: nope"
        assert (raised.value.type, raised.value.param) == ("invalid_params", "model")
        with pytest.raises(openai.NotFoundError, match="Model not found: nope"):
            await client.models.retrieve("nope")


# Media


def looked_at(kind, url):
    return [{"role": "user", "content": [{"type": "text", "text": "See?"}, {"type": kind, kind: url}]}]


@pytest.mark.parametrize("kind", ["image_url", "video_url", "audio_url"])
@pytest.mark.parametrize("url", [PIXEL, "https://media.example/a"])
async def test_a_model_of_text_takes_no_media(kind, url):
    """400 that names the part and its kind; the engine is not asked."""
    engine = Engine(always("A pear."))
    world = {"hosts": ["media.example"]}
    error = refused(await posted(engine, world=world, messages=looked_at(kind, {"url": url})), 400)
    assert error["param"] == "messages.0.content.1"
    assert f"takes no {kind.partition('_')[0]}, only text" in error["message"]
    assert engine.requests == []


@pytest.mark.parametrize("url", [PIXEL, {"url": PIXEL}, "https://media.example/a.png"])
async def test_media_that_is_taken_reaches_the_engine(url):
    """In vLLM's form."""
    engine = Engine(always("A pear."))
    world = {"modalities": ["image"], "hosts": ["media.example"]}
    response = await posted(engine, world=world, messages=looked_at("image_url", url))
    assert response.status_code == 200, response.text
    (message,) = engine.requests[0].messages
    _, part = list(message["content"])
    assert part == {"type": "image_url", "image_url": url if isinstance(url, dict) else {"url": url}}


@pytest.mark.parametrize(
    "url", ["https://elsewhere.example/a.png", "http://127.0.0.1/", "file:///etc/passwd", "data:,x"]
)
async def test_media_that_is_not_fetched(url):
    """400 of the kind that Oxen has for files, which names the URL; the engine is not asked."""
    engine = Engine(always("A pear."))
    world = {"modalities": ["image"], "hosts": ["media.example"]}
    response = await posted(engine, world=world, messages=looked_at("image_url", {"url": url}))
    error = refused(response, 400, "invalid_file_input")
    assert (error["param"], engine.requests) == ("messages.0.content.1.image_url.url", [])


async def test_files_are_not_read():
    """Said of the part, of the same kind."""
    response = await posted(messages=looked_at("file", {"file_data": "data:application/pdf;base64,AA"}))
    error = refused(response, 400, "invalid_file_input")
    assert error["param"] == "messages.0.content.1"


# Models


@asynccontextmanager
async def listing():
    async with opened(Engine(always(""), lora=["tuned"]), modalities=["image"]) as http:

        async def names(path, status=200):
            response = await http.get(f"/api/ai/models{path}")
            assert response.status_code == status, response.text
            return [each["id"] for each in check(response.json(), MODELS)["data"]]

        yield http, names


async def test_models_are_listed_and_found():
    """All; by a part of their own, their developer's or their base's name, in any case; base ones; none."""
    async with listing() as (_, names):
        assert await names("") == ["base", "tuned"]
        assert await names("/search?search=TUN") == ["tuned"]
        assert await names("/search?search=org") == ["base"]
        assert await names("/search?search=bas") == ["base", "tuned"]
        assert await names("/search?search=llama") == []
        assert await names("/featured") == ["base"]
        assert await names("/favorites") == []


async def test_lists_are_filtered():
    """By developer, by who provides them, and by what they can be fine-tuned to do, which is nothing."""
    async with listing() as (_, names):
        assert await names("?developer_name=org") == ["base"]
        assert await names("?developer_name=openai") == []
        assert await names("?provider_name=steersman") == ["base", "tuned"]
        assert await names("?provider_name=fal") == []
        assert await names("?action=text_generation") == []


async def test_a_search_for_nothing_is_refused():
    """Its text is required, and named."""
    async with opened() as http:
        assert "search" in refused(await http.get("/api/ai/models/search"), 400)["param"]


async def test_a_model_is_retrieved():
    """By its name; what is not served is 404, and any status but live a fault."""
    async with listing() as (http, _):
        for query in ("", "?deployment_status=live"):
            response = await http.get(f"/api/ai/models/tuned{query}")
            assert check(response.json(), MODEL)["id"] == "tuned"
        error = refused(await http.get("/api/ai/models/org/nope"), 404, "resource_not_found")
        assert error["message"] == "Model not found: org/nope"
        refused(await http.get("/api/ai/models/tuned?deployment_status=dead"), 400)


async def test_the_sdk_lists_models():
    """OpenAI's client parses list and model."""
    async with sdk() as client:
        assert [model.id async for model in client.models.list()] == ["base"]
        assert (await client.models.retrieve("base")).object == "model"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", ""),
        ("DELETE", ""),
        ("POST", "/activate"),
        ("POST", "/deactivate"),
        ("POST", "/favorite"),
        ("DELETE", "/favorite"),
    ],
)
async def test_models_are_not_changed(method, path):
    """501 that says why; 404 for what is not there."""
    async with opened() as http:
        url = "/api/ai/models/{}" + path
        refused(await http.request(method, url.format("base"), json={}), 501, "unknown_error")
        refused(await http.request(method, url.format("nope"), json={}), 404, "resource_not_found")
