"""What was applied, told at the end of a stream."""

import asyncio
import json
from collections.abc import AsyncGenerator

import pytest

from server.candidates import merge
from server.errors import Unavailable
from server.streams import as_stream, interleave, with_evidence
from tests.server.responses import payloads, response, usage


def compact(**fields: object) -> str:
    """An event as vLLM writes it, without spaces."""
    body = {"id": "i", "object": "chat.completion.chunk", "created": 1, "model": "m", **fields}
    return f"data: {json.dumps(body, separators=(',', ':'), ensure_ascii=False)}\n\n"


def piece(text: str, finish: str | None = None, index: int = 0) -> str:
    choice = {"index": index, "delta": {"content": text}, "finish_reason": finish}
    return compact(choices=[choice])


TOLD = compact(choices=[], usage=usage(3, 2))
DONE = "data: [DONE]\n\n"


class Steered:
    """What was applied, for a stream; counts how often it is asked and released."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.counted = self.released = 0

    async def count(self) -> None:
        await asyncio.sleep(0)
        self.counted += 1
        assert not self.released
        if self.failure is not None:
            raise self.failure

    def told(self) -> dict[str, object]:
        assert self.counted
        return {"steering": {"dose": 0.5}}

    def release(self) -> None:
        self.released += 1


async def sent(*events: str) -> AsyncGenerator[str, None]:
    for one in events:
        yield one


async def evidenced(steered: Steered, *events: str) -> list[str]:
    return [one async for one in with_evidence(sent(*events), steered)]


QUOTING = piece('she wrote {"finish_reason":"stop"} and {"choices":[]}')
STREAMS = {
    "one choice": [piece("a"), piece("b"), piece("", "stop")],
    "finish in the only chunk": [piece("all", "length")],
    "usage": [piece("a"), piece("", "stop"), TOLD],
    "two choices": [piece("a"), piece("b", "stop"), piece("c", None, 1), piece("d", "stop", 1), TOLD],
    "quoted words": [QUOTING, piece("é—\u2028", "stop")],
}


@pytest.mark.parametrize("events", STREAMS.values(), ids=STREAMS)
async def test_evidence_stands_in_the_last_chunk(events):
    """What was applied is told once, in the last event before [DONE]; all others pass unchanged."""
    steered = Steered()
    received = await evidenced(steered, *events, DONE)
    assert received[:-2] == events[:-1]
    assert received[-1] == DONE
    (*_, last) = payloads(received)
    assert last == {**json.loads(events[-1][6:]), "steersman": {"steering": {"dose": 0.5}}}
    assert (steered.counted, steered.released) == (1, 1)


async def test_evidence_joins_what_the_chunk_says_already():
    """Other facts of ours in the last chunk stay."""
    told = compact(choices=[], usage={}, steersman={"method_used": "ads"})
    received = await evidenced(Steered(), piece("a", "stop"), told, DONE)
    assert payloads(received)[-1]["steersman"] == {"method_used": "ads", "steering": {"dose": 0.5}}


@pytest.mark.parametrize("events", STREAMS.values(), ids=STREAMS)
async def test_only_what_may_be_the_last_is_held_back(events):
    """A chunk that ends no choice is passed on before the next one is asked for."""
    asked: list[str] = []

    async def source() -> AsyncGenerator[str, None]:
        for one in [*events, DONE]:
            asked.append(one)
            yield one

    async for one in with_evidence(source(), Steered()):
        if '"finish_reason":null' in one:
            assert asked[-1] == one


@pytest.mark.parametrize("failure", [Unavailable("the request ran unsteered: gone")])
async def test_a_text_that_was_not_steered_ends_in_an_error(failure):
    """The last chunk is followed by an error, each an event of its own, and there is no evidence."""
    steered = Steered(failure)
    received = await evidenced(steered, piece("a"), piece("b", "stop"), DONE)
    *chunks, error = payloads(received)
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks] == ["a", "b"]
    expected = {"message": "the request ran unsteered: gone", "type": "unavailable_error", "code": 503}
    assert error == {"error": expected}
    assert not any("steersman" in chunk for chunk in chunks)
    assert steered.released == 1


async def test_an_unforeseen_failure_of_evidence_is_raised():
    """A defect while evidence is fetched ends the stream, which is released."""
    steered = Steered(RuntimeError("engine gone"))
    with pytest.raises(RuntimeError, match="engine gone"):
        await evidenced(steered, piece("a", "stop"), DONE)
    assert steered.released == 1


async def test_a_failed_stream_stays_as_it_is():
    """An error event of the engine's passes unchanged and alone: a request that failed has no evidence."""
    steered = Steered()
    events = [piece("a"), compact(error={"message": "too long", "code": 400}), DONE]
    assert await evidenced(steered, *events) == events
    assert (steered.counted, steered.released) == (0, 1)


async def test_a_stream_without_an_end_loses_nothing():
    """What was held back comes even where [DONE] does not."""
    steered = Steered()
    events = [piece("a"), piece("b", "stop")]
    assert await evidenced(steered, *events) == events
    assert steered.released == 1


async def test_what_a_steered_stream_raises():
    """An exception in the middle reaches the reader, and what was applied is released."""
    steered = Steered()

    async def broken() -> AsyncGenerator[str, None]:
        yield piece("a")
        raise ConnectionError("engine gone")

    with pytest.raises(ConnectionError):
        [one async for one in with_evidence(broken(), steered)]
    assert (steered.counted, steered.released) == (0, 1)


@pytest.mark.parametrize("taken", range(1, 5))
async def test_a_reader_who_leaves_a_steered_stream(taken):
    """Wherever the reader stops: first the engine's stream is closed, then what was applied is released."""
    order: list[str] = []
    steered = Steered()
    steered.release = lambda: order.append("released")

    async def source() -> AsyncGenerator[str, None]:
        try:
            for one in [piece("a"), piece("b"), piece("", "stop"), TOLD, DONE]:
                yield one
        finally:
            order.append("closed")

    stream = with_evidence(source(), steered)
    for _ in range(taken):
        await anext(stream)
    await stream.aclose()
    assert order == ["closed", "released"]


async def test_a_reader_cancelled_while_it_waits_for_evidence():
    """A client that leaves at the very end releases what was applied."""
    steered = Steered()
    never = asyncio.Event()
    steered.count = never.wait

    async def read() -> None:
        await evidenced(steered, piece("a", "stop"), DONE)

    task = asyncio.create_task(read())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steered.released == 1


async def test_a_steered_answer_that_was_judged_first():
    """A merged answer as a stream carries the evidence like any other."""
    answer = merge([response("one", "two")], [True])
    for include_usage in (True, False):
        stream = with_evidence(as_stream(answer, include_usage=include_usage), Steered())
        *others, last = payloads([one async for one in stream])
        assert last["steersman"] == {"steering": {"dose": 0.5}}
        assert not any("steersman" in chunk for chunk in others)


async def test_steered_siblings():
    """Candidates that were interleaved carry their common evidence once, at the end."""
    sources = [sent(piece(f"{slot}", "stop"), TOLD, DONE) for slot in range(3)]
    stream = with_evidence(interleave(sources, [True, False, False], include_usage=False), Steered())
    chunks = payloads([one async for one in stream])
    assert [("steersman" in chunk) for chunk in chunks] == [False, False, True]
