"""What came of a session: scores of the whole, by a metric of its project."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from sqlalchemy import Float, ForeignKey, Index, String, insert, select
from sqlalchemy.orm import Mapped, mapped_column

from server.completion_rows import MAX_SESSION, MAX_USER, CompletionRow
from server.database import Database
from server.errors import NotFound
from server.observed import storable
from server.project_metrics import MAX_METRIC, Metric
from server.store import Moment, Table, require_account


class OutcomeRow(Table):
    """`metric` is a key."""

    __tablename__ = "outcomes"
    __table_args__ = (Index(None, "account_id", "session_id"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"))
    metric: Mapped[str] = mapped_column(String(MAX_METRIC))
    value: Mapped[float] = mapped_column(Float)
    session_id: Mapped[str] = mapped_column(String(MAX_SESSION))
    user_id: Mapped[str | None] = mapped_column(String(MAX_USER))
    created_at: Mapped[datetime] = mapped_column(Moment, index=True)


@dataclass(frozen=True, slots=True)
class Outcome:
    id: str
    account_id: str
    metric: str
    value: float
    session_id: str
    user_id: str | None
    created_at: datetime


class Outcomes:
    """Every change is one transaction. Raises Unavailable when the database does not answer.

    `scored` hears of scores that come.
    """

    def __init__(self, database: Database, scored: Callable[[], None] = lambda: None) -> None:
        self._database, self._scored = database, scored

    async def add(
        self, account_id: str, metric: Metric, value: object, session_id: str, *, user_id: str | None = None
    ) -> Outcome:
        """Raises InvalidRequest where `value` is none of the metric's, NotFound where nothing of that session
        is stored."""
        given = Outcome(
            id=str(uuid.uuid4()),
            account_id=account_id,
            metric=metric.key,
            value=metric.value(value),
            session_id=storable(session_id),
            user_id=None if user_id is None else storable(user_id)[:MAX_USER],
            created_at=datetime.now(UTC),
        )
        known = select(CompletionRow.number).where(
            CompletionRow.account_id == account_id, CompletionRow.session_id == given.session_id
        )
        async with self._database.writing() as connection:
            await require_account(connection, account_id)
            if (await connection.execute(known.limit(1))).first() is None:
                raise NotFound(
                    f"No completion of a session {session_id!r} is stored: it cannot have an outcome.",
                    param="session_id",
                )
            await connection.execute(insert(OutcomeRow).values(**asdict(given)))
        self._scored()
        return given

    async def list(self, account_id: str, session_id: str) -> Sequence[Outcome]:
        """Of a session, oldest first."""
        query = (
            select(OutcomeRow.__table__)
            .where(OutcomeRow.account_id == account_id, OutcomeRow.session_id == storable(session_id))
            .order_by(OutcomeRow.created_at, OutcomeRow.id)
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return [Outcome(**row._mapping) for row in rows]  # noqa: SLF001  # its public name
