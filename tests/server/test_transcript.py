"""Streams put together again, against the OpenAI client's own way of doing it."""

import json
from datetime import UTC, datetime

import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from server.observation import Observation
from server.redaction import NOTHING_REDACTED, Redaction
from server.streams import sse
from server.transcript import Transcript, joined

USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def chunk(*choices, **more):
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 5, "model": "base"}
    return {**head, "choices": list(choices), **more}


def piece(index=0, finish_reason=None, logprobs=None, **delta):
    return {"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}


def call(index, name=None, arguments=None, **more):
    return {"index": index, "function": {"name": name, "arguments": arguments}, **more}


def token(text):
    return {"content": [{"token": text, "logprob": -0.5, "bytes": None, "top_logprobs": []}]}


STREAMS = {
    "text": [
        chunk(piece(role="assistant", content="")),
        chunk(piece(content="a ")),
        chunk(piece(content="pear")),
        chunk(piece(finish_reason="stop")),
        chunk(usage=USAGE),
    ],
    "two choices": [
        chunk(piece(0, role="assistant", content="a")),
        chunk(piece(1, role="assistant", content="b")),
        chunk(piece(1, "stop", content="!")),
        chunk(piece(0, "length", content="?")),
        chunk(usage=USAGE),
    ],
    "tools": [
        chunk(piece(role="assistant", tool_calls=[call(0, "get", "", id="c0", type="function")])),
        chunk(piece(tool_calls=[call(0, None, '{"a"')])),
        chunk(piece(tool_calls=[call(0, None, ": 1}")])),
        chunk(piece(tool_calls=[call(1, "put", "{}", id="c1", type="function")])),
        chunk(piece(finish_reason="tool_calls")),
        chunk(usage=USAGE),
    ],
    "logprobs": [
        chunk(piece(role="assistant", content="a", logprobs=token("a"))),
        chunk(piece(content="b", logprobs=token("b"), finish_reason="stop")),
        chunk(usage=USAGE),
    ],
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_the_object_that_the_client_makes_of_it(name):
    state = ChatCompletionStreamState()
    for each in STREAMS[name]:
        state.handle_chunk(ChatCompletionChunk.model_validate(each))
    made = joined(STREAMS[name])
    for ours, theirs in zip(made["choices"], state.current_completion_snapshot.choices, strict=True):
        assert ours["index"] == theirs.index
        assert ours["finish_reason"] == theirs.finish_reason
        assert ours["message"]["role"] == theirs.message.role
        assert (ours["message"]["content"] or "") == (theirs.message.content or "")
        calls = [each.model_dump(exclude_none=True) for each in theirs.message.tool_calls or ()]
        for each in calls:
            each.pop("index", None)
            each["function"].pop("parsed_arguments", None)
        assert ours["message"].get("tool_calls", []) == calls
        spelled = [each.token for each in theirs.logprobs.content] if theirs.logprobs else None
        known = [each["token"] for each in ours["logprobs"]["content"]] if ours["logprobs"] else None
        assert known == spelled
    assert (made["id"], made["created"], made["model"], made["object"]) == (
        "chatcmpl-1",
        5,
        "base",
        "chat.completion",
    )
    assert made["usage"] == USAGE


def test_reasoning_and_evidence_are_kept():
    """Pieces of text join whatever they are called; what is told at the end is told once."""
    chunks = [
        chunk(piece(role="assistant", reasoning="let me ")),
        chunk(piece(reasoning="see")),
        chunk(piece(content="7", finish_reason="stop"), steersman={"steering": {"dose": 1}}),
    ]
    made = joined(chunks)
    assert made["choices"][0]["message"]["reasoning"] == "let me see"
    assert made["steersman"] == {"steering": {"dose": 1}}
    assert made["usage"] is None


REQUEST = {
    "model": "default",
    "messages": [{"role": "user", "content": "I am a@b."}],
    "temperature": 0,
    "user": "u@v",
    "store": True,
    "metadata": {"team": "c@d"},
}


def transcript(**more):
    fields = {
        "account_id": "me",
        "request": REQUEST,
        "labels": REQUEST["metadata"],
        "session_id": "s",
        "observation": Observation(prompt_tokens=9, completion_tokens=2),
        "size": 10,
    }
    return Transcript(**fields | more)


def streamed(chunks, **more):
    made = transcript(told={"method_used": "greedy"}, **more)
    events = [": keep-alive\n\n", *map(sse, chunks), "data: [DONE]\n\n"]
    for event in events:
        made.hears(event)
    made.ends()
    return made


def test_a_stream_without_usage_has_what_was_counted():
    made = streamed(STREAMS["text"][:-1])
    kept = made.interaction(NOTHING_REDACTED)
    assert (kept.prompt_tokens, kept.completion_tokens) == (9, 2)
    assert kept.answer["usage"] == {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
    assert kept.answer["steersman"] == {"method_used": "greedy"}
    assert 0 <= kept.first_token_ms <= kept.latency_ms
    assert made.size == 10 + sum(len(sse(each)) for each in STREAMS["text"][:-1])


def test_a_whole_answer_is_kept_as_it_was_sent():
    answer = {**joined(STREAMS["text"]), "steersman": {"method_used": "greedy"}}
    made = transcript()
    made.ends(json.dumps(answer).encode())
    kept = made.interaction(NOTHING_REDACTED)
    assert kept.answer == answer
    assert (kept.id, kept.account_id, kept.model, kept.session_id) == ("chatcmpl-1", "me", "base", "s")
    assert kept.messages == REQUEST["messages"]
    assert kept.parameters == {"model": "default", "temperature": 0, "user": "u@v"}
    assert (kept.labels, kept.first_token_ms) == ({"team": "c@d"}, None)
    assert abs((datetime.now(UTC) - kept.created_at).total_seconds()) < 60


def test_patterns_reach_everything_that_is_kept():
    """Question, answer, parameters, labels, session and evidence; ids and usage stay."""
    told = {"steering": {"note": "g@h"}}
    chunks = [chunk(piece(content="b@c", finish_reason="stop", logprobs=token("b@c")), steersman=told)]
    made = streamed(chunks, session_id="e@f")
    kept = made.interaction(Redaction([r"\w@\w"]))
    text = json.dumps([kept.messages, kept.parameters, kept.answer, kept.labels, kept.session_id])
    assert "@" not in text
    assert kept.answer["choices"][0]["message"]["content"] == "[redacted]"
    assert kept.answer["choices"][0]["logprobs"] is None
    assert kept.id == "chatcmpl-1"
