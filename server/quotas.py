"""What keys have left of their limits, shared by all processes of a database: one statement a request."""

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import JSON, Boolean, Double, String, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from server.database import Database
from server.limits import UNLIMITED, RateLimits, Standing
from server.store import Table

LEASE_SECONDS: Final = 15.0  # requests of a process that says nothing for so long count no more
_KEPT_SECONDS: Final = 86_400.0


class QuotaRow(Table):
    """`subject` is a key's id, or an account's for its sessions. The buckets are as they were `at`, in
    seconds since 1970 by the database's clock. `running`: {process: [requests, until when it has said so]}.
    """

    __tablename__ = "quotas"

    subject: Mapped[str] = mapped_column(String(36), primary_key=True)
    requests: Mapped[float] = mapped_column(Double)
    tokens: Mapped[float] = mapped_column(Double)
    running: Mapped[dict[str, Any]] = mapped_column(JSON().with_variant(JSONB(), "postgresql"))
    at: Mapped[float] = mapped_column(Double)
    admitted: Mapped[bool] = mapped_column(Boolean)


@dataclass(frozen=True, slots=True)
class Ask:
    """`running` are the process's own requests of the subject, `spent` tokens that it did not tell of yet."""

    subject: str
    limits: RateLimits
    running: int
    spent: int


class Quotas:
    """Every method is one statement that commits by itself; it raises Unavailable.

    The row of a subject is the lock: its upsert reads it as the last one left it, whatever process that was.
    So the running requests stand in it too, rather than in rows of their own, which a statement would see as
    they were when it began to wait. What a process says of itself is absolute: nothing adds up wrongly where
    an answer got lost, and one that was killed is forgotten after `LEASE_SECONDS`.
    """

    def __init__(self, database: Database, process: str) -> None:
        self._database, self._process = database, process
        sql = _SQLITE if database.url.get_backend_name() == "sqlite" else _POSTGRESQL
        self._take = {counted: text(_take(sql, counted=counted)) for counted in (True, False)}
        self._tell = {counted: text(_tell(sql, counted=counted)) for counted in (True, False)}
        self._sweep = text(f"DELETE FROM quotas WHERE at < {sql.now} - {_KEPT_SECONDS}")  # noqa: S608  # no client's words

    async def take(self, ask: Ask) -> Standing:
        """Let one more request in if all limits allow it."""
        counted, values = ask.limits.concurrent is not None, self._values(ask)
        if counted:
            values["most_running"] = ask.limits.concurrent
        async with self._database.at_once() as connection:
            row = (await connection.execute(self._take[counted], values)).one()
        return Standing(bool(row.admitted), row.requests, row.tokens)

    async def tell(self, ask: Ask) -> None:
        """Tokens that were used, and requests that still run."""
        counted = ask.limits.concurrent is not None
        async with self._database.at_once() as connection:
            await connection.execute(self._tell[counted], self._values(ask))

    async def sweep(self) -> None:
        """Forget whoever asked for nothing for a day: their buckets are full."""
        async with self._database.at_once() as connection:
            await connection.execute(self._sweep)

    def _values(self, ask: Ask) -> dict[str, Any]:
        limits = ask.limits
        values: dict[str, Any] = {
            "subject": ask.subject,
            "most_requests": float(limits.requests or UNLIMITED),
            "most_tokens": float(limits.tokens or UNLIMITED),
            "spent": float(ask.spent),
        }
        if limits.concurrent is not None:
            values |= {"process": self._process, "mine": ask.running}
        return values


@dataclass(frozen=True, slots=True)
class _Sql:
    """Where the two databases differ. `others` are the leases of other processes that are in force."""

    now: str
    least: str
    greatest: str
    others: str
    count: str
    kept: str
    with_mine: str
    nobody: str


