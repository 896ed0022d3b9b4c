"""Adaptive's shapes: the marks of answers and chunks, and what its requests say in their own way."""

import json
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.adaptive_wire import (
    MAX_IMAGE_BYTES,
    ConstrainedDecoding,
    Marks,
    admit_images,
    functions,
    plain,
    session_uuid,
)
from server.completion_ids import completion_id
from server.errors import InvalidRequest
from server.oxen_wire import MediaPart
from server.streams import sse
from tests.adaptive import check

SESSION = "7d1a4c4e-3f5b-4e0b-9c55-1b1f0c9a9d11"
HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 5, "model": "proj/m"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
CALL = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":'}}


def marks(model="served"):
    return Marks("me", SESSION, model)


def marked(chunk):
    return json.loads(marks().event(sse(chunk)).removeprefix("data: "))


def expected(chunk):
    """What a chunk has to become, by its meaning."""
    choices = []
    for choice in chunk["choices"]:
        own = completion_id("me", chunk["id"], choice["index"])
        delta = {"role": "assistant", "content": ""}
        delta |= {name: value for name, value in choice["delta"].items() if value is not None}
        more = {"completion_id": own, "model": choice.get("model", "served"), "delta": {**delta, "id": own}}
        choices.append({**choice, **more})
    return {**chunk, "session_id": SESSION, "choices": choices}


text = st.text(max_size=6) | st.sampled_from(['"choices":[]', '"delta":{', "\n\ndata: ", '\\"', "}", "é😀"])
deltas = st.fixed_dictionaries(
    {},
    optional={
        "role": st.just("assistant"),
        "content": text | st.none(),
        "reasoning": text,
        "tool_calls": st.lists(st.just(CALL), min_size=1, max_size=2),
    },
)
choices = st.builds(
    lambda index, delta, **more: {"index": index, "delta": delta, **more},
    index=st.integers(0, 12),
    delta=deltas,
    finish_reason=st.sampled_from([None, "stop", "length", "tool_calls"]),
    logprobs=st.none() | st.builds(lambda token: {"content": [{"token": token, "logprob": -1.0}]}, text),
)
chunks = st.builds(
    lambda choice, named, model, more: {**HEAD, "id": named, "model": model, "choices": choice, **more},
    choice=st.lists(choices, max_size=1),
    named=text,
    model=text,
    more=st.fixed_dictionaries(
        {},
        optional={
            "usage": st.just(USAGE),
            "system_fingerprint": text,
            "steersman": st.just({"steering": {"x": [1]}}),
        },
    ),
)


@given(chunks)
def test_a_chunk_is_marked_by_its_meaning(chunk):
    """Whatever it holds, in whatever order: one event of one line, with all that it said before."""
    event = marks().event(sse(chunk))
    assert (event.startswith("data: {"), event.endswith("}\n\n"), event.count("\n")) == (True, True, 2)
    found = json.loads(event[6:], object_pairs_hook=_once)
    assert found == expected(chunk)
    check(found, "ChatResponseChunk")


def _once(pairs):
    names = [name for name, _ in pairs]
    assert len(names) == len(set(names)), names
    return dict(pairs)


def test_a_chunk_in_another_order_is_marked_too():
    """As answers are streamed that were judged first, with the model that wrote each choice."""
    choice = {
        "finish_reason": "stop",
        "index": 2,
        "model": "other",
        "delta": {"role": "assistant", "content": "a"},
    }
    chunk = {**HEAD, "choices": [choice]}
    assert marked(chunk) == expected(chunk)
    assert marked(chunk)["choices"][0]["model"] == "other"


def test_several_choices_of_one_chunk_are_all_marked():
    """In an order that vLLM does not write."""
    several = [{"finish_reason": None, "index": index, "delta": {"content": "a"}} for index in (0, 1)]
    chunk = {**HEAD, "choices": several}
    assert marked(chunk) == expected(chunk)


def test_what_is_no_chunk_passes():
    """Comments, errors and the end."""
    for event in (": keep-alive\n\n", "data: [DONE]\n\n", sse({"error": {"message": "x", "choices": []}})):
        assert marks().event(event) == event


def test_every_choice_has_an_id_of_its_own():
    """The same in every chunk of it and in the whole answer: a UUID that nobody else's completion has."""
    made = marks()
    events = [
        sse({**HEAD, "choices": [{"index": index, "delta": {"content": "a"}}]}) for index in (0, 1, 0, 11)
    ]
    ids = [json.loads(made.event(event)[6:])["choices"][0]["completion_id"] for event in events]
    message = {"role": "assistant", "content": None}
    whole = made.body({**HEAD, "choices": [{"index": 11, "message": message}], "usage": USAGE})
    assert whole["choices"][0]["completion_id"] == whole["choices"][0]["message"]["id"] == ids[3]
    assert ids[0] == ids[2]
    assert len({*ids, Marks("you", SESSION, None).body(_whole())["choices"][0]["completion_id"]}) == 4
    assert all(UUID(each) for each in ids)


