"""Which of two completions somebody preferred, by a metric of their project."""

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from sqlalchemy import ForeignKey, Index, Integer, String, and_, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapped, aliased, mapped_column

from server.completion_ids import completion_id
from server.completion_rows import MAX_USER, NUMBER, CompletionRow
from server.database import Database
from server.errors import InvalidRequest
from server.interaction_rows import (
    Interaction,
    InteractionRow,
    Key,
    Place,
    StoredRows,
    add_rows,
    locate,
    stored_rows,
)
from server.observed import storable
from server.project_metrics import MAX_METRIC
from server.store import Moment, Table, require_account


class Tie(StrEnum):
    """Both were good, or both were bad."""

    GOOD = "good"
    BAD = "bad"


class ComparisonRow(Table):
    """`metric` is a key; each side is a choice of an interaction."""

    __tablename__ = "comparisons"
    __table_args__ = (Index(None, "account_id", "metric"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    account_id: Mapped[str] = mapped_column(String(36))
    metric: Mapped[str] = mapped_column(String(MAX_METRIC))
    preferred_number: Mapped[int] = mapped_column(
        NUMBER, ForeignKey("interactions.number", ondelete="CASCADE"), index=True
    )
    preferred_choice: Mapped[int] = mapped_column(Integer)
    other_number: Mapped[int] = mapped_column(
        NUMBER, ForeignKey("interactions.number", ondelete="CASCADE"), index=True
    )
    other_choice: Mapped[int] = mapped_column(Integer)
    tied: Mapped[str | None] = mapped_column(String(4))
    user_id: Mapped[str | None] = mapped_column(String(MAX_USER))
    created_at: Mapped[datetime] = mapped_column(Moment)


@dataclass(frozen=True, slots=True)
class Comparison:
    """`preferred` and `other` are completions' ids; of two that tied neither is preferred."""

    id: str
    account_id: str
    metric: str
    preferred: str
    other: str
    tied: Tie | None
    user_id: str | None
    created_at: datetime


Compared = str | Interaction


class Comparisons:
    """Every change is one transaction. Raises Unavailable when the database does not answer.

    `scored` hears of scores that come.
    """

    def __init__(self, database: Database, scored: Callable[[], None] = lambda: None) -> None:
        self._database, self._scored = database, scored

    async def add(
        self,
        account_id: str,
        metric: str,
        preferred: Compared,
        other: Compared,
        *,
        tied: Tie | None = None,
        user_id: str | None = None,
    ) -> Comparison:
        """`metric` is a key that there is. Each side is the id of a stored completion, or an interaction to
        be stored with the comparison, whose first choice is meant.

        Raises NotFound for one that the project has not stored, InvalidRequest for one beside itself.
        """
        if preferred == other and isinstance(other, str):
            raise InvalidRequest(
                "a completion cannot be compared with itself: name two", param="other_completion"
            )
        given = Comparison(
            id=str(uuid.uuid4()),
            account_id=account_id,
            metric=metric,
            preferred=_id(preferred),
            other=_id(other),
            tied=tied,
            user_id=user_id,
            created_at=datetime.now(UTC),
        )
        sides = await asyncio.to_thread(lambda: [_rows(each) for each in (preferred, other)])
        async with self._database.writing() as connection:
            await require_account(connection, account_id)
            first = await _place(connection, account_id, sides[0], "preferred_completion")
            second = await _place(connection, account_id, sides[1], "other_completion")
            await connection.execute(
                insert(ComparisonRow).values(
                    id=given.id,
                    account_id=account_id,
                    metric=storable(metric),
                    preferred_number=first.number,
                    preferred_choice=first.choice,
                    other_number=second.number,
                    other_choice=second.choice,
                    tied=tied,
                    user_id=None if user_id is None else storable(user_id)[:MAX_USER],
                    created_at=given.created_at,
                )
            )
        self._scored()
        return given

    async def by_interaction(self, account_id: str | None) -> Mapping[Key, Sequence[Comparison]]:
        """All of them by both of their sides, oldest first; `account_id` None: of all accounts."""
        row, sides = ComparisonRow, (aliased(CompletionRow), aliased(CompletionRow))
        first, second = sides
        wholes = (aliased(InteractionRow), aliased(InteractionRow))
        query = (
            select(row.__table__, first.id, second.id, *(each.id for each in wholes))
            .join(first, and_(first.number == row.preferred_number, first.choice == row.preferred_choice))
            .join(second, and_(second.number == row.other_number, second.choice == row.other_choice))
            .join(wholes[0], wholes[0].number == row.preferred_number)
            .join(wholes[1], wholes[1].number == row.other_number)
            .order_by(row.created_at, row.id)
        )
        if account_id is not None:
            query = query.where(row.account_id == account_id)
        found: dict[Key, list[Comparison]] = {}
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        for each in rows:
            preferred, other, *names = each[-4:]
            tied = None if each.tied is None else Tie(each.tied)
            made = Comparison(
                each[0], each.account_id, each.metric, preferred, other, tied, each.user_id, each.created_at
            )
            for name in dict.fromkeys(names):
                found.setdefault((each.account_id, name), []).append(made)
        return found


def _id(side: Compared) -> str:
    return side if isinstance(side, str) else completion_id(side.account_id, side.id, 0)


def _rows(side: Compared) -> str | StoredRows:
    return side if isinstance(side, str) else stored_rows(side)


async def _place(connection: AsyncConnection, account_id: str, side: str | StoredRows, param: str) -> Place:
    if isinstance(side, str):
        return await locate(connection, account_id, side, param)
    (number,) = await add_rows(connection, [side])
    return Place(number, 0)
