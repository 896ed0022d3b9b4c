"""Stored chat completions as OpenAI's clients parse them."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict

from server.errors import InvalidRequest
from server.interactions import Interaction
from server.wire import Labels, Strict

Item = TypeVar("Item")

# OpenAI's object tells what was asked of the sampling, null where nothing was; other parameters are exported.
_TOLD = (
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "tools",
    "tool_choice",
    "response_format",
    "service_tier",
)
_LABEL = re.compile(r"metadata\[(.+)\]")


class StoredCompletion(BaseModel):
    """A chat completion as it was answered, with what it may be found by."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: dict[str, Any]
    metadata: dict[str, str]

    @classmethod
    def of(cls, interaction: Interaction) -> Self:
        asked = interaction.parameters
        told = {name: asked.get(name) for name in _TOLD}
        answer = {name: value for name, value in interaction.answer.items() if value is not None}
        own = {
            "metadata": dict(interaction.labels),
            "input_user": asked.get("user"),
            "session_id": interaction.session_id,
        }
        return cls(**{**told, **answer, **own})


class StoredMessage(BaseModel):
    """One message of the request. `content_parts` stands where its content was a list of parts."""

    model_config = ConfigDict(extra="allow")

    id: str
    role: str
    content: str | None
    content_parts: list[dict[str, Any]] | None
    name: str | None = None

    @classmethod
    def of(cls, interaction: Interaction) -> list[Self]:
        return [
            cls(id=f"{interaction.id}-{index}", **_content(message))
            for index, message in enumerate(interaction.messages)
        ]


def _content(message: Any) -> dict[str, Any]:
    content = message.get("content")
    parts = content if isinstance(content, list) else None
    return {**message, "content": None if parts is not None else content, "content_parts": parts}


class Page(BaseModel, Generic[Item]):
    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, data: Sequence[Item], *, more: bool) -> Self:
        ids = [getattr(each, "id") for each in data]  # noqa: B009  # of any item
        return cls(
            data=list(data),
            first_id=ids[0] if ids else None,
            last_id=ids[-1] if ids else None,
            has_more=more,
        )


class DeletedCompletion(BaseModel):
    object: Literal["chat.completion.deleted"] = "chat.completion.deleted"
    id: str
    deleted: bool = True


class MetadataUpdate(Strict):
    """POST /v1/chat/completions/{id}: `metadata` in place of what was there; null is none."""

    metadata: Labels | None


def labels_asked(query: Iterable[tuple[str, str]], known: Iterable[str]) -> dict[str, str]:
    """The labels of `metadata[key]=value` in a query string.

    Raises InvalidRequest for a parameter that is neither one nor `known`, and for a key given twice.
    """
    labels: dict[str, str] = {}
    for name, value in query:
        if name in known or (name == "metadata" and not value):  # an empty mapping, as clients write it
            continue
        found = _LABEL.fullmatch(name)
        if found is None:
            names = ", ".join(known)
            raise InvalidRequest(f"unknown parameter; there are {names} and metadata[key]", param=name)
        if found[1] in labels:
            raise InvalidRequest("given twice", param=name)
        labels[found[1]] = value
    return labels
