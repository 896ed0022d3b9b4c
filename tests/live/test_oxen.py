"""Oxen.ai's routes on the running server: the client that its documentation shows, and plain HTTP."""

import json
import time

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.embedded import NAME
from tests import oxen
from tests.oxen import check, refused

pytestmark = pytest.mark.engine

CHAT, MODELS = "/api/ai/chat/completions", "/api/ai/models"
ASKED = [{"role": "user", "content": "Say hello in exactly 3 words."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get current weather",
        "parameters": {
            "type": "object",
            "properties": {"location": {"type": "string", "enum": ["San Francisco", "Rome"]}},
            "required": ["location"],
            "additionalProperties": False,
        },
    },
}
NAMED = {"type": "function", "function": {"name": "get_weather"}}
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJ"
    "RU5ErkJggg=="
)


@pytest.fixture(scope="module")
def ox(server):
    with openai.OpenAI(base_url=f"{server.url}/api/ai", api_key=server.key, max_retries=0) as made:
        yield made


def body(**more):
    return {"model": NAME, "messages": ASKED, "max_tokens": 8, **more}


def answered(client, schema=oxen.COMPLETION, **more):
    response = client.post(CHAT, json=body(**more))
    assert response.status_code == 200, response.text
    return check(response.json(), schema)


def chunks(ask, **more):
    return ask.events(CHAT, **body(**more))


def test_the_documented_example_answers(ox):
    """A chat completion of the model that was named."""
    answer = ox.chat.completions.create(model=NAME, messages=ASKED, max_tokens=50, temperature=0.1)
    assert answer.choices[0].message.content
    assert (answer.object, answer.model) == ("chat.completion", NAME)


def test_the_documented_example_streams(ox):
    """It reads choices[0] of every chunk; greedy, its text is the whole answer's."""
    whole = ox.chat.completions.create(**body(temperature=0))
    text = ""
    for chunk in ox.chat.completions.create(**body(temperature=0), stream=True):
        text += chunk.choices[0].delta.content or ""
    assert text == whole.choices[0].message.content


def test_an_answer_fits_the_vendors_description(client):
    """Under the description's schema, with a usage that adds up."""
    usage = answered(client)["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize("asked", [False, True])
def test_every_chunk_has_a_choice(ask, asked):
    """But for the usage where it was asked for; the reason to end is null until the end."""
    options = {"stream_options": {"include_usage": True}} if asked else {}
    found = chunks(ask, **options)
    if asked:
        last = found.pop()
        assert (last["choices"], last["usage"]["completion_tokens"] <= 8) == ([], True)
    *before, end = [check(chunk, oxen.CHUNK)["choices"][0]["finish_reason"] for chunk in found]
    assert set(before) == {None}
    assert end in ("stop", "length")


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_tool_is_called(client, ask, choice):
    """With arguments of its schema, an index, no text beside it, and its own reason to end, streamed too."""
    fields = {"tools": [WEATHER], "tool_choice": choice, "parallel_tool_calls": False, "max_tokens": 200}
    (whole,) = answered(client, **fields)["choices"]
    (call,) = whole["message"]["tool_calls"]
    assert (whole["message"]["content"], whole["finish_reason"]) == (None, "tool_calls")
    assert (call["index"], call["function"]["name"]) == (0, "get_weather")
    assert json.loads(call["function"]["arguments"])["location"] in ("San Francisco", "Rome")
    found = [chunk["choices"][0] for chunk in chunks(ask, **fields)]
    calls = [call for each in found for call in each["delta"].get("tool_calls") or ()]
    arguments = "".join(call["function"].get("arguments") or "" for call in calls)
    assert json.loads(arguments)["location"] in ("San Francisco", "Rome")
    assert found[-1]["finish_reason"] == "tool_calls"


def test_a_call_and_its_result_go_back_into_the_conversation(ox):
    """The answer as the client received it, index included."""
    fields = {"model": NAME, "tools": [WEATHER], "max_tokens": 200}
    asked = [{"role": "user", "content": "What is the weather in Rome?"}]
    called = ox.chat.completions.create(messages=asked, tool_choice=NAMED, **fields).choices[0].message
    (call,) = called.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}
    told = ox.chat.completions.create(messages=[*asked, called, result], tool_choice="none", **fields)
    thanked = [*asked, called, result, told.choices[0].message, {"role": "user", "content": "Thanks."}]
    assert ox.chat.completions.create(messages=thanked, tool_choice="none", **fields).choices


def test_json_mode_gives_json(ox):
    """What stops by itself is a JSON object."""
    answer = ox.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": 'Reply with the JSON object {"a": 1}.'}],
        response_format={"type": "json_object"},
        max_tokens=200,
        temperature=0,
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict)


