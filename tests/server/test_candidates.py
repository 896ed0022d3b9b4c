"""Many engine requests behind one answer: fan out, choose, merge, stream."""

import asyncio
import gc
import json
from collections.abc import AsyncGenerator
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from server import candidates
from server.candidates import (
    as_stream,
    best,
    counts_prompt,
    gather,
    interleave,
    mean_logprob,
    merge,
    text_of,
    vote,
)

# --- responses, as far as this module sees them ---


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Logprobs(BaseModel):
    token_logprobs: list[float | None] | None = None


class ChatLogprobs(BaseModel):
    content: list[SimpleNamespace] | None = None
    model_config = {"arbitrary_types_allowed": True}


class Message(BaseModel):
    role: str = "assistant"
    content: str | None = None
    tool_calls: list[dict[str, object]] = []


class Choice(BaseModel):
    index: int = 0
    text: str
    logprobs: Logprobs | None = None
    finish_reason: str | None = "stop"


class ChatChoice(BaseModel):
    index: int = 0
    message: Message
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = "stop"


def response(*texts: str, logprob: float | None = None, prompt: int = 7, tokens: int = 2, id: str = "r"):
    logprobs = None if logprob is None else Logprobs(token_logprobs=[None, logprob])
    return SimpleNamespace(
        id=id,
        created=1,
        model="m",
        choices=[Choice(text=text, logprobs=logprobs) for text in texts],
        usage=Usage(prompt_tokens=prompt, completion_tokens=tokens, total_tokens=prompt + tokens),
    )


# --- gather ---


async def test_gather_keeps_order_and_marks_prompts():
    """Results stand in the order of the calls, and each call knows whether its prompt counts."""
    seen = {}

    async def call(slot: int, delay: float) -> int:
        seen[slot] = counts_prompt.get()
        await asyncio.sleep(delay)
        return slot

    calls = [lambda slot=slot: call(slot, 0.01 * (3 - slot)) for slot in range(3)]
    assert await gather(calls, [True, False, True]) == [0, 1, 2]
    assert seen == {0: True, 1: False, 2: True}
    assert counts_prompt.get() is True


async def test_gather_cancels_siblings():
    """The first failure is raised as it is, after every sibling was cancelled."""
    cancelled = []

    async def waits(slot: int) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(slot)
            raise

    async def fails() -> None:
        await asyncio.sleep(0.01)
        raise LookupError("second")

    with pytest.raises(LookupError, match="second") as failure:
        await asyncio.wait_for(gather([lambda: waits(0), fails, lambda: waits(2)], [True] * 3), 5)
    assert sorted(cancelled) == [0, 2]
    assert failure.value.__cause__ is None


async def test_gather_is_cancelled_with_its_caller():
    """Cancelling who gathers cancels all calls, and stays a cancellation."""
    started, cancelled = asyncio.Event(), []

    async def waits() -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    task = asyncio.create_task(gather([waits, waits], [True, False]))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled == [True, True]


