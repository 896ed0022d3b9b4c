"""Steering jobs: a queue in the database that several API processes work off together."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    ForeignKey,
    Index,
    String,
    Text,
    and_,
    delete,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Mapped, mapped_column

from server.database import Database
from server.errors import Conflict, NotFound
from server.store import Moment, Table, require_account

LEASE = timedelta(seconds=30)
KEPT = timedelta(days=30)  # after its end a job can be looked up for so long
MAX_ATTEMPTS = 3  # a job that ends every process it runs in is not given to a fourth


class Status(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETE = "complete"
    ERROR = "error"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self not in (Status.QUEUED, Status.RUNNING)


class JobRow(Table):
    __tablename__ = "steering_jobs"
    __table_args__ = (Index(None, "status", "created_at"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    kind: Mapped[str] = mapped_column(String(40))
    model_fingerprint: Mapped[str | None] = mapped_column(String(64))
    request: Mapped[dict[str, Any]] = mapped_column(JSON)
    status: Mapped[str] = mapped_column(String(20))
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    error: Mapped[str | None] = mapped_column(Text)
    owner: Mapped[str | None] = mapped_column(String(36))
    attempts: Mapped[int] = mapped_column(default=0)
    heartbeat_at: Mapped[datetime | None] = mapped_column(Moment)  # of a queued one: when its turn comes
    created_at: Mapped[datetime] = mapped_column(Moment)
    finished_at: Mapped[datetime | None] = mapped_column(Moment, index=True)


@dataclass(frozen=True, slots=True)
class JobRecord:
    """How a job stands. Its request may be long, so only who claims the job gets it."""

    id: str
    account_id: str
    kind: str
    status: Status
    progress: Mapping[str, Any] | None
    result: Mapping[str, Any] | None
    error: str | None
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """`attempts` counts the processes that began it, this one included; `left` is what `release` left."""

    id: str
    account_id: str
    kind: str
    request: Mapping[str, Any]
    attempts: int
    left: Mapping[str, Any] | None


class Jobs:
    """Every method is one transaction and raises Unavailable when the database does not answer.

    Who has claimed a job keeps it by a heartbeat more often than every `LEASE`; then nobody else runs it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def submit(
        self,
        account_id: str,
        kind: str,
        request: Mapping[str, Any],
        model_fingerprint: str | None = None,
    ) -> str:
        """Returns the id. With a fingerprint only a server of that model claims it. Raises NotFound."""
        job_id = str(uuid.uuid4())
        now = datetime.now(UTC)
        async with self._database.writing(alone=True) as connection:
            await require_account(connection, account_id)
            await connection.execute(delete(JobRow).where(JobRow.finished_at < now - KEPT))
            await connection.execute(
                insert(JobRow).values(
                    id=job_id,
                    account_id=account_id,
                    kind=kind,
                    model_fingerprint=model_fingerprint,
                    request=dict(request),
                    status=Status.QUEUED,
                    created_at=now,
                )
            )
        return job_id

    async def get(self, account_id: str | None, job_id: str) -> JobRecord:
        """Without an account, of any. Raises NotFound."""
        query = select(*_COLUMNS).where(JobRow.id == job_id, *_owned_by(account_id))
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            raise _not_found(job_id)
        return _record(row)

    async def list(
        self,
        account_id: str | None,
        *,
        status: Status | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> Sequence[JobRecord]:
        """Newest first; without an account, those of all."""
        query = select(*_COLUMNS).where(*_owned_by(account_id))
        if status is not None:
            query = query.where(JobRow.status == status)
        query = query.order_by(JobRow.created_at.desc(), JobRow.id).limit(limit).offset(offset)
        async with self._database.reading() as connection:
            return [_record(row) for row in (await connection.execute(query)).all()]

    async def claim(self, owner: str, model_fingerprint: str | None = None) -> ClaimedJob | None:
        """The oldest job that nobody works on, which is the owner's from now on; None if there is none.

        `owner` names a process. Jobs for other models than `model_fingerprint` are left alone.
        """
        now = datetime.now(UTC)
        waiting = _waiting(now, model_fingerprint)
        async with self._database.reading() as connection:
            # Most calls find nothing, and need not stand in line with SQLite's writers to learn it.
            if (await connection.execute(select(JobRow.id).where(waiting).limit(1))).first() is None:
                return None
        async with self._database.writing() as connection:
            await connection.execute(
                update(JobRow)
                .where(JobRow.status == Status.RUNNING, waiting, JobRow.attempts >= MAX_ATTEMPTS)
                .values(
                    status=Status.ERROR,
                    error=f"given up: the server stopped {MAX_ATTEMPTS} times while it worked on this",
                    **_ended(now),
                )
            )
            # PostgreSQL passes over what another process is claiming; SQLite has one writer at a time.
            query = select(JobRow.id, JobRow.status, JobRow.progress).where(waiting)
            query = query.order_by(JobRow.created_at, JobRow.id).limit(1)
            chosen = (await connection.execute(query.with_for_update(skip_locked=True))).first()
            if chosen is None:
                return None
            await connection.execute(
                update(JobRow)
                .where(JobRow.id == chosen.id)
                .values(
                    status=Status.RUNNING,
                    owner=owner,
                    attempts=JobRow.attempts + 1,
                    heartbeat_at=now,
                    progress=None,
                )
            )
            columns = (JobRow.id, JobRow.account_id, JobRow.kind, JobRow.request, JobRow.attempts)
            row = (await connection.execute(select(*columns).where(JobRow.id == chosen.id))).one()
        left = chosen.progress if chosen.status == Status.QUEUED else None
        return ClaimedJob(row.id, row.account_id, row.kind, row.request, row.attempts, left)

    async def heartbeat(self, job_id: str, owner: str, progress: Mapping[str, Any] | None = None) -> bool:
        """False: it is not the owner's any more, was cancelled or taken over, and work on it should stop."""
        values: dict[str, Any] = {"heartbeat_at": datetime.now(UTC)}
        if progress is not None:
            values["progress"] = dict(progress)
        return await self._change(job_id, owner, values)

    async def finish(
        self, job_id: str, owner: str, *, result: Mapping[str, Any] | None = None, error: str | None = None
    ) -> bool:
        """With an error it failed, and the result may say more. Either way its request is forgotten.

        False: it is not the owner's any more, and nothing was recorded.
        """
        return await self._change(
            job_id,
            owner,
            {
                "status": Status.COMPLETE if error is None else Status.ERROR,
                "result": None if result is None else dict(result),
                "error": error,
                **_ended(datetime.now(UTC)),
            },
        )

    async def release(
        self,
        job_id: str,
        owner: str,
        *,
        after: timedelta | None = None,
        progress: Mapping[str, Any] | None = None,
    ) -> bool:
        """Back into the queue, which does not count as an attempt; until `after` has passed nobody claims it.

        `progress` says why, to clients and to whoever claims it next.
        """
        values = {
            "status": Status.QUEUED,
            "owner": None,
            "attempts": JobRow.attempts - 1,
            "progress": None if progress is None else dict(progress),
            "heartbeat_at": None if after is None else datetime.now(UTC) + after,
        }
        return await self._change(job_id, owner, values)

    async def cancel(self, account_id: str | None, job_id: str) -> JobRecord:
        """At once; who works on it learns it at the next heartbeat. Raises NotFound, and Conflict for a job
        that has come to its end otherwise."""
        open_ = (Status.QUEUED, Status.RUNNING)
        change = (
            update(JobRow)
            .where(JobRow.id == job_id, JobRow.status.in_(open_), *_owned_by(account_id))
            .values(status=Status.CANCELLED, **_ended(datetime.now(UTC)))
        )
        async with self._database.writing() as connection:
            await connection.execute(change)
        job = await self.get(account_id, job_id)
        if job.status is not Status.CANCELLED:
            raise Conflict(f"The job {job_id!r} has ended already: {job.status}.")
        return job

    async def _change(self, job_id: str, owner: str, values: Mapping[str, Any]) -> bool:
        mine = (JobRow.id == job_id, JobRow.owner == owner, JobRow.status == Status.RUNNING)
        async with self._database.writing() as connection:
            return (await connection.execute(update(JobRow).where(*mine).values(values))).rowcount > 0


_COLUMNS = [JobRow.__table__.columns[name] for name in JobRecord.__dataclass_fields__]


def _ended(now: datetime) -> dict[str, Any]:
    return {"finished_at": now, "request": {}}  # megabytes that nobody will read again


def _waiting(now: datetime, model_fingerprint: str | None) -> ColumnElement[bool]:
    due = or_(JobRow.heartbeat_at.is_(None), JobRow.heartbeat_at <= now)
    queued = and_(JobRow.status == Status.QUEUED, due)
    abandoned = and_(JobRow.status == Status.RUNNING, JobRow.heartbeat_at < now - LEASE)
    fits = or_(JobRow.model_fingerprint.is_(None), JobRow.model_fingerprint == model_fingerprint)
    return and_(or_(queued, abandoned), fits)


def _owned_by(account_id: str | None) -> list[ColumnElement[bool]]:
    return [] if account_id is None else [JobRow.account_id == account_id]


def _record(row: Any) -> JobRecord:
    fields = dict(row._mapping)  # noqa: SLF001  # SQLAlchemy's public name for it
    return JobRecord(**{**fields, "status": Status(fields["status"])})


def _not_found(job_id: str) -> NotFound:
    return NotFound(f"There is no job {job_id!r}.")
