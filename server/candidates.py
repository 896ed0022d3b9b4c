"""Several engine requests behind one answer: siblings, best-of-n, ensembles.

vLLM's own `n` gives all children one parameter object, so sequences that must be told apart run as requests
of their own: in the same batch, sharing the prompt's prefix cache. This module fans out and merges; it sees
responses through the few attributes below and knows no engine.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol, TypeVar

from policies.vote import Candidate, majority
from server.together import together

R = TypeVar("R")

# False while a sibling runs whose prompt its group has counted already.
counts_prompt: ContextVar[bool] = ContextVar("counts_prompt", default=True)
# Which of its siblings a request is.
sibling: ContextVar[int] = ContextVar("sibling", default=0)


class Response(Protocol):
    id: str
    created: int
    choices: list[Any]
    usage: Any


async def gather(calls: Sequence[Callable[[], Awaitable[R]]], firsts: Sequence[bool]) -> list[R]:
    """Run all `calls` at once; the first failure cancels the others, which aborts their engine requests.

    `firsts` marks the calls whose prompt counts as used; the others share it.
    """
    runs = [
        partial(_run, call, slot, first) for slot, (call, first) in enumerate(zip(calls, firsts, strict=True))
    ]
    return await together(runs, at_once=len(runs))


async def _run(call: Callable[[], Awaitable[R]], slot: int, first: bool) -> R:
    counts_prompt.set(first)
    sibling.set(slot)
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