def test_what_is_steersmans_own_works_here(client, vector):
    """A method, a constraint, steering and a policy: each says what it did where it does on /v1."""
    assert answered(client, sampling_method="typical")["steersman"]["method_used"] == "typical"
    constrained = answered(client, regex_pattern="(yes|no)", target_namespace="ox")
    assert constrained["choices"][0]["message"]["content"] in ("yes", "no")
    steered = answered(client, steering_vector_id=vector, steering_strength=0.2)
    assert steered["steersman"]["steering"]
    judged = answered(client, policy={"optimization": {"best_of_n": 2}}, temperature=1)
    assert judged["steersman"]["policy"]["accepted"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"model": None}, "You must specify a model to call"),
        ({"model": "claude-sonnet-4-6"}, "Model not found: claude-sonnet-4-6"),
        ({"messages": []}, "Messages array cannot be empty"),
    ],
)
def test_the_vendors_own_words(client, fields, says):
    """Exactly, with 400."""
    assert refused(client.post(CHAT, json=body(**fields)), 400)["message"] == says


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"temperature": 3}, "temperature"),
        ({"budget": 1}, "budget"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"regex_pattern": "(a"}, "regex_pattern"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_a_wrong_field_is_named(client, fields, field):
    """400 in the vendor's shape."""
    assert field in json.dumps(refused(client.post(CHAT, json=body(**fields)), 400))


@pytest.mark.parametrize("url", [PIXEL, "https://media.example/a.png", "http://169.254.169.254/"])
@pytest.mark.parametrize("kind", ["image_url", "video_url", "audio_url"])
def test_a_model_of_text_takes_no_media(client, kind, url):
    """400 that names the part."""
    parts = [{"type": "text", "text": "See?"}, {"type": kind, kind: {"url": url}}]
    response = client.post(CHAT, json=body(messages=[{"role": "user", "content": parts}]))
    assert refused(response, 400)["param"] == "messages.0.content.1"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
FIELDS = (
    "model",
    "messages",
    "tools",
    "tool_choice",
    "response_format",
    "stream",
    "target_namespace",
    "stop",
)


@given(field=st.sampled_from(FIELDS), value=JSON)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_in_any_field_is_answered(client, field, value):
    """Never a 5xx but 501; every refusal in the vendor's shape."""
    content = json.dumps(body(max_tokens=2, **{field: value}))
    response = client.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert response.status_code < 500 or response.status_code == 501, (content, response.text)
    if response.status_code >= 400:
        check(response.json(), oxen.ERROR)


def test_models_are_listed_searched_and_retrieved(client, ox):
    """As the vendor describes them, for OpenAI's client too."""
    for path in ("", f"/search?search={NAME[:5].lower()}", "/featured"):
        found = check(client.get(MODELS + path).json(), oxen.MODELS)["data"]
        assert NAME in [each["id"] for each in found]
    assert check(client.get(f"{MODELS}/favorites").json(), oxen.MODELS)["data"] == []
    model = check(client.get(f"{MODELS}/{NAME}").json(), oxen.MODEL)
    assert model["capabilities"] == {"input": ["text"], "output": ["text"]}
    assert NAME in [each.id for each in ox.models.list()]
    assert ox.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError, match="Model not found: org/nope"):
        ox.models.retrieve("org/nope")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/ai/images/generate"),
        ("POST", "/api/ai/videos/generate"),
        ("POST", "/api/ai/audio/generate"),
        ("GET", "/api/ai/queue"),
        ("GET", "/api/ai/generations"),
    ],
)
def test_what_is_not_served_is_not_found(client, method, path):
    """404 in the vendor's shape."""
    refused(client.request(method, path, json={}), 404, "resource_not_found")


def test_a_wrong_key_is_unauthenticated(server):
    """401 in the vendor's shape, and an AuthenticationError of OpenAI's client."""
    for headers in ({}, {"authorization": "Bearer nonsense"}):
        response = httpx.post(f"{server.url}{CHAT}", json=body(), headers=headers)
        refused(response, 401, "unauthenticated")
    with (
        openai.OpenAI(base_url=f"{server.url}/api/ai", api_key="ax_" + "0" * 48, max_retries=0) as wrong,
        pytest.raises(openai.AuthenticationError),
    ):
        wrong.models.list()


def test_calls_are_observed(client):
    """Beside those of the other routes, under their own."""
    sent = {"x-request-id": "oxen-0042"}
    assert client.post(CHAT, json=body(), headers=sent).status_code == 200
    deadline = time.monotonic() + 10
    kept = client.get("/observability/requests/oxen-0042")
    while kept.status_code == 404 and time.monotonic() < deadline:
        time.sleep(0.2)
        kept = client.get("/observability/requests/oxen-0042")
    assert kept.status_code == 200, kept.text
    assert CHAT in kept.text
