"""The choices of stored chat completions once more, in narrow rows: what completions are found by."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from server.store import Moment, Table

NUMBER = BigInteger().with_variant(Integer, "sqlite")
MAX_MODEL, MAX_SESSION, MAX_USER = 500, 200, 200  # characters
HASH = 64


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
    prompt_hash: Mapped[str] = mapped_column(String(HASH))
    source: Mapped[str] = mapped_column(String(10))
    campaign_id: Mapped[str | None] = mapped_column(String(36))
    variant: Mapped[str | None] = mapped_column(String(MAX_MODEL))
