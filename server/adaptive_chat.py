"""Adaptive Engine's chat requests as those that are served here, and answers as its clients read them."""

from typing import Annotated, Any, Self
from uuid import uuid4

from pydantic import (
    ConfigDict,
    Field,
    JsonValue,
    ModelWrapValidatorHandler,
    PrivateAttr,
    field_validator,
    model_validator,
)

from policies.constraint import Constraint
from server.adaptive_wire import (
    ConstrainedDecoding,
    admit_images,
    functions,
    plain,
    session_uuid,
)
from server.errors import InvalidRequest
from server.interactions import MAX_LABEL_VALUE, MAX_LABELS
from server.media_hosts import MediaHosts
from server.oxen_wire import MediaPart, parted
from server.vllm_wire import ChatRequest

Tags = Annotated[list[Annotated[str, Field(max_length=MAX_LABEL_VALUE)]], Field(max_length=MAX_LABELS)]


class AdaptiveChatRequest(ChatRequest):
    """Adaptive's fields beside OpenAI's; everything that /v1 takes is taken too.

    A session is a UUID. One that the request does not name is made up, for its answer to name.
    """

    model_config = ConfigDict(extra="forbid")

    ab_campaign: str | None = None
    tags: Tags | None = Field(default=None, description="stored with the completion")
    use_tools: bool | None = None
    system_prompt_args: dict[str, JsonValue] | None = None
    max_ttft_ms: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="408 where the first token takes longer"
    )
    constrained_decoding: ConstrainedDecoding | None = None

    _media: tuple[MediaPart, ...] = PrivateAttr(())
    _named: bool = PrivateAttr(False)

    @model_validator(mode="wrap")
    @classmethod
    def _translated(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, dict):
            return handler(data)
        named = data.get("session_id") is not None
        session = session_uuid(data["session_id"]) if named else str(uuid4())
        messages, media = parted(plain(data.get("messages")))
        said = {"messages": messages} if "messages" in data else {}
        request = handler({**data, **said, **functions(data), "session_id": session})
        request._media, request._named = media, named  # noqa: SLF001  # of our own making
        request._take_over()  # noqa: SLF001
        return request

    def _take_over(self) -> None:
        """The constraint moves to the field of ours that has its kind."""
        if self.constrained_decoding is None:
            return
        if self.constrained:
            raise InvalidRequest(
                "`constrained_decoding` stands beside another constraint; give one",
                param="constrained_decoding",
            )
        for name, value in self.constrained_decoding.field().items():
            setattr(self, name, value)

    @field_validator("system_prompt_args")
    @classmethod
    def _no_template(cls, args: dict[str, JsonValue] | None) -> dict[str, JsonValue] | None:
        if args:
            raise ValueError("no model here has a template of its system prompt that takes arguments")
        return args

    @property
    def sticks(self) -> str | None:
        return self.session_id if self._named else None

    def joins(self, session_id: str) -> None:
        if not self._named:
            self.session_id, self._named = session_uuid(session_id, "x-session-id"), True

    @property
    def stored_unasked(self) -> bool:
        return True

    @property
    def texts(self) -> bool:
        return True

    def admit(self, modalities: frozenset[str], hosts: MediaHosts) -> None:
        """Raises InvalidRequest for media that no served model takes, or that may not be had."""
        for part in self._media:
            part.admit(modalities, hosts)
        admit_images(self._media)

    def take_constraints(self) -> list[tuple[Constraint, str]]:
        taken = super().take_constraints()
        if self.constrained_decoding is None or not taken:
            return taken
        return [(taken[0][0], "constrained_decoding.schema"), *taken[1:]]
