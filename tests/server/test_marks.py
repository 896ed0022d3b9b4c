"""What answers and chunks carry beside OpenAI's fields."""

import json
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.completion_ids import completion_id
from server.marks import Marks, marked, told_session
from server.streams import sse
from tests.adaptive import check

SESSION = "7d1a4c4e-3f5b-4e0b-9c55-1b1f0c9a9d11"
HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 5, "model": "proj/m"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
CALL = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":'}}


def marks(*, texts=True):
    return Marks("me", SESSION, "served", texts=texts)


def read(chunk, *, texts=True):
    return json.loads(marks(texts=texts).event(sse(chunk)).removeprefix("data: "))


def expected(chunk, *, texts=True):
    """What a chunk has to become, by its meaning."""
    choices = []
    for choice in chunk["choices"]:
        own = completion_id("me", chunk["id"], choice["index"])
        more = {"completion_id": own, "model": choice.get("model", "served")}
        if texts:
            said = {name: value for name, value in choice["delta"].items() if value is not None}
            more["delta"] = {"role": "assistant", "content": "", **said, "id": own}
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


@given(chunks, st.booleans())
def test_a_chunk_is_marked_by_its_meaning(chunk, texts):
    """Whatever it holds, in whatever order: one event of one line, with all that it said before."""
    event = marks(texts=texts).event(sse(chunk))
    assert (event.startswith("data: {"), event.endswith("}\n\n"), event.count("\n")) == (True, True, 2)
    found = json.loads(event[6:], object_pairs_hook=_once)
    assert found == expected(chunk, texts=texts)
    if texts:
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
    assert read(chunk) == expected(chunk)
    assert read(chunk)["choices"][0]["model"] == "other"


def test_several_choices_of_one_chunk_are_all_marked():
    """In an order that vLLM does not write."""
    several = [{"finish_reason": None, "index": index, "delta": {"content": "a"}} for index in (0, 1)]
    chunk = {**HEAD, "choices": several}
    assert read(chunk) == expected(chunk)


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


@pytest.mark.parametrize("texts", [True, False])
def test_an_answer_that_only_calls_has_a_text_for_adaptive(texts):
    """An empty one, where OpenAI has null."""
    message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    body = marks(texts=texts).body({**HEAD, "choices": [{"index": 0, "message": message}], "usage": USAGE})
    assert body["choices"][0]["message"]["content"] == ("" if texts else None)
    if texts:
        check(body, "ChatResponse")


async def test_a_stream_is_marked_to_its_end():
    """And closed with it."""
    closed = []

    async def stream():
        try:
            yield sse({**HEAD, "choices": [], "usage": USAGE})
            yield "data: [DONE]\n\n"
        finally:
            closed.append(True)

    events = [event async for event in marked(stream(), marks())]
    assert (json.loads(events[0][6:])["session_id"], events[1]) == (SESSION, "data: [DONE]\n\n")
    assert closed


def test_a_session_is_told_as_a_uuid():
    """Itself, or the same for the same name, or a new one."""
    assert told_session(SESSION.upper()) == SESSION
    assert told_session("a talk") == told_session("a talk") != told_session("another")
    assert told_session(None) != told_session(None)
    assert all(UUID(told_session(each)) for each in (SESSION, "a talk", "", None))
