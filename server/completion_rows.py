"""The choices of stored chat completions once more, in narrow rows: what completions are found by."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from server.store import Moment, Table

NUMBER = BigInteger().with_variant(Integer, "sqlite")
MAX_MODEL, MAX_SESSION, MAX_USER = 500, 200, 200  # characters
_HASH = 64


class Source(StrEnum):
    """LIVE was answered here, OFFLINE is what a client uploaded; the others are Adaptive's."""

    LIVE = "LIVE"
    OFFLINE = "OFFLINE"
    AUTOMATION = "AUTOMATION"
    DATASET = "DATASET"
    EVALUATION = "EVALUATION"


class CompletionRow(Table):
    """`id` is what the choice is scored by (`completion_ids`). Two processes may have stored one
    interaction's id at the same time: the higher number counts."""

    __tablename__ = "completions"
    __table_args__ = (
        Index(None, "account_id", "id"),
        Index(None, "account_id", "created_at", "number", "choice"),
        Index(None, "account_id", "model", "created_at", "number", "choice"),
        Index(None, "account_id", "prompt_hash", "created_at", "number", "choice"),
        Index(None, "account_id", "session_id", "created_at", "number", "choice"),
        Index(None, "account_id", "user_id", "created_at", "number", "choice"),
        Index(None, "account_id", "source", "created_at", "number", "choice"),
        Index(None, "campaign_id", "variant"),
    )

    number: Mapped[int] = mapped_column(
        NUMBER, ForeignKey("interactions.number", ondelete="CASCADE"), primary_key=True
    )
    choice: Mapped[int] = mapped_column(Integer, primary_key=True)
    id: Mapped[str] = mapped_column(String(36))
    account_id: Mapped[str] = mapped_column(String(36))
    created_at: Mapped[datetime] = mapped_column(Moment)
    model: Mapped[str] = mapped_column(String(MAX_MODEL))
    session_id: Mapped[str | None] = mapped_column(String(MAX_SESSION))
    user_id: Mapped[str | None] = mapped_column(String(MAX_USER))
    prompt_hash: Mapped[str] = mapped_column(String(_HASH))
    source: Mapped[str] = mapped_column(String(10))
    campaign_id: Mapped[str | None] = mapped_column(String(36))
    variant: Mapped[str | None] = mapped_column(String(MAX_MODEL))


def prompt_hash(messages: Sequence[Mapping[str, Any]]) -> str:
    """The same for the same roles and contents, whether a text stands alone or as the only part of a list."""
    plain = [[each.get("role"), _plain(each.get("content")), _calls(each)] for each in messages]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _plain(content: Any) -> Any:
    part = content[0] if isinstance(content, list) and len(content) == 1 else None
    return part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else content


def _calls(message: Mapping[str, Any]) -> Any:
    return [message.get("tool_calls"), message.get("tool_call_id")]


def choices(answer: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """Those of an answer, by their indices."""
    return {each.get("index", place): each for place, each in enumerate(answer["choices"])}


def text_of(answer: Mapping[str, Any], choice: int) -> str | None:
    """What that choice of an answer wrote; None where it wrote nothing."""
    content = choices(answer)[choice]["message"].get("content")
    return content if isinstance(content, str) else None