_POSTGRESQL = _Sql(
    # not now(), the time of a transaction, which may be earlier than the row's
    now="CAST(extract(epoch FROM clock_timestamp()) AS double precision)",
    least="least",
    greatest="greatest",
    others="FROM jsonb_each(q.running) AS e"
    " WHERE e.key <> CAST(:process AS text) AND CAST(e.value->>1 AS double precision) > {now}",
    count="coalesce(sum(CAST(e.value->>0 AS integer)), 0)",
    kept="coalesce(jsonb_object_agg(e.key, e.value), CAST('{{}}' AS jsonb))",
    with_mine="{leases} || CASE WHEN {mine} > 0"
    " THEN jsonb_build_object(CAST(:process AS text), jsonb_build_array({mine}, {now} + {lease}))"
    " ELSE CAST('{{}}' AS jsonb) END",
    nobody="CAST('{}' AS jsonb)",
)
_SQLITE = _Sql(
    now="((julianday('now') - 2440587.5) * 86400.0)",
    least="min",
    greatest="max",
    others="FROM json_each(q.running) AS e WHERE e.key <> :process AND json_extract(e.value, '$[1]') > {now}",
    count="coalesce(sum(json_extract(e.value, '$[0]')), 0)",
    kept="json_group_object(e.key, json(e.value))",
    with_mine="CASE WHEN {mine} > 0"
    " THEN json_set({leases}, '$.\"' || :process || '\"', json_array({mine}, {now} + {lease}))"
    " ELSE {leases} END",
    nobody="'{}'",
)


def _bucket(sql: _Sql, column: str) -> str:
    """What a bucket holds by now."""
    most = f"CAST(:most_{column} AS double precision)"
    past = f"{sql.greatest}(0.0, {sql.now} - q.at)"
    return f"{sql.least}({most}, q.{column} + {most} * {past} / 60.0)"


_SPENT = "CAST(:spent AS double precision)"
_MINE = "CAST(:mine AS integer)"


def _running(sql: _Sql, leases: str, mine: str) -> str:
    return sql.with_mine.format(leases=leases, mine=f"({mine})", now=sql.now, lease=LEASE_SECONDS)


def _leases(sql: _Sql) -> str:
    return f"(SELECT {sql.kept.format()} {sql.others.format(now=sql.now)})"


def _take(sql: _Sql, *, counted: bool) -> str:
    requests, tokens = _bucket(sql, "requests"), f"{_bucket(sql, 'tokens')} - {_SPENT}"
    admits, first, running = f"({requests} >= 1 AND {tokens} >= 1)", sql.nobody, "q.running"
    if counted:
        others = f"(SELECT {sql.count} {sql.others.format(now=sql.now)})"
        admits = f"({admits} AND {others} + {_MINE} < CAST(:most_running AS integer))"
        first = _running(sql, sql.nobody, f"{_MINE} + 1")
        running = _running(sql, _leases(sql), f"{_MINE} + CASE WHEN {admits} THEN 1 ELSE 0 END")
    return f"""
        INSERT INTO quotas AS q (subject, requests, tokens, running, at, admitted)
        VALUES (:subject, CAST(:most_requests AS double precision) - 1,
            CAST(:most_tokens AS double precision) - {_SPENT}, {first}, {sql.now}, true)
        ON CONFLICT (subject) DO UPDATE SET admitted = {admits},
            requests = {requests} - CASE WHEN {admits} THEN 1 ELSE 0 END,
            tokens = {tokens}, running = {running}, at = {sql.now}
        RETURNING admitted, requests, tokens"""  # noqa: S608  # no client's words


def _tell(sql: _Sql, *, counted: bool) -> str:
    running = _running(sql, _leases(sql), _MINE) if counted else "q.running"
    return f"""
        UPDATE quotas AS q SET requests = {_bucket(sql, "requests")},
            tokens = {_bucket(sql, "tokens")} - {_SPENT}, running = {running}, at = {sql.now}
        WHERE subject = :subject"""  # noqa: S608  # no client's words
