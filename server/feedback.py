"""What people thought of stored chat completions: scores by metric, with their reasons."""

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    and_,
    delete,
    insert,
    select,
)
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapped, mapped_column

from server.completion_rows import MAX_USER
from server.database import Database
from server.errors import NotFound
from server.interaction_rows import InteractionRow, Key, Place, locate
from server.observed import storable
from server.project_metrics import MAX_METRIC, Metric, ensure_metric, find_metric
from server.store import Moment, Table


class FeedbackRow(Table):
    """A score of one choice, by the key of a metric."""

    __tablename__ = "feedback"
    __table_args__ = (Index(None, "account_id", "metric"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    number: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"),
        ForeignKey("interactions.number", ondelete="CASCADE"),
        index=True,
    )
    account_id: Mapped[str] = mapped_column(String(36))
    choice: Mapped[int] = mapped_column(Integer)
    metric: Mapped[str] = mapped_column(String(MAX_METRIC))
    value: Mapped[float] = mapped_column(Float)
    reason: Mapped[str | None] = mapped_column(Text)
    details: Mapped[str | None] = mapped_column(Text)
    user_id: Mapped[str | None] = mapped_column(String(MAX_USER))
    created_at: Mapped[datetime] = mapped_column(Moment)


@dataclass(frozen=True, slots=True)
class Feedback:
    """One score; true and false are 1 and 0. `details` is any JSON."""

    id: str
    metric: str
    value: float
    reason: str | None
    details: Any
    created_at: datetime
    choice: int = 0
    user_id: str | None = None  # who gave it, as the client calls them


class FeedbackStore:
    """Every method is one transaction and raises Unavailable when the database does not answer.

    Feedback goes with its interaction; `scored` hears of what comes.
    """

    def __init__(self, database: Database, scored: Callable[[], None] = lambda: None) -> None:
        self._database, self._scored = database, scored

    async def add(
        self,
        account_id: str,
        interaction_id: str,
        metric: str,
        value: float,
        *,
        reason: str | None,
        details: Any,
    ) -> Feedback:
        """Of its first choice; an unknown metric becomes a scalar of the account.

        Raises NotFound where the account has no such interaction, InvalidRequest where `value` is none of the
        metric's.
        """
        given = Feedback(str(uuid.uuid4()), metric, value, reason, details, datetime.now(UTC))
        async with self._database.writing() as connection:
            # Locked, or it could go before its feedback comes.
            query = _number(account_id, interaction_id).with_for_update(read=True)
            number = (await connection.execute(query)).scalar()
            if number is None:
                raise _unknown(interaction_id)
            await ensure_metric(connection, account_id, metric)
            known = await find_metric(connection, account_id, metric)
            if known is not None:
                known.value(value)
            await add_feedback(connection, account_id, Place(number, 0), [given])
        self._scored()
        return given

    async def score(
        self,
        account_id: str,
        completion_id: str,
        metric: Metric,
        value: object,
        *,
        reason: str | None = None,
        details: Any = None,
        user_id: str | None = None,
        created_at: datetime | None = None,
    ) -> Feedback:
        """Of the choice whose completion id that is. Raises NotFound where the project has stored none such,
        InvalidRequest where `value` is none of the metric's."""
        given = new_feedback(
            metric, value, reason=reason, details=details, user_id=user_id, created_at=created_at
        )
        async with self._database.writing() as connection:
            place = await locate(connection, account_id, completion_id)
            await add_feedback(connection, account_id, place, [given])
        self._scored()
        return replace(given, choice=place.choice)

    async def list(self, account_id: str, interaction_id: str) -> Sequence[Feedback]:
        """Oldest first. Raises NotFound where the account has no such interaction."""
        number = _number(account_id, interaction_id).scalar_subquery()
        query = (
            select(FeedbackRow.__table__)
            .where(FeedbackRow.number == number)
            .order_by(FeedbackRow.created_at, FeedbackRow.id)
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
            known = rows or (await connection.execute(_number(account_id, interaction_id))).first()
        if not known:
            raise _unknown(interaction_id)
        return [_feedback(row) for row in rows]

    async def delete(self, account_id: str, interaction_id: str, feedback_id: str) -> None:
        """Raises NotFound."""
        number = _number(account_id, interaction_id).scalar_subquery()
        which = and_(FeedbackRow.id == storable(feedback_id), FeedbackRow.number == number)
        async with self._database.writing() as connection:
            gone = await connection.execute(delete(FeedbackRow).where(which))
        if gone.rowcount == 0:
            raise NotFound(f"{interaction_id!r} has no feedback {feedback_id!r}.", param="feedback_id")

    async def by_interaction(self, account_id: str | None) -> Mapping[Key, Sequence[Feedback]]:
        """All of it, oldest first; `account_id` None: of all accounts."""
        query = (
            select(
                FeedbackRow.__table__,
                InteractionRow.account_id.label("owner"),
                InteractionRow.id.label("interaction"),
            )
            .join(InteractionRow, InteractionRow.number == FeedbackRow.number)
            .order_by(FeedbackRow.created_at, FeedbackRow.id)
        )
        if account_id is not None:
            query = query.where(InteractionRow.account_id == account_id)
        found: dict[Key, list[Feedback]] = {}
        async with self._database.reading() as connection:
            for row in (await connection.execute(query)).all():
                found.setdefault((row.owner, row.interaction), []).append(_feedback(row))
        return found


def new_feedback(
    metric: Metric,
    value: object,
    *,
    param: str = "value",
    reason: str | None = None,
    details: Any = None,
    user_id: str | None = None,
    created_at: datetime | None = None,
) -> Feedback:
    """Not kept yet. Raises InvalidRequest where `value`, the field `param`, is none of the metric's."""
    return Feedback(
        id=str(uuid.uuid4()),
        metric=metric.key,
        value=metric.value(value, param),
        reason=reason,
        details=details,
        created_at=created_at or datetime.now(UTC),
        user_id=user_id,
    )


async def add_feedback(
    connection: AsyncConnection, account_id: str, place: Place, given: Sequence[Feedback]
) -> None:
    """To a choice that is locked."""
    rows = [
        {
            "id": each.id,
            "number": place.number,
            "choice": place.choice,
            "account_id": account_id,
            "metric": storable(each.metric),
            "value": each.value,
            "reason": None if each.reason is None else storable(each.reason),
            "details": None
            if each.details is None
            else storable(json.dumps(each.details, ensure_ascii=False)),
            "user_id": None if each.user_id is None else storable(each.user_id)[:MAX_USER],
            "created_at": each.created_at,
        }
        for each in given
    ]
    if rows:
        await connection.execute(insert(FeedbackRow), rows)


def _number(account_id: str, interaction_id: str) -> Any:
    this: ColumnElement[bool] = and_(
        InteractionRow.account_id == account_id, InteractionRow.id == storable(interaction_id)
    )
    return select(InteractionRow.number).where(this).order_by(InteractionRow.number.desc()).limit(1)


def _unknown(interaction_id: str) -> NotFound:
    return NotFound(f"No chat completion {interaction_id!r} is stored.", param="completion_id")


def _feedback(row: Any) -> Feedback:
    values = {name: getattr(row, name) for name in Feedback.__dataclass_fields__}
    return Feedback(**values | {"details": None if row.details is None else json.loads(row.details)})
