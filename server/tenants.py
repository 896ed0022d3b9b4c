"""Whose requests and tokens the metrics count: at most fifty tenants by name, and all others together.

A tenant is a project, or the account whose home it is. /metrics asks for no key, and so tells nothing of
anyone: only those that the operator lists have their own names there, the others a digest of their ids.
"""

import asyncio
import hashlib
import logging
from collections import Counter as Tally
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import prometheus_client
from sqlalchemy import or_, select
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.database import Database
from server.errors import Unavailable
from server.metrics import TENANT_REQUESTS, TENANT_TOKENS
from server.observation import current_observation
from server.projects import ProjectRow
from server.settings import MOST_TENANTS
from server.store import AccountRow

OTHER: Final = "other"
_WAITING = 1000  # accounts whose names are not known yet
_SECONDS = 2.0

logger = logging.getLogger(__name__)
_Sample = tuple[prometheus_client.Counter, str]


class Tenants:
    """`named` are ids or keys of projects; where there are none, those made first are told apart, so that all
    processes tell the same. A name once given stays while the process lives.

    What an account does before its name is known is counted when it is, `_SECONDS` later at most.
    """

    def __init__(self, database: Database, named: Sequence[str] = ()) -> None:
        self._database, self._named = database, tuple(dict.fromkeys(named))
        self._most = len(self._named) or MOST_TENANTS
        self._names: dict[str, str] = {}
        self._waiting: dict[str, Tally[_Sample]] = {}

    def requested(self, account_id: str, outcome: str) -> None:
        self._add(account_id, TENANT_REQUESTS, outcome, 1)

    def spent(self, account_id: str, prompt_tokens: int, generated_tokens: int) -> None:
        self._add(account_id, TENANT_TOKENS, "prompt", prompt_tokens)
        self._add(account_id, TENANT_TOKENS, "generated", generated_tokens)

    async def refresh(self) -> None:
        """Ask for the names that are missing, and count what waits for them. Raises Unavailable."""
        waiting, self._waiting = self._waiting, {}
        try:
            if len(self._names) < self._most:
                await self._read()
        except BaseException:
            for account_id, tally in waiting.items():
                self._waiting.setdefault(account_id, Tally()).update(tally)
            raise
        for account_id, tally in waiting.items():
            name = self._names.get(account_id, OTHER)
            for (counter, label), amount in tally.items():
                counter.labels(name, label).inc(amount)

    async def run(self, interval: float = _SECONDS) -> None:
        """Refresh while there is something to name, until cancelled."""
        while True:
            await asyncio.sleep(interval)
            if self._waiting:
                try:
                    await self.refresh()
                except Unavailable as error:
                    logger.warning("Tenants could not be named, kept: %s", error)

    def _add(self, account_id: str, counter: prometheus_client.Counter, label: str, amount: int) -> None:
        name = self._names.get(account_id)
        if name is None and (len(self._names) >= self._most or len(self._waiting) >= _WAITING):
            name = OTHER
        if name is not None:
            counter.labels(name, label).inc(amount)
        else:
            self._waiting.setdefault(account_id, Tally())[counter, label] += amount

    async def _read(self) -> None:
        query = (
            select(AccountRow.id, ProjectRow.key)
            .outerjoin(ProjectRow, ProjectRow.id == AccountRow.id)
            .order_by(AccountRow.created_at, AccountRow.id)
            .limit(self._most)
        )
        if self._named:
            query = query.where(or_(AccountRow.id.in_(self._named), ProjectRow.key.in_(self._named)))
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        for row in rows:
            if len(self._names) < self._most:
                self._names.setdefault(row.id, self._name(row))

    def _name(self, row: Any) -> str:
        """A project may be called as what has no name is."""
        for name in (row.key, row.id):
            if name in self._named and name != OTHER:
                return str(name)
        return digest(row.id)


def digest(account_id: str) -> str:
    """The same in every process, from which nobody learns the id."""
    return hashlib.sha256(account_id.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Tallied:
    """ASGI middleware, within `Observing`: counts each authenticated request for the project it ended in."""

    app: ASGIApp
    tenants: Tenants

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope.get("state", {}).get("principal") is None:
            await self.app(scope, receive, send)
            return
        status: int | None = None

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        failed = True
        try:
            await self.app(scope, receive, noting)
            failed = False
        finally:
            account_id = scope["state"]["principal"].account_id
            self.tenants.requested(account_id, _outcome(status, failed=failed))


def _outcome(status: int | None, *, failed: bool) -> str:
    """One of TENANT_OUTCOMES."""
    seen = current_observation.get()
    if seen is not None and seen.left:
        return "left"
    if failed or status is None or status >= 500 or (status < 400 and seen is not None and seen.error):
        return "failed"
    if status == 429:
        return "limited"
    return "refused" if status >= 400 else "ok"
