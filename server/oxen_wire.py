"""Oxen.ai's shapes that need no engine: the parts of a message, and the models it lists."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from server.errors import INVALID_FILE_INPUT, InvalidRequest
from server.media_hosts import MediaHosts, MediaRefused
from server.media_parts import PlacedPart
from server.served_models import ServedModels

OWNER = "steersman"
_LINKED = {"image_url": "image", "video_url": "video", "audio_url": "audio"}
_LINK_FIELDS = {"url", "detail"}


@dataclass(frozen=True, slots=True)
class MediaPart:
    """A part that is not text; `path` is its place in the request, `kind` its type there."""

    path: str
    kind: str
    url: str

    def admit(self, modalities: frozenset[str], hosts: MediaHosts) -> None:
        """Raises InvalidRequest where no served model takes it, or it may not be fetched."""
        PlacedPart(self.path, _LINKED[self.kind]).require(modalities)
        if self.url[:5].lower() == "data:":
            self._require_base64()
            return
        try:
            hosts.check(self.url)
        except MediaRefused as error:
            raise self._refused(str(error)) from error

    def _require_base64(self) -> None:
        head, comma, data = self.url.partition(",")
        if not comma or not data or not head.endswith(";base64"):
            raise self._refused("a data URL reads data:TYPE;base64,DATA")

    def _refused(self, reason: str) -> InvalidRequest:
        path = f"{self.path}.{self.kind}.url"
        return InvalidRequest(f"{path}: {reason}", param=path, code=INVALID_FILE_INPUT)


def parted(messages: Any) -> tuple[Any, tuple[MediaPart, ...]]:
    """`messages` with flat URLs as objects, and their media parts; what are no messages stays as it is.

    Raises InvalidRequest for a part that vLLM would not read as it is meant.
    """
    if not isinstance(messages, list):
        return messages, ()
    media: list[MediaPart] = []
    read = [_message(message, f"messages.{index}", media) for index, message in enumerate(messages)]
    return read, tuple(media)


def _message(message: Any, path: str, media: list[MediaPart]) -> Any:
    if not isinstance(message, Mapping) or not isinstance(parts := message.get("content"), list):
        return message
    content = [_part(part, f"{path}.content.{index}", media) for index, part in enumerate(parts)]
    return {**message, "content": content}


def _part(part: Any, path: str, media: list[MediaPart]) -> Any:
    given = part.get("type") if isinstance(part, dict) else None
    kind = given if isinstance(given, str) else None
    if kind == "file":
        raise InvalidRequest(
            f"{path}: file parts are not read here; send the text of the document as a text part",
            param=path,
            code=INVALID_FILE_INPUT,
        )
    if kind != "text" and kind not in _LINKED:
        raise InvalidRequest(
            f"{path}: a part is an object whose type is one of text, {', '.join(_LINKED)}",
            param=f"{path}.type",
        )
    _require_known(part, {"type", kind}, path)
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise InvalidRequest(f"{path}.text: a text part has its text here", param=f"{path}.text")
        return part
    link = {"url": part.get(kind)} if isinstance(part.get(kind), str) else part.get(kind)
    if not isinstance(link, dict) or not isinstance(url := link.get("url"), str):
        raise InvalidRequest(
            f'{path}.{kind}: the link of the part, as {{"url": "…"}}', param=f"{path}.{kind}"
        )
    _require_known(link, _LINK_FIELDS, f"{path}.{kind}")
    if link.get("detail") not in (None, "auto"):
        field = f"{path}.{kind}.detail"
        raise InvalidRequest(f"{field}: a served model has one detail, auto", param=field)
    media.append(MediaPart(path, kind, url))
    return {"type": kind, kind: {"url": url}}


def _require_known(given: Mapping[str, Any], known: set[str], path: str) -> None:
    for field in sorted(given.keys() - known):
        raise InvalidRequest(f"{path}.{field}: unknown field", param=f"{path}.{field}")


class Capabilities(BaseModel):
    input: list[str]
    output: list[str] = ["text"]


class Pricing(BaseModel):
    """What is served by oneself is not charged for."""

    method: Literal["token"] = "token"
    input_cost_per_token: float = 0.0
    output_cost_per_token: float = 0.0


class Deployment(BaseModel):
    status: Literal["active"] = "active"


class Developer(BaseModel):
    name: str
    logo: None = None


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = OWNER
    display_name: str
    description: None = None
    summary: None = None
    model_type: Literal["base", "custom"]
    endpoint: Literal["/chat/completions"] = "/chat/completions"
    capabilities: Capabilities
    pricing: Pricing = Pricing()
    fine_tuning: None = None
    deployments: list[Deployment]
    developer: Developer | None
    source_model: str | None
    image_url: None = None
    released_at: None = None
    request_schema: None = None
    showcase: None = None

    def mentions(self, text: str) -> bool:
        """Whether a search for `text` finds it: by its name, its developer's or its base model's."""
        named = (self.id, self.developer.name if self.developer else "", self.source_model or "")
        return any(text.casefold() in each.casefold() for each in named)


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


def listed(models: ServedModels) -> list[Model]:
    """Every name that is served, adapters as custom models."""
    return [listed_as(name, models) for name in models.names]


def listed_as(name: str, models: ServedModels) -> Model:
    """`name` must be a served one."""
    custom = name in models.adapters
    return Model(
        id=name,
        created=models.created,
        display_name=name,
        model_type="custom" if custom else "base",
        capabilities=Capabilities(input=["text", *sorted(models.modalities)]),
        deployments=[Deployment()] if custom else [],
        developer=None if custom else _developer(models.root),
        source_model=models.default if custom else None,
    )


def _developer(root: str) -> Developer | None:
    """Of a model that comes from a hub, under its developer's name; of local files nobody knows it."""
    organisation, slash, name = root.partition("/")
    hub = organisation[:1].isalnum() and slash and name and "/" not in name and not Path(root).exists()
    return Developer(name=organisation) if hub else None