# --- merge, best, vote ---


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 99), st.integers(0, 99), st.booleans()), min_size=1)
)
def test_merge(parts):
    """All choices in order with fresh indices; each prompt counted where it is marked, every completion."""
    texts = [[f"{i}.{j}" for j in range(count)] for i, (count, *_) in enumerate(parts)]
    responses = [
        response(*names, prompt=p, tokens=c) for names, (_, p, c, _) in zip(texts, parts, strict=True)
    ]
    merged = merge(responses, [first for *_, first in parts])
    assert [choice.text for choice in merged.choices] == [name for names in texts for name in names]
    assert [choice.index for choice in merged.choices] == list(range(len(merged.choices)))
    prompt = sum(p for _, p, _, first in parts if first)
    completion = sum(c for _, _, c, _ in parts)
    assert merged.usage.model_dump() == {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


@given(st.lists(st.floats(-50, 0), min_size=1, max_size=9), st.data())
def test_best(logprobs, data):
    """The n most probable, best first; the prompt is counted once and the tokens of all."""
    n = data.draw(st.integers(1, len(logprobs)))
    chosen = best([response(str(i), logprob=value) for i, value in enumerate(logprobs)], n)
    order = sorted(enumerate(logprobs), key=lambda pair: (-pair[1], pair[0]))[:n]
    assert [choice.text for choice in chosen.choices] == [str(i) for i, _ in order]
    assert [choice.index for choice in chosen.choices] == list(range(n))
    assert (chosen.usage.prompt_tokens, chosen.usage.completion_tokens) == (7, 2 * len(logprobs))


def test_vote():
    """The majority's most probable text wins; the losers' tokens are counted too."""
    texts = [("no", -0.1), ("yes", -3.0), ("Yes.", -2.0)]
    won = vote([response(text, logprob=value) for text, value in texts])
    assert [choice.text for choice in won.choices] == ["Yes."]
    assert (won.usage.prompt_tokens, won.usage.completion_tokens) == (7, 6)


@pytest.mark.parametrize(
    ("choice", "mean"),
    [
        (Choice(text="a", logprobs=Logprobs(token_logprobs=[None, -1.0, -3.0])), -2.0),
        (Choice(text="a", logprobs=Logprobs(token_logprobs=[])), float("-inf")),
        (Choice(text="a", logprobs=Logprobs()), float("-inf")),
        (Choice(text="a"), float("-inf")),
        (
            ChatChoice(
                message=Message(),
                logprobs=ChatLogprobs(content=[SimpleNamespace(logprob=-x) for x in (1, 2)]),
            ),
            -1.5,
        ),
        (ChatChoice(message=Message(), logprobs=ChatLogprobs(content=[])), float("-inf")),
        (ChatChoice(message=Message(), logprobs=ChatLogprobs()), float("-inf")),
    ],
)
def test_mean_logprob(choice, mean):
    """Mean over known tokens; a choice without any is the least probable."""
    assert mean_logprob(choice) == mean


def test_text_of():
    """A chat message without content is an empty text."""
    assert text_of(Choice(text="a")) == "a"
    assert text_of(ChatChoice(message=Message(content="b"))) == "b"
    assert text_of(ChatChoice(message=Message())) == ""


# --- streams ---


def payloads(events: list[str]) -> list[dict]:
    """The JSON of a stream, which must be well-formed SSE that ends with [DONE]."""
    assert all(event.startswith("data: ") and event.endswith("\n\n") for event in events)
    assert all(event.count("\n") == 2 for event in events)
    assert events[-1] == "data: [DONE]\n\n"
    return [json.loads(event[6:]) for event in events[:-1]]


async def test_a_finished_completion_as_stream():
    """Each choice in one piece, then the usage where it is asked for."""
    answer = merge([response("one", "two\n—")], [True])
    *chunks, usage = payloads([event async for event in as_stream(answer, include_usage=True)])
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["one", "two\n—"]
    assert [chunk["choices"][0]["index"] for chunk in chunks] == [0, 1]
    assert {chunk["object"] for chunk in (*chunks, usage)} == {"text_completion"}
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 9)
    assert len(payloads([event async for event in as_stream(answer, include_usage=False)])) == 2


