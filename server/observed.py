"""The recent calls of every account, kept in the database for a while."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    ColumnElement,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    case,
    delete,
    func,
    insert,
    literal_column,
    select,
)
from sqlalchemy.orm import Mapped, mapped_column

from server.database import Database
from server.errors import NotFound
from server.store import Moment, Table, known_accounts

MAX_ID, MAX_MODEL, MAX_ERROR = 128, 500, 2000  # characters


class ObservedRequestRow(Table):
    """Numbered by the database, since clients choose ids and may choose one twice."""

    __tablename__ = "observed_requests"
    __table_args__ = (Index(None, "account_id", "number"), Index(None, "account_id", "id"))

    number: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    id: Mapped[str] = mapped_column(String(MAX_ID))
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"))
    created_at: Mapped[datetime] = mapped_column(Moment, index=True)
    route: Mapped[str] = mapped_column(String(200))
    status: Mapped[int]
    model: Mapped[str | None] = mapped_column(String(MAX_MODEL))
    prompt: Mapped[str | None] = mapped_column(Text)
    output: Mapped[str | None] = mapped_column(Text)
    latency_ms: Mapped[float] = mapped_column(Float)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    completion_tokens: Mapped[int] = mapped_column(BigInteger)
    stream: Mapped[bool] = mapped_column(Boolean)
    steering: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    behaviors: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))
    policies: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))
    error: Mapped[str | None] = mapped_column(Text)
    # SQLite ignores the case of ASCII alone, so Python folds what is searched.
    searched: Mapped[str] = mapped_column(Text)


@dataclass(frozen=True, slots=True)
class ObservedRequest:
    """One call. `prompt` and `output` are the beginnings of texts; `steering` and `behaviors` are what the
    answer said of them, `policies` what the first runs of policies within it came to; a `status` of 499 is a
    client that left before the end."""

    id: str
    account_id: str
    created_at: datetime
    route: str
    status: int
    model: str | None
    prompt: str | None
    output: str | None
    latency_ms: float
    prompt_tokens: int
    completion_tokens: int
    stream: bool
    steering: Mapping[str, Any] | None
    behaviors: Sequence[Mapping[str, Any]] | None
    policies: Sequence[Mapping[str, Any]] | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which calls to list; `search` is looked for in prompts, routes and models, whatever its case."""

    search: str = ""
    watched: bool = False  # only calls with evidence of behaviours
    status: int | None = None
    route: str | None = None


@dataclass(frozen=True, slots=True)
class ObservedPage:
    """`total` counts what is wanted beyond the page too."""

    requests: Sequence[ObservedRequest]
    total: int


@dataclass(frozen=True, slots=True)
class Day:
    """What an account's kept calls of one day (UTC) came to."""

    day: date
    requests: int
    failed: int
    prompt_tokens: int
    completion_tokens: int


class ObservedRequests:
    """Every method is one transaction and raises Unavailable when the database does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def keep(self, requests: Sequence[ObservedRequest], *, most: int, since: datetime) -> None:
        """Add `requests`, oldest first, except those of accounts that are gone.

        Of all accounts together, the latest `most` since then are left.
        """
        oldest = (
            select(ObservedRequestRow.number)
            .order_by(ObservedRequestRow.number.desc())
            .limit(1)
            .offset(most)
            .scalar_subquery()
        )
        async with self._database.writing() as connection:
            known = await known_accounts(connection, {each.account_id for each in requests})
            # An account may be deleted while it calls.
            kept = [_row(each) for each in requests if each.account_id in known]
            if kept:
                await connection.execute(insert(ObservedRequestRow), kept)
            await connection.execute(delete(ObservedRequestRow).where(ObservedRequestRow.number <= oldest))
            await connection.execute(delete(ObservedRequestRow).where(ObservedRequestRow.created_at < since))

    async def list(self, account_id: str, wanted: Wanted, *, limit: int, offset: int = 0) -> ObservedPage:
        """Newest first."""
        where = [ObservedRequestRow.account_id == account_id, *_conditions(wanted)]
        query = (
            select(ObservedRequestRow.__table__)
            .where(*where)
            .order_by(ObservedRequestRow.number.desc())
            .limit(limit)
            .offset(offset)
        )
        async with self._database.reading() as connection:
            count = await connection.execute(
                select(func.count()).select_from(ObservedRequestRow).where(*where)
            )
            total = count.scalar_one()
            rows = (await connection.execute(query)).all()
        return ObservedPage([_request(row) for row in rows], total)

    async def days(self, account_id: str) -> Sequence[Day]:
        """Each day that has calls, oldest first."""
        row = ObservedRequestRow
        # SQLite keeps no zone, and has no function for one.
        utc = func.timezone(literal_column("'UTC'"), row.created_at)
        day = func.date(row.created_at if self._database.is_sqlite else utc)
        query = (
            select(
                day.label("day"),
                func.count().label("requests"),
                func.sum(case((row.status >= 400, 1), else_=0)).label("failed"),
                func.sum(row.prompt_tokens).label("prompt_tokens"),
                func.sum(row.completion_tokens).label("completion_tokens"),
            )
            .where(row.account_id == account_id)
            .group_by(day)
            .order_by(day)
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return [
            Day(
                day=date.fromisoformat(str(found.day)),
                requests=int(found.requests),
                failed=int(found.failed),
                prompt_tokens=int(found.prompt_tokens),
                completion_tokens=int(found.completion_tokens),
            )
            for found in rows
        ]

    async def get(self, account_id: str, request_id: str) -> ObservedRequest:
        """The latest of that id. Raises NotFound."""
        query = (
            select(ObservedRequestRow.__table__)
            .where(ObservedRequestRow.account_id == account_id, ObservedRequestRow.id == storable(request_id))
            .order_by(ObservedRequestRow.number.desc())
            .limit(1)
        )
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            raise NotFound(
                f"No request {request_id!r} is kept; an answer has its id in the header x-request-id.",
                param="request_id",
            )
        return _request(row)


def storable(text: str) -> str:
    """`text` without what PostgreSQL cannot hold."""
    return text.replace("\0", "\ufffd").encode(errors="replace").decode()


def _conditions(wanted: Wanted) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.search:
        needle = storable(wanted.search).casefold()
        conditions.append(ObservedRequestRow.searched.contains(needle, autoescape=True))
    if wanted.watched:
        conditions.append(ObservedRequestRow.behaviors.is_not(None))
    if wanted.status is not None:
        conditions.append(ObservedRequestRow.status == wanted.status)
    if wanted.route is not None:
        conditions.append(ObservedRequestRow.route == storable(wanted.route))
    return conditions


def _row(request: ObservedRequest) -> dict[str, Any]:
    said = (request.prompt, request.route, request.model)
    return {**asdict(request), "searched": "\n".join(filter(None, said)).casefold()}


def _request(row: Any) -> ObservedRequest:
    return ObservedRequest(**{name: getattr(row, name) for name in ObservedRequest.__dataclass_fields__})
