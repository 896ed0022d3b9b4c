"""A request whose `model` may be an alias, or stand in a project: what `addressing` leaves in it."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, PrivateAttr

from server.addressing import BINDABLE, SESSION_HEADER
from server.assignment import Assignment
from server.completion_rows import MAX_SESSION
from server.errors import InvalidRequest


class Addressable(BaseModel):
    least: ClassVar[Mapping[str, Any]]  # without which no request of its kind is valid

    session_id: str | None = None

    _answers_as: str | None = PrivateAttr(None)
    _known_as: str | None = PrivateAttr(None)
    _assignment: Assignment | None = PrivateAttr(None)

    def answer_as(self, name: str) -> None:
        """Answers carry the name that was asked for."""
        self._answers_as = name

    @property
    def answers_as(self) -> str | None:
        return self._answers_as

    def know_as(self, name: str) -> None:
        """The model's name in its project, however it was asked for."""
        self._known_as = name

    @property
    def known_as(self) -> str | None:
        return self._known_as

    def assign(self, assignment: Assignment) -> None:
        self._assignment = assignment

    @property
    def assignment(self) -> Assignment | None:
        """The variant of an A/B test that answers."""
        return self._assignment

    def joins(self, session_id: str) -> None:
        """A header names the session, unless the request does. Raises InvalidRequest."""
        if self.session_id is None:
            if len(session_id) > MAX_SESSION:
                raise InvalidRequest(f"at most {MAX_SESSION} characters", param=SESSION_HEADER)
            self.session_id = session_id

    @property
    def sticks(self) -> str | None:
        """The session whose requests belong to one engine, where its prefixes are cached."""
        return self.session_id

    @classmethod
    def bound(cls, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """`defaults` as fields of such a request. Raises pydantic's ValidationError, VLLMValidationError."""
        parsed = cls.model_validate({**cls.least, **defaults})
        return {name: getattr(parsed, name) for name in parsed.model_fields_set & BINDABLE}
