"""The interaction log: chat completions with what was asked, kept in the database for a while."""

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Float,
    ForeignKey,
    Index,
    Integer,
    Select,
    String,
    Text,
    and_,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapped, aliased, mapped_column

from server.completion_ids import completion_id
from server.completion_rows import (
    MAX_MODEL,
    MAX_SESSION,
    MAX_USER,
    CompletionRow,
    Source,
    choices,
    prompt_hash,
)
from server.database import Database
from server.errors import NotFound
from server.observed import storable
from server.outcomes import OutcomeRow
from server.store import Moment, Table, known_accounts

MAX_ID = 200  # characters
MAX_LABELS, MAX_LABEL_KEY, MAX_LABEL_VALUE = 16, 64, 512  # OpenAI's limits of `metadata`
_COUNTED = 1000  # of a label's interactions, to tell which label is rare

_Number = BigInteger().with_variant(Integer, "sqlite")


class InteractionRow(Table):
    """Numbered in the order in which they were stored. Texts of JSON are JSON."""

    __tablename__ = "interactions"
    __table_args__ = (
        Index(None, "account_id", "number"),
        Index(None, "account_id", "id"),
        Index(None, "account_id", "model", "number"),
    )

    number: Mapped[int] = mapped_column(_Number, primary_key=True)
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
        _Number, ForeignKey("interactions.number", ondelete="CASCADE"), primary_key=True
    )
    key: Mapped[str] = mapped_column(String(MAX_LABEL_KEY), primary_key=True)
    value: Mapped[str] = mapped_column(String(MAX_LABEL_VALUE))
    account_id: Mapped[str] = mapped_column(String(36))


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


@dataclass(frozen=True, slots=True)
class Sought:
    """Which interactions; `account_id` None: of all accounts."""

    account_id: str | None
    model: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class InteractionPage:
    """`more` come after the last one, whose number is `last`."""

    interactions: Sequence[Interaction]
    more: bool
    last: int | None


