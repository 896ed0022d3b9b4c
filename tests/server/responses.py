"""Responses and streams as far as the fan-out sees them, for its tests."""

import json
from types import SimpleNamespace

from pydantic import BaseModel


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


def payloads(events: list[str]) -> list[dict]:
    """The JSON of a stream, which must be well-formed SSE that ends with [DONE]."""
    assert all(event.startswith("data: ") and event.endswith("\n\n") for event in events)
    assert all(event.count("\n") == 2 for event in events)
    assert events[-1] == "data: [DONE]\n\n"
    return [json.loads(event[6:]) for event in events[:-1]]


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
