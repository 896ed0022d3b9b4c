"""Many engine requests behind one stream."""

import asyncio
import gc
import json
from collections.abc import AsyncGenerator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.candidates import counts_prompt, merge
from server.streams import as_stream, interleave
from tests.server.responses import ChatChoice, Message, payloads, response, usage


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