async def test_a_finished_chat_as_stream():
    """A message becomes a delta; its tool calls get the index by which clients join their pieces."""
    calls = [
        {"id": f"c{i}", "type": "function", "function": {"name": "f", "arguments": "{}"}} for i in (0, 1)
    ]
    answer = response("")
    answer.choices = [ChatChoice(message=Message(content="hi", tool_calls=calls), finish_reason="tool_calls")]
    (chunk,) = payloads([event async for event in as_stream(answer, include_usage=False)])
    assert chunk["object"] == "chat.completion.chunk"
    (choice,) = chunk["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert (choice["delta"]["role"], choice["delta"]["content"]) == ("assistant", "hi")
    assert [(call["index"], call["id"]) for call in choice["delta"]["tool_calls"]] == [(0, "c0"), (1, "c1")]
    assert "message" not in choice


def chunk(stream: int, text: str) -> str:
    choice = {"index": 0, "text": text, "finish_reason": None}
    return event(stream, choices=[choice])


def event(stream: int, **fields: object) -> str:
    head = {"id": f"id{stream}", "object": "text_completion", "created": stream, "model": "m"}
    return f"data: {json.dumps({**head, **fields})}\n\n"


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


class Source:
    """One candidate's stream: its texts with pauses between them; remembers how it ended."""

    def __init__(self, slot: int, texts: list[str], pauses: list[int] | None = None, prompt: int = 5) -> None:
        self.slot, self.texts, self.prompt = slot, texts, prompt
        self.pauses = pauses or []
        self.closed = False
        self.counted: bool | None = None

    async def stream(self) -> AsyncGenerator[str, None]:
        self.counted = counts_prompt.get()
        try:
            yield ": keep-alive\n\n"
            for index, text in enumerate(self.texts):
                for _ in range(self.pauses[index % len(self.pauses)] if self.pauses else 0):
                    await asyncio.sleep(0)
                yield chunk(self.slot, text)
            yield event(self.slot, choices=[], usage=usage(self.prompt, len(self.texts)))
            yield "data: [DONE]\n\n"
        finally:
            self.closed = True


sources = st.lists(
    st.tuples(
        st.lists(st.text(max_size=4), max_size=5), st.lists(st.integers(0, 4), max_size=3), st.integers(1, 9)
    ),
    min_size=1,
    max_size=5,
)


@given(sources, st.data(), st.booleans())
def test_interleaved_streams(parts, data, include_usage):
    """Every candidate's chunks arrive complete, in their own order and under its index; one id, one usage
    chunk if it is asked for, one [DONE]."""
    firsts = data.draw(st.lists(st.booleans(), min_size=len(parts), max_size=len(parts)))
    made = [Source(slot, texts, pauses, prompt) for slot, (texts, pauses, prompt) in enumerate(parts)]

    async def collect() -> list[str]:
        streams = [source.stream() for source in made]
        return [one async for one in interleave(streams, firsts, include_usage=include_usage)]

    chunks = payloads(asyncio.run(collect()))
    if include_usage:
        last = chunks.pop()
        prompt = sum(prompt for (_, _, prompt), first in zip(parts, firsts, strict=True) if first)
        assert last["choices"] == []
        assert last["usage"] == usage(prompt, sum(len(texts) for texts, *_ in parts))
    received: dict[int, list[str]] = {slot: [] for slot in range(len(parts))}
    for got in chunks:
        (choice,) = got["choices"]
        received[choice["index"]].append(choice["text"])
    assert list(received.values()) == [texts for texts, *_ in parts]
    assert len({(got["id"], got["created"]) for got in chunks}) <= 1
    assert [source.counted for source in made] == firsts
    assert all(source.closed for source in made)


async def test_chunks_pass_as_they_come():
    """A slow candidate does not hold up a quick one."""
    release = asyncio.Event()

    async def slow() -> AsyncGenerator[str, None]:
        await release.wait()
        yield chunk(1, "late")
        yield event(1, choices=[], usage=usage(1, 1))

    events = interleave([slow(), Source(0, ["a", "b"]).stream()], [True, False], include_usage=False)
    first = [json.loads((await anext(events))[6:])["choices"][0] for _ in range(2)]
    assert [(choice["index"], choice["text"]) for choice in first] == [(1, "a"), (1, "b")]
    release.set()
    assert [got["choices"][0]["text"] for got in payloads([one async for one in events])] == ["late"]


@pytest.mark.parametrize("taken", [1, 3])
async def test_closing_closes_every_stream(taken):
    """A reader who leaves early ends all candidates at once, those that wait on a full queue too."""
    made = [Source(slot, ["x"] * 500) for slot in range(3)]
    events = interleave([source.stream() for source in made], [True] * 3, include_usage=True)
    gc.disable()  # the streams must be closed, not collected
    try:
        for _ in range(taken):
            await anext(events)
        await events.aclose()
        assert [source.closed for source in made] == [True] * 3
    finally:
        gc.enable()
    assert not [task for task in asyncio.all_tasks() if "pump" in repr(task.get_coro())]


async def test_cancelling_the_reader_closes_every_stream():
    """A reader that is cancelled while it waits ends all candidates."""
    ended = []

    async def silent(slot: int) -> AsyncGenerator[str, None]:
        try:
            await asyncio.sleep(60)
            yield ""
        finally:
            ended.append(slot)

    async def read() -> None:
        async for _ in interleave([silent(0), silent(1)], [True, False], include_usage=False):
            pass

    task = asyncio.create_task(read())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(ended) == [0, 1]


async def test_an_error_ends_every_stream():
    """What one stream raises, the reader raises, after closing the others."""
    other = Source(1, ["x"] * 500)

    async def broken() -> AsyncGenerator[str, None]:
        yield chunk(0, "a")
        raise ConnectionError("engine gone")

    with pytest.raises(ConnectionError, match="engine gone"):
        async for _ in interleave([broken(), other.stream()], [True, False], include_usage=True):
            pass
    assert other.closed


async def test_an_error_event_is_the_last():
    """An error event passes through unchanged, ends the stream without a usage, and closes the others."""
    other = Source(1, ["x"] * 500)
    error = 'data: {"error":{"message":"too long","code":400}}\n\n'

    async def failing() -> AsyncGenerator[str, None]:
        yield error
        yield "data: [DONE]\n\n"

    streams = [failing(), other.stream()]
    events = [one async for one in interleave(streams, [True, False], include_usage=True)]
    assert events[-2:] == [error, "data: [DONE]\n\n"]
    assert not any(got.get("usage") for got in payloads(events))
    assert other.closed


def test_no_engine():
    """Fan-out and merging know no engine."""
    assert not [name for name in vars(candidates) if name.startswith("vllm")]
