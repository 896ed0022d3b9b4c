"""Several engine requests behind one answer: siblings, best-of-n, ensembles.

vLLM's own `n` gives all children one parameter object, so sequences that must be told apart run as requests
of their own: in the same batch, sharing the prompt's prefix cache. This module fans out and merges; it sees
responses through the few attributes below and knows no engine.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

from policies.vote import Candidate, majority

R = TypeVar("R")

# False while a sibling runs whose prompt its group has counted already.
counts_prompt: ContextVar[bool] = ContextVar("counts_prompt", default=True)


class Response(Protocol):
    id: str
    created: int
    choices: list[Any]
    usage: Any


async def gather(calls: Sequence[Callable[[], Awaitable[R]]], firsts: Sequence[bool]) -> list[R]:
    """Run all `calls` at once; the first failure cancels the others, which aborts their engine requests.

    `firsts` marks the calls whose prompt counts as used; the others share it.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_run(call, first)) for call, first in zip(calls, firsts, strict=True)]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def _run(call: Callable[[], Awaitable[R]], first: bool) -> R:
    counts_prompt.set(first)
    return await call()


def merge(responses: Sequence[Response], firsts: Sequence[bool]) -> Response:
    """One response with all choices in order; prompts are counted where `firsts` is set."""
    merged = responses[0]
    merged.choices = [choice for response in responses for choice in response.choices]
    for index, choice in enumerate(merged.choices):
        choice.index = index
    merged.usage = _total([response.usage for response in responses], firsts)
    return merged


def best(responses: Sequence[Response], n: int) -> Response:
    """The `n` responses of highest mean token log-probability, best first; all tokens are counted."""
    ranked = sorted(range(len(responses)), key=lambda i: -mean_logprob(responses[i].choices[0]))
    return _keep(responses, ranked[:n])


def vote(responses: Sequence[Response]) -> Response:
    """The response whose text wins the majority vote."""
    choices = [response.choices[0] for response in responses]
    winner = majority([Candidate(text_of(choice), mean_logprob(choice)) for choice in choices])
    return _keep(responses, [winner])


def text_of(choice: Any) -> str:
    """The text of a chat or a completion choice."""
    message = getattr(choice, "message", None)
    return choice.text if message is None else message.content or ""


def mean_logprob(choice: Any) -> float:
    """Mean log-probability per token in nats, of a chat or a completion choice that carries logprobs."""
    if choice.logprobs is None:
        return float("-inf")
    tokens = getattr(choice.logprobs, "content", None)
    if tokens is None:
        values = getattr(choice.logprobs, "token_logprobs", None) or ()
    else:
        values = [token.logprob for token in tokens]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else float("-inf")


def _keep(responses: Sequence[Response], kept: Sequence[int]) -> Response:
    usage = _total([r.usage for r in responses], [index == 0 for index in range(len(responses))])
    merged = merge([responses[index] for index in kept], [True] * len(kept))
    merged.usage = usage
    return merged


def _total(usages: Sequence[Any], firsts: Sequence[bool]) -> Any:
    prompt = sum(usage.prompt_tokens for usage, first in zip(usages, firsts, strict=True) if first)
    completion = sum(usage.completion_tokens for usage in usages)
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return usages[0].model_copy(update=counts)


async def as_stream(answer: Any, *, include_usage: bool) -> AsyncGenerator[str, None]:
    """A finished response as SSE: each choice in one piece, the usage if asked for, `[DONE]`."""
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
        yield _event({**head, "choices": [{"finish_reason": None, **whole}]})
    if include_usage:
        yield _event({**head, "choices": [], "usage": answer.usage.model_dump(exclude_none=True)})
    yield "data: [DONE]\n\n"


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
        yield _event({**chunk, **head})
    else:
        if include_usage:
            yield _event({**head, "choices": [], "usage": _stream_usage(usages, firsts)})
    yield "data: [DONE]\n\n"


def _event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"


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
