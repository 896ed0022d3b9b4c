"""Adaptive's older completions: a prompt, asked as a user's message, and answered as a text."""

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from server.adaptive_chat import AdaptiveChatRequest
from server.errors import InvalidBody, InvalidRequest
from server.streams import sse

_NOT_TAKEN = ("messages", "tools", "tool_choice", "use_tools", "stream_options")
_NOTHING_YET = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


class PromptRequest(BaseModel):
    """A prompt, and the fields of a chat completion."""

    model_config = ConfigDict(extra="allow")

    prompt: str = Field(min_length=1)

    def chat(self) -> dict[str, Any]:
        """The body of the chat completion that it stands for. Raises InvalidRequest."""
        more = self.model_extra or {}
        for field in _NOT_TAKEN:
            if more.get(field) is not None:
                raise InvalidRequest("a prompt does not take this: ask /chat/completions", param=field)
        asked = {name: value for name, value in more.items() if name not in _NOT_TAKEN}
        if asked.get("stream") is True:  # each piece tells what was used so far
            asked["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        return {**asked, "messages": [{"role": "user", "content": self.prompt}]}


def chat_request(body: dict[str, Any]) -> AdaptiveChatRequest:
    """Raises InvalidBody."""
    try:
        return AdaptiveChatRequest.model_validate(body)
    except ValidationError as error:
        raise InvalidBody.of(error.errors()) from error


def as_text(response: Response) -> Response:
    """A chat completion's response as that of a prompt."""
    if isinstance(response, StreamingResponse):
        response.body_iterator = _texts(response.body_iterator)
        return response
    headers = {name: value for name, value in response.headers.items() if name.startswith("x-")}
    content = json.dumps(_text(json.loads(bytes(response.body)), "message"), ensure_ascii=False)
    return Response(content, response.status_code, headers, media_type="application/json")


async def _texts(events: Any) -> AsyncIterator[str]:
    usage = _NOTHING_YET
    async with aclosing(events):
        async for event in events:
            if not event.startswith('data: {"') or event.startswith('data: {"error"'):
                yield event
                continue
            chunk = json.loads(event[6:])
            usage = chunk.get("usage") or usage
            yield sse({**_text(chunk, "delta"), "usage": usage})


def _text(answer: dict[str, Any], part: str) -> dict[str, Any]:
    choices = []
    for choice in answer["choices"]:
        said = choice.pop(part)
        reasoning = {"reasoning": said["reasoning"]} if said.get("reasoning") else {}
        choices.append({**choice, "text": said["content"], **reasoning})
    return {**answer, "object": "text_completion", "choices": choices}
