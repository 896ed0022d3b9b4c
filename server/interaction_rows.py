"""Interactions as their tables hold them: chat completions, their labels, and the choices that are scored."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Float, ForeignKey, Index, String, Text, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapped, mapped_column

from server.completion_ids import completion_id
from server.completion_rows import (
    MAX_MODEL,
    MAX_SESSION,
    MAX_USER,
    NUMBER,
    CompletionRow,
    Source,
    choices,
    prompt_hash,
)
from server.errors import NotFound
from server.observed import storable
from server.store import Moment, Table

MAX_ID = 200  # characters
MAX_LABELS, MAX_LABEL_KEY, MAX_LABEL_VALUE = 16, 64, 512  # OpenAI's limits of `metadata`


class InteractionRow(Table):
    """Numbered in the order in which they were stored. Texts of JSON are JSON."""

    __tablename__ = "interactions"
    __table_args__ = (
        Index(None, "account_id", "number"),
        Index(None, "account_id", "id"),
        Index(None, "account_id", "model", "number"),
    )

    number: Mapped[int] = mapped_column(NUMBER, primary_key=True)
    id: Mapped[str] = mapped_column(String(MAX_ID))
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"))
    created_at: Mapped[datetime] = mapped_column(Moment)
    model: Mapped[str] = mapped_column(String(MAX_MODEL))
    session_id: Mapped[str | None] = mapped_column(String(MAX_SESSION))
    messages: Mapped[str] = mapped_column(Text)
    parameters: Mapped[str] = mapped_column(Text)
    answer: Mapped[str] = mapped_column(Text)
    labels: Mapped[str] = mapped_column(Text)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    completion_tokens: Mapped[int] = mapped_column(BigInteger)
    latency_ms: Mapped[float] = mapped_column(Float)
    first_token_ms: Mapped[float | None] = mapped_column(Float)
    source: Mapped[str] = mapped_column(String(10))
    user_id: Mapped[str | None] = mapped_column(String(MAX_USER))
    campaign_id: Mapped[str | None] = mapped_column(String(36))
    variant: Mapped[str | None] = mapped_column(String(MAX_MODEL))
    stored_at: Mapped[datetime] = mapped_column(Moment, index=True)


class InteractionLabelRow(Table):
    """The labels of an interaction once more, to find it by them."""

    __tablename__ = "interaction_labels"
    __table_args__ = (Index(None, "account_id", "key", "value", "number"),)

    number: Mapped[int] = mapped_column(
        NUMBER, ForeignKey("interactions.number", ondelete="CASCADE"), primary_key=True
    )
    key: Mapped[str] = mapped_column(String(MAX_LABEL_KEY), primary_key=True)
    value: Mapped[str] = mapped_column(String(MAX_LABEL_VALUE))
    account_id: Mapped[str] = mapped_column(String(36))


Key = tuple[str, str]  # account, and the id that its interaction has there


@dataclass(frozen=True, slots=True)
class Interaction:
    """`messages` and `parameters` are the request's, `answer` is OpenAI's object with what is told under
    `steersman`; `first_token_ms` is known of streams."""

    id: str
    account_id: str
    created_at: datetime
    model: str
    session_id: str | None
    messages: Sequence[Mapping[str, Any]]
    parameters: Mapping[str, Any]
    answer: Mapping[str, Any]
    labels: Mapping[str, str]
    prompt_tokens: int
    completion_tokens: int
    latency_ms: float
    first_token_ms: float | None
    source: Source = Source.LIVE
    user_id: str | None = None
    campaign_id: str | None = None  # of the A/B test that chose the model, and which of its variants that is
    variant: str | None = None
    stored_at: datetime | None = None  # where that is not when it was made

    @property
    def prompt_hash(self) -> str:
        return prompt_hash(self.messages)


async def add_labels(
    connection: AsyncConnection, labelled: Iterable[tuple[int, str, Mapping[str, str]]]
) -> None:
    """Each by its number and account."""
    rows = [
        {"number": number, "account_id": account_id, "key": storable(key), "value": storable(value)}
        for number, account_id, labels in labelled
        for key, value in fitting(labels).items()
    ]
    if rows:
        await connection.execute(insert(InteractionLabelRow), rows)


def fitting(labels: Mapping[str, str]) -> dict[str, str]:
    """As their columns hold them: a value may have grown where it was redacted."""
    return {key[:MAX_LABEL_KEY]: value[:MAX_LABEL_VALUE] for key, value in labels.items()}


def as_json(value: Any) -> str:
    return storable(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


@dataclass(frozen=True, slots=True)
class StoredRows:
    """An interaction as its tables hold it, but for its number."""

    interaction: Mapping[str, Any]
    completions: Sequence[Mapping[str, Any]]
    labels: Mapping[str, str]


def stored_rows(interaction: Interaction) -> StoredRows:
    """It takes a while: not for the event loop."""
    found_by = {
        "account_id": interaction.account_id,
        "created_at": interaction.created_at,
        "model": _within(interaction.model, MAX_MODEL),
        "session_id": _within(interaction.session_id, MAX_SESSION),
        "source": interaction.source,
        "user_id": _within(interaction.user_id, MAX_USER),
        "campaign_id": interaction.campaign_id,
        "variant": _within(interaction.variant, MAX_MODEL),
    }
    row = {
        "id": _within(interaction.id, MAX_ID),
        "messages": as_json(interaction.messages),
        "parameters": as_json(interaction.parameters),
        "answer": as_json(interaction.answer),
        "labels": as_json(fitting(interaction.labels)),
        "prompt_tokens": interaction.prompt_tokens,
        "completion_tokens": interaction.completion_tokens,
        "latency_ms": interaction.latency_ms,
        "first_token_ms": interaction.first_token_ms,
        "stored_at": interaction.stored_at or interaction.created_at,
    }
    hashed = prompt_hash(interaction.messages)
    completions = [
        {
            "id": completion_id(interaction.account_id, interaction.id, index),
            "choice": index,
            "prompt_hash": hashed,
            **found_by,
        }
        for index in choices(interaction.answer)
    ]
    return StoredRows({**row, **found_by}, completions, interaction.labels)


async def add_rows(connection: AsyncConnection, added: Sequence[StoredRows]) -> Sequence[int]:
    """The numbers they were given."""
    query = insert(InteractionRow).returning(InteractionRow.number, sort_by_parameter_order=True)
    rows = [each.interaction for each in added]
    numbers = (await connection.execute(query, rows)).scalars().all()
    numbered = list(zip(numbers, added, strict=True))
    completions = [{"number": number, **row} for number, each in numbered for row in each.completions]
    if completions:
        await connection.execute(insert(CompletionRow), completions)
    await add_labels(
        connection, [(number, each.interaction["account_id"], each.labels) for number, each in numbered]
    )
    return numbers


@dataclass(frozen=True, slots=True)
class Place:
    """A choice of the interaction of that number."""

    number: int
    choice: int


async def locate(
    connection: AsyncConnection, account_id: str, completion: str, param: str = "completion_id"
) -> Place:
    """Where the completion of that id is; it stays until the end of the transaction. Raises NotFound."""
    query = (
        select(CompletionRow.number, CompletionRow.choice)
        .join(InteractionRow, InteractionRow.number == CompletionRow.number)
        .where(CompletionRow.account_id == account_id, CompletionRow.id == storable(completion))
        .order_by(CompletionRow.number.desc())
        .limit(1)
        .with_for_update(read=True, of=InteractionRow)
    )
    row = (await connection.execute(query)).first()
    if row is None:
        raise not_stored(completion, param)
    return Place(row.number, row.choice)


def not_stored(completion: str, param: str) -> NotFound:
    return NotFound(
        f"No completion {completion!r} is stored, so that it cannot be scored: it was not to be"
        " (`store: false`), or was dropped since.",
        param=param,
    )


def _within(text: str | None, most: int) -> str | None:
    return None if text is None else storable(text)[:most]


_PARSED = ("messages", "parameters", "answer", "labels")


def interaction_of(row: Any) -> Interaction:
    """Of all columns."""
    values = {name: getattr(row, name) for name in Interaction.__dataclass_fields__}
    values["source"] = Source(row.source)
    values["stored_at"] = None if row.stored_at == row.created_at else row.stored_at
    return Interaction(**values | {name: json.loads(values[name]) for name in _PARSED})
