"""The parts of messages that are not text: where they stand, and whether the served model takes them.

Parts are known by their type, or without one by the field that holds the link, as vLLM reads them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.errors import InvalidRequest

_MODALITIES = {
    "image_url": "image",
    "input_image": "image",
    "image_pil": "image",
    "image_embeds": "image",
    "video_url": "video",
    "video_embeds": "video",
    "audio_url": "audio",
    "input_audio": "audio",
    "audio_embeds": "audio",
}

_LINKED = ("image_url", "video_url", "audio_url")


@dataclass(frozen=True, slots=True)
class PlacedPart:
    """`path` is its place in the request, `modality` what a model needs for it, `url` its link, if any."""

    path: str
    modality: str
    url: str | None = None

    def require(self, modalities: frozenset[str]) -> None:
        """Raises InvalidRequest where the served model, which takes `modalities` beside text, does not."""
        if self.modality in modalities:
            return
        takes = ", ".join(["text", *sorted(modalities)])
        raise InvalidRequest(
            f"{self.path}: the served model takes no {self.modality}, only {takes}", param=self.path
        )


def media_parts(messages: Any, field: str, contents: Sequence[str] = ("content",)) -> Iterator[PlacedPart]:
    """Those of the messages in `field`, whose parts are listed under one of `contents`."""
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        for content in contents if isinstance(message, Mapping) else ():
            listed = message.get(content)
            for place, part in enumerate(listed if isinstance(listed, list) else ()):
                modality = _modality(part)
                if modality is not None:
                    yield PlacedPart(f"{field}.{index}.{content}.{place}", modality, _url(part))


def _url(part: Mapping[str, Any]) -> str | None:
    linked = next((part[name] for name in _LINKED if name in part), None)
    url = linked.get("url") if isinstance(linked, Mapping) else linked
    return url if isinstance(url, str) else None


def _modality(part: Any) -> str | None:
    if not isinstance(part, Mapping):
        return None
    kind = part.get("type")
    if isinstance(kind, str) and "uuid" not in part:
        return _MODALITIES.get(kind)
    return next((modality for name, modality in _MODALITIES.items() if name in part), None)
