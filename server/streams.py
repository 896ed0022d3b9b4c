"""SSE of several engine requests behind one answer: their streams as one, or a merged answer as a stream."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from server.candidates import counts_prompt, text_of
from server.errors import SteersmanError
from server.observation import observed


def sse(payload: dict[str, Any]) -> str:
    """One event."""
    return f"data: {json.dumps(payload, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def as_stream(answer: Any, *, include_usage: bool) -> AsyncGenerator[str, None]:
    """A finished response as SSE: each choice in one piece, the usage if asked for, `[DONE]`."""
    observed().chooses(text_of(answer.choices[0]))
    chat = hasattr(answer.choices[0], "message")
    head = {
        "id": answer.id,
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": answer.created,
        "model": answer.model,
    }
    for choice in answer.choices:
        whole = choice.model_dump(exclude_none=True)
        if chat:
            whole["delta"] = whole.pop("message")
            for index, call in enumerate(whole["delta"].get("tool_calls", ())):
                call["index"] = index  # a stream's clients join the pieces of a call by it
        yield sse({**head, "choices": [{"finish_reason": None, **whole}]})
    if include_usage:
        yield sse({**head, "choices": [], "usage": answer.usage.model_dump(exclude_none=True)})
    yield "data: [DONE]\n\n"


class Steered(Protocol):
    """What was applied to the requests behind a stream."""

    async def count(self) -> None:
        """Raises SteersmanError where the engine did not apply it."""

    def told(self) -> dict[str, Any]: ...
    def release(self) -> None: ...


async def with_evidence(stream: AsyncGenerator[str, None], steered: Steered) -> AsyncGenerator[str, None]:
    """`stream` with what was applied in its last event before `[DONE]`, and released after it.

    Only an event that ends a choice or tells the usage is held back, until it is known whether it is the
    last. A stream that an error ended has no evidence.
    """
    held = ""
    try:
        async with aclosing(stream):
            async for event in stream:
                if held and event.startswith("data: [DONE]"):
                    for last in await _evidence(held, steered):
                        yield last
                    held = ""
                elif held:
                    yield held
                    held = ""
                if _may_be_last(event):
                    held = event
                else:
                    yield event
            if held:
                yield held
    finally:
        steered.release()


def _may_be_last(event: str) -> bool:
    return event.startswith("data: {") and ('"finish_reason":"' in event or '"choices":[]' in event)


async def _evidence(held: str, steered: Steered) -> list[str]:
    try:
        await steered.count()
    except SteersmanError as error:
        return [held, failed(error)]
    chunk = _payload(held)
    assert chunk is not None
    return [sse({**chunk, "steersman": {**chunk.get("steersman", {}), **steered.told()}})]


def failed(error: SteersmanError) -> str:
    """An error as the event that ends a stream."""
    return sse({"error": {"message": error.message, "type": error.type, "code": error.status}})


async def ending_with(
    stream: AsyncGenerator[str, None], told: Mapping[str, Any]
) -> AsyncGenerator[str, None]:
    """`stream` with `told` under `steersman` in its last event before `[DONE]`; one that failed has none."""
    held = ""
    async with aclosing(stream):
        async for event in stream:
            if held and event.startswith("data: [DONE]"):
                chunk = _payload(held)
                assert chunk is not None
                held = sse({**chunk, "steersman": {**chunk.get("steersman", {}), **told}})
            if held:
                yield held
                held = ""
            if _may_be_last(event):
                held = event
            else:
                yield event
    if held:
        yield held


@dataclass(slots=True)
class Streamed:
    """What a stream of one choice came to; `steersman` is what its own end says."""

    text: str = ""
    finish_reason: str | None = None
    tokens: int = 0
    steersman: dict[str, Any] = field(default_factory=dict)

    def take(self, chunk: Mapping[str, Any]) -> None:
        for choice in chunk["choices"]:
            self.text += (choice["delta"].get("content") if "delta" in choice else choice["text"]) or ""
            self.finish_reason = choice["finish_reason"] or self.finish_reason
        if chunk.get("usage"):
            self.tokens = chunk["usage"]["completion_tokens"]
        self.steersman |= chunk.get("steersman", {})


async def concluded(
    stream: AsyncGenerator[str, None],
    tell: Callable[[Streamed], Mapping[str, Any]],
    *,
    include_usage: bool,
) -> AsyncGenerator[str, None]:
    """A stream of one choice that ends with its usage, with what `tell` makes of all of it under `steersman`
    in its last event before `[DONE]`; one that failed has none. The usage stays where it was asked for."""
    streamed, held = Streamed(), list[dict[str, Any]]()
    async with aclosing(stream):
        async for event in stream:
            if held and event.startswith("data: [DONE]"):
                told = {**streamed.steersman, **tell(streamed)}
                *others, last = [each for each in held if each["choices"] or include_usage]
                for each in others:
                    yield sse(each)
                yield sse({**last, "steersman": told})
                held = []
            chunk = _payload(event)
            if chunk is None or "error" in chunk:
                for each in held if chunk else ():
                    yield sse(each)
                held = [] if chunk else held
                yield event
                continue
            streamed.take(chunk)
            if streamed.finish_reason is None:
                yield event
            else:
                held.append(chunk)


async def interleave(
    streams: Sequence[AsyncGenerator[str, None]], firsts: Sequence[bool], *, include_usage: bool
) -> AsyncGenerator[str, None]:
    """One SSE stream out of one per candidate, each of which ends with a usage chunk and `[DONE]`.

    Chunks pass as they come, under the first id to arrive, with the candidate as `index`. The first error,
    as an event or as an exception, ends it. Ending or closing this generator closes all streams.
    """
    queue: asyncio.Queue[tuple[int, str | None] | Exception] = asyncio.Queue(maxsize=64)

    async def pump(slot: int, stream: AsyncGenerator[str, None]) -> None:
        counts_prompt.set(firsts[slot])
        try:
            async with aclosing(stream):
                async for event in stream:
                    await queue.put((slot, event))
            await queue.put((slot, None))
        except Exception as error:  # noqa: BLE001  # whatever a stream raises, the reader below raises
            await queue.put(error)

    tasks = [asyncio.create_task(pump(slot, stream)) for slot, stream in enumerate(streams)]
    try:
        async with aclosing(_merged(queue, firsts, include_usage=include_usage)) as events:
            async for event in events:
                yield event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _merged(
    queue: "asyncio.Queue[tuple[int, str | None] | Exception]", firsts: Sequence[bool], *, include_usage: bool
) -> AsyncGenerator[str, None]:
    head: dict[str, Any] = {}
    usages: dict[int, dict[str, Any]] = {}
    open_streams = len(firsts)
    while open_streams:
        item = await queue.get()
        if isinstance(item, Exception):
            raise item
        slot, event = item
        if event is None:
            open_streams -= 1
            continue
        chunk = _payload(event)
        if chunk is None:
            continue
        if "error" in chunk:
            yield event
            break
        head = head or {key: chunk[key] for key in ("id", "created", "model", "object")}
        if not chunk["choices"]:
            usages[slot] = chunk["usage"]
            continue
        for choice in chunk["choices"]:
            choice["index"] = slot
        yield sse({**chunk, **head})
    else:
        if include_usage:
            yield sse({**head, "choices": [], "usage": _stream_usage(usages, firsts)})
    yield "data: [DONE]\n\n"


def _payload(event: str) -> dict[str, Any] | None:
    """The JSON of one `data:` event; None for `[DONE]` and comments."""
    if not event.startswith("data: ") or event.startswith("data: [DONE]"):
        return None
    payload: dict[str, Any] = json.loads(event[6:])
    return payload


def _stream_usage(usages: dict[int, dict[str, Any]], firsts: Sequence[bool]) -> dict[str, Any]:
    prompt = sum(usage["prompt_tokens"] for slot, usage in usages.items() if firsts[slot])
    completion = sum(usage["completion_tokens"] for usage in usages.values())
    return {
        **usages[0],
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