class Interactions:
    """Every change is one transaction. Raises Unavailable when the database does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def keep(self, interactions: Sequence[Interaction]) -> None:
        """Add them, except those of accounts that are gone. An account's earlier interaction of the same id,
        which clients choose, is replaced."""
        if not interactions:
            return
        latest = list({(each.account_id, each.id): each for each in interactions}.values())
        # In a thread: a batch of long conversations takes a while to be written as JSON.
        rows = await asyncio.to_thread(lambda: [stored_rows(each) for each in latest])
        async with self._database.writing() as connection:
            known = await known_accounts(connection, {each.account_id for each in latest})
            kept = [each for each in rows if each.interaction["account_id"] in known]
            if kept:
                await connection.execute(delete(InteractionRow).where(_any_of(latest)))
                await add_rows(connection, kept)

    async def prune(self, *, most: int, since: datetime) -> None:
        """Of all accounts together, leave the latest `most` that were stored since then."""
        # Not within the transaction: to pass over so many rows takes a while, in which others wait to write.
        query = select(InteractionRow.number).order_by(InteractionRow.number.desc()).limit(1).offset(most)
        async with self._database.reading() as connection:
            oldest = (await connection.execute(query)).scalar()
        async with self._database.writing() as connection:
            if oldest is not None:
                await connection.execute(delete(InteractionRow).where(InteractionRow.number <= oldest))
            await connection.execute(delete(InteractionRow).where(InteractionRow.stored_at < since))
            await connection.execute(delete(OutcomeRow).where(OutcomeRow.created_at < since))

    async def list(
        self, sought: Sought, *, limit: int, after: str | None = None, newest_first: bool = False
    ) -> InteractionPage:
        """Those after the one whose id is `after`. Raises NotFound where the account has none of that id."""
        number = None
        if after is not None:
            assert sought.account_id is not None, "ids are an account's own"
            number = (await self._find(sought.account_id, after, "after")).number
        return await self.page(sought, limit=limit, after=number, newest_first=newest_first)

    async def page(
        self, sought: Sought, *, limit: int, after: int | None = None, newest_first: bool = False
    ) -> InteractionPage:
        """As `list`, after the one numbered `after`."""
        query, key = _selection(await self._rarest_first(sought))
        if after is not None:
            query = query.where(key < after if newest_first else key > after)
        query = query.order_by(key.desc() if newest_first else key).limit(limit + 1)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        shown = rows[:limit]
        found = [interaction_of(row) for row in shown]
        return InteractionPage(found, len(rows) > limit, shown[-1].number if shown else None)

    async def get(self, account_id: str, interaction_id: str) -> Interaction:
        """Raises NotFound."""
        return interaction_of(await self._find(account_id, interaction_id))

    async def label(self, account_id: str, interaction_id: str, labels: Mapping[str, str]) -> Interaction:
        """`labels` in place of those that it has. Raises NotFound."""
        number = (await self._find(account_id, interaction_id)).number
        this = InteractionRow.number == number
        async with self._database.writing() as connection:
            change = update(InteractionRow).where(this).values(labels=_json(_fit(labels)))
            if (await connection.execute(change)).rowcount == 0:
                raise _unknown(interaction_id)
            await connection.execute(delete(InteractionLabelRow).where(InteractionLabelRow.number == number))
            await _label(connection, [(number, account_id, labels)])
        return await self.get(account_id, interaction_id)

    async def delete(self, account_id: str, interaction_id: str) -> None:
        """Raises NotFound."""
        async with self._database.writing() as connection:
            gone = await connection.execute(delete(InteractionRow).where(_named(account_id, interaction_id)))
        if gone.rowcount == 0:
            raise _unknown(interaction_id)

    async def _rarest_first(self, sought: Sought) -> Sought:
        """The same with its labels in another order: the first one leads the search."""
        if len(sought.labels) < 2:
            return sought
        counts = [
            select(func.count())
            .select_from(
                select(InteractionLabelRow.number)
                .where(*_has(InteractionLabelRow, sought, label))
                .limit(_COUNTED)
                .subquery()
            )
            .scalar_subquery()
            for label in sought.labels
        ]
        async with self._database.reading() as connection:
            counted = (await connection.execute(select(*counts))).one()
        ranked = sorted(zip(counted, sought.labels.items(), strict=True))
        return replace(sought, labels=dict(label for _, label in ranked))

    async def _find(self, account_id: str, interaction_id: str, param: str = "completion_id") -> Any:
        query = (
            select(InteractionRow.__table__)
            .where(_named(account_id, interaction_id))
            .order_by(InteractionRow.number.desc())  # two processes may have stored one id at the same time
            .limit(1)
        )
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            raise _unknown(interaction_id, param)
        return row


def _unknown(interaction_id: str, param: str = "completion_id") -> NotFound:
    return NotFound(
        f"No chat completion {interaction_id!r} is stored; one is by `store: true` in its request.",
        param=param,
    )


def _named(account_id: str, interaction_id: str) -> ColumnElement[bool]:
    return and_(InteractionRow.account_id == account_id, InteractionRow.id == storable(interaction_id))


def _any_of(interactions: Sequence[Interaction]) -> ColumnElement[bool]:
    by_account: dict[str, list[str]] = {}
    for each in interactions:
        by_account.setdefault(each.account_id, []).append(storable(each.id)[:MAX_ID])
    return or_(
        *(
            and_(InteractionRow.account_id == account_id, InteractionRow.id.in_(ids))
            for account_id, ids in by_account.items()
        )
    )


async def _label(connection: AsyncConnection, labelled: Iterable[tuple[int, str, Mapping[str, str]]]) -> None:
    """Each by its number and account."""
    rows = [
        {"number": number, "account_id": account_id, "key": storable(key), "value": storable(value)}
        for number, account_id, labels in labelled
        for key, value in _fit(labels).items()
    ]
    if rows:
        await connection.execute(insert(InteractionLabelRow), rows)


def _selection(sought: Sought) -> tuple[Select[Any], Any]:
    """The query without its order, and the column of numbers to order by.

    By one label it is led by the labels' index, in which an account's interactions of that label stand in
    their order; the others are looked up for each.
    """
    query = select(InteractionRow.__table__)
    key: Any = InteractionRow.number
    for label in sought.labels:
        row = aliased(InteractionLabelRow)
        has = _has(row, sought, label)
        same = row.number == InteractionRow.number
        if key is InteractionRow.number:
            query, key = query.join(row, same).where(*has), row.number
        else:
            query = query.where(exists().where(same, *has))
    return query.where(*_conditions(sought)), key


def _has(row: Any, sought: Sought, label: str) -> Sequence[ColumnElement[bool]]:
    """That `row` is that label, with the value sought."""
    has = [row.key == storable(label), row.value == storable(sought.labels[label])]
    return has if sought.account_id is None else [*has, row.account_id == sought.account_id]


def _conditions(sought: Sought) -> Iterable[ColumnElement[bool]]:
    if sought.account_id is not None:
        yield InteractionRow.account_id == sought.account_id
    if sought.model is not None:
        yield InteractionRow.model == storable(sought.model)
    if sought.since is not None:
        yield InteractionRow.created_at >= sought.since


def _fit(labels: Mapping[str, str]) -> dict[str, str]:
    """As their columns hold them: a value may have grown where it was redacted."""
    return {key[:MAX_LABEL_KEY]: value[:MAX_LABEL_VALUE] for key, value in labels.items()}


def _json(value: Any) -> str:
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
        "messages": _json(interaction.messages),
        "parameters": _json(interaction.parameters),
        "answer": _json(interaction.answer),
        "labels": _json(_fit(interaction.labels)),
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
    await _label(
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
