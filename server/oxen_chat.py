"""Oxen.ai's chat requests as those that are served here, and the answers as Oxen's clients read them."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Self

from pydantic import ConfigDict, ModelWrapValidatorHandler, PrivateAttr, model_validator

from server.oxen_wire import MediaPart, parted
from server.streams import sse
from server.vllm_wire import ChatRequest


class OxenChatRequest(ChatRequest):
    """Oxen's fields are OpenAI's; everything that /v1 takes is taken too."""

    model_config = ConfigDict(extra="forbid")

    # Whom Oxen would bill; nothing here depends on it.
    target_namespace: str | None = None

    _media: tuple[MediaPart, ...] = PrivateAttr(())

    @model_validator(mode="wrap")
    @classmethod
    def _parted(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, dict):
            return handler(data)
        messages, media = parted(data.get("messages"))
        request = handler({**data, "messages": messages} if "messages" in data else data)
        request._media = media  # noqa: SLF001  # of our own making
        return request

    @property
    def media(self) -> tuple[MediaPart, ...]:
        return self._media

    def as_body(self, response: Any) -> dict[str, Any]:
        body = super().as_body(response)
        for choice in body["choices"]:
            _end_with_calls(choice, choice["message"])
        return body

    def as_events(self, stream: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        return super().as_events(_ended_with_calls(stream) if self.tools_given else stream)


def _end_with_calls(choice: dict[str, Any], message: dict[str, Any]) -> None:
    """vLLM's calls have no index outside streams, "" beside them, and end with "stop" where one was named."""
    if not message.get("tool_calls"):
        return
    for index, call in enumerate(message["tool_calls"]):
        call["index"] = index
    message["content"] = message.get("content") or None
    if choice["finish_reason"] == "stop":
        choice["finish_reason"] = "tool_calls"


async def _ended_with_calls(stream: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """`stream`, whose choices end with "tool_calls" where they called any."""
    calling: set[int] = set()
    async with aclosing(stream):
        async for event in stream:
            if '"tool_calls":[' not in event and not (calling and '"finish_reason":"stop"' in event):
                yield event
                continue
            chunk = json.loads(event.removeprefix("data: "))
            for choice in chunk["choices"]:
                if choice["delta"].get("tool_calls"):
                    calling.add(choice["index"])
                if choice["index"] in calling and choice.get("finish_reason") == "stop":
                    choice["finish_reason"] = "tool_calls"
            yield sse(chunk)