def _whole():
    return {**HEAD, "choices": [{"index": 0, "message": {"role": "assistant", "content": "a"}}]}


def test_an_answer_that_only_calls_has_a_text():
    """An empty one, where OpenAI has null."""
    message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    body = marks().body({**HEAD, "choices": [{"index": 0, "message": message}], "usage": USAGE})
    check(body, "ChatResponse")
    assert body["choices"][0]["message"]["content"] == ""


@pytest.mark.parametrize("value", ["s", "", 3, [], {"a": 1}, True, SESSION + "0"])
def test_a_session_is_a_uuid(value):
    """The refusal names the field."""
    with pytest.raises(InvalidRequest, match="session_id is a UUID"):
        session_uuid(value)


def test_a_session_is_written_in_one_way():
    """However it was sent."""
    assert session_uuid(SESSION.upper()) == session_uuid(SESSION.replace("-", "")) == SESSION


def test_notes_on_messages_stay_behind():
    """Ids and notes say nothing to the model; all else stays, what is no message too."""
    noted = {
        "role": "user",
        "content": "a",
        "name": "n",
        "id": "m",
        "completion_id": SESSION,
        "metadata": {"a": 1},
    }
    assert plain([noted, 3]) == [{"role": "user", "content": "a", "name": "n"}, 3]
    assert plain("x") == "x"
    with pytest.raises(InvalidRequest, match=r"messages\.1\.completion_id is a UUID"):
        plain([noted, {**noted, "completion_id": "x"}])


FUNCTION = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("asked", "fields"),
    [
        ({}, {}),
        ({"use_tools": False}, {}),
        ({"tools": None, "use_tools": None}, {}),
        ({"tools": [FUNCTION]}, {}),
        ({"tools": [FUNCTION], "use_tools": True}, {}),
        ({"tools": [FUNCTION], "use_tools": False}, {"tool_choice": "none"}),
        ({"tools": [FUNCTION], "use_tools": False, "tool_choice": None}, {"tool_choice": "none"}),
        ({"tools": "x"}, {}),
    ],
)
def test_functions_are_taken(asked, fields):
    """As OpenAI's; `use_tools` false keeps them from being called. Another type is left to validation."""
    assert functions(asked) == fields


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"tools": [FUNCTION, {"id": "search", "enabled": True}]}, "tools.1"),
        ({"tools": [{"id": "search", "enabled": False}]}, "tools.0"),
        ({"use_tools": True}, "use_tools"),
        ({"use_tools": True, "tools": []}, "use_tools"),
        ({"use_tools": False, "tools": [FUNCTION], "tool_choice": "required"}, "use_tools"),
    ],
)
def test_tools_of_the_server_are_refused(asked, param):
    """There are none, and none is dropped in silence."""
    with pytest.raises(InvalidRequest) as raised:
        functions(asked)
    assert raised.value.param == param


@pytest.mark.parametrize(
    ("format", "schema", "field"),
    [
        ("json_schema", '{"type": "object"}', {"json_schema": {"type": "object"}}),
        ("json", "{}", {"json_schema": {}}),
        ("regex", "a+", {"regex_pattern": "a+"}),
        ("grammar", "start: A", {"grammar": "start: A"}),
    ],
)
def test_constrained_decoding_has_a_field_of_its_kind(format, schema, field):
    assert ConstrainedDecoding(schema=schema, format=format).field() == field


@pytest.mark.parametrize(
    "schema", ["{", "[]", '"a"', "NaN", '{"a": NaN}', "[" * 100_000, "[" * 200 + "]" * 200]
)
def test_a_schema_that_is_no_object_is_refused(schema):
    """By its field."""
    with pytest.raises(InvalidRequest, match=r"schema|JSON"):
        ConstrainedDecoding(schema=schema, format="json_schema").field()


def image(kind, size=3):
    return MediaPart("messages.0.content.1", "image_url", f"data:{kind};base64,{'A' * (size * 4 // 3)}")


def test_images_are_of_four_types_and_not_too_large():
    """What is linked to, or is no image, is not judged here."""
    linked = MediaPart("p", "image_url", "https://media.example/a.tiff")
    admit_images([image("image/png"), image("IMAGE/JPEG"), image("image/webp"), image("image/gif"), linked])
    admit_images(
        [image("image/png", MAX_IMAGE_BYTES), MediaPart("p", "audio_url", "data:audio/wav;base64,AA")]
    )
    for bad in (image("image/tiff"), image("text/plain"), image("image/png", MAX_IMAGE_BYTES + 10)):
        with pytest.raises(InvalidRequest) as raised:
            admit_images([bad])
        assert raised.value.param == "messages.0.content.1.image_url"
