"""Adaptive Engine's shapes that need no engine: what its requests and answers have beside OpenAI's."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from server.errors import INVALID_FILE_INPUT, InvalidRequest
from server.oxen_wire import MediaPart
from server.routes.body import strict_json

IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif")
MAX_IMAGE_BYTES = 10 * 1024 * 1024
_SENT_BACK = frozenset({"id", "completion_id", "metadata"})


class ConstrainedDecoding(BaseModel):
    """A constraint as one text; `format` says what it is."""

    model_config = ConfigDict(extra="forbid")

    schema_: str = Field(alias="schema", min_length=1)
    format: Literal["json_schema", "json", "regex", "grammar"]

    def field(self) -> dict[str, Any]:
        """Steersman's own field for it. Raises InvalidRequest for a schema that is no JSON object."""
        if self.format == "regex":
            return {"regex_pattern": self.schema_}
        if self.format == "grammar":
            return {"grammar": self.schema_}
        try:
            schema = strict_json(self.schema_.encode())
        except (ValueError, RecursionError) as error:
            raise _wrong(f"the schema is not valid JSON: {error}") from error
        if not isinstance(schema, dict):
            raise _wrong("the schema is a JSON object, written as a text")
        return {"json_schema": schema}


def _wrong(reason: str) -> InvalidRequest:
    field = "constrained_decoding.schema"
    return InvalidRequest(f"{field}: {reason}", param=field)


def session_uuid(value: Any, field: str = "session_id") -> str:
    """Raises InvalidRequest for what is no UUID."""
    try:
        return str(UUID(value))
    except (ValueError, AttributeError, TypeError) as error:
        raise InvalidRequest(f"{field} is a UUID here, or absent", param=field) from error


def plain(messages: Any) -> Any:
    """`messages` as every dialect has them. An earlier answer says by an id which one it was, and any message
    may have notes of its own: the model sees neither.

    Raises InvalidRequest for an id that is no UUID.
    """
    if not isinstance(messages, list):
        return messages
    return [_plain(message, f"messages.{index}") for index, message in enumerate(messages)]


def _plain(message: Any, path: str) -> Any:
    if not isinstance(message, dict):
        return message
    if message.get("completion_id") is not None:
        session_uuid(message["completion_id"], f"{path}.completion_id")
    return {name: value for name, value in message.items() if name not in _SENT_BACK}


def functions(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What Adaptive's two fields of tools come to in OpenAI's, of a request's body.

    Raises InvalidRequest for tools that would have to be here.
    """
    tools, uses = asked.get("tools"), asked.get("use_tools")
    for index, tool in enumerate(tools if isinstance(tools, list) else ()):
        if isinstance(tool, dict) and "type" not in tool and "enabled" in tool:
            raise InvalidRequest(
                f"tools.{index}: this server has no tools of its own to enable or disable; send functions, as"
                ' {"type": "function", "function": {…}}, which the client calls itself',
                param=f"tools.{index}",
            )
    if uses is True and not tools:
        raise InvalidRequest(
            "use_tools: this server has no tools of its own; send functions in `tools`", param="use_tools"
        )
    if uses is not False or not tools:
        return {}
    if asked.get("tool_choice") not in (None, "none"):
        raise InvalidRequest("`use_tools` is false beside a `tool_choice`", param="use_tools")
    return {"tool_choice": "none"}


def admit_images(parts: Sequence[MediaPart]) -> None:
    """Raises InvalidRequest for an image in the request itself that is of another type, or too large."""
    for part in parts:
        if part.kind != "image_url" or part.url[:5].lower() != "data:":
            continue
        head, _, data = part.url.partition(",")
        kind = head[5:].partition(";")[0].lower()
        field = f"{part.path}.image_url"
        if kind not in IMAGE_TYPES:
            raise InvalidRequest(
                f"{field}: an image is one of {', '.join(IMAGE_TYPES)}", param=field, code=INVALID_FILE_INPUT
            )
        if len(data) * 3 // 4 > MAX_IMAGE_BYTES + 2:
            raise InvalidRequest(f"{field}: an image has at most 10 MB", param=field, code=INVALID_FILE_INPUT)
