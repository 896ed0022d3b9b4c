"""The interaction log: chat completions with what was asked, kept in the database for a while."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, delete, exists, func, or_, select, update
from sqlalchemy.orm import aliased

from server.database import Database
from server.errors import NotFound
from server.interaction_rows import (
    MAX_ID,
    MAX_LABEL_KEY,
    MAX_LABEL_VALUE,
    MAX_LABELS,
    Interaction,
    InteractionLabelRow,
    InteractionRow,
    add_labels,
    add_rows,
    as_json,
    fitting,
    interaction_of,
    stored_rows,
)
from server.observed import storable
from server.outcomes import OutcomeRow
from server.store import known_accounts

__all__ = [
    "MAX_LABELS",
    "MAX_LABEL_KEY",
    "MAX_LABEL_VALUE",
    "Interaction",
    "InteractionPage",
    "InteractionRow",
    "Interactions",
    "Sought",
]

_COUNTED = 1000  # of a label's interactions, to tell which label is rare


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
            change = update(InteractionRow).where(this).values(labels=as_json(fitting(labels)))
            if (await connection.execute(change)).rowcount == 0:
                raise _unknown(interaction_id)
            await connection.execute(delete(InteractionLabelRow).where(InteractionLabelRow.number == number))
            await add_labels(connection, [(number, account_id, labels)])
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
