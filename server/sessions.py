"""Sessions of accounts that logged in: opened, refreshed, ended, and found by their access tokens."""

import secrets
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import Executable, ForeignKey, String, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapped, mapped_column

from server.auth import Principal
from server.database import Database
from server.errors import Unauthenticated
from server.recent import Recent
from server.store import LoginRow, Moment, Table, require_account
from server.tokens import Refresh, Tokens

MOST: Final = 100  # of an account; the oldest give way
_SECRET: Final = 1  # the id of the only row


class SessionRow(Table):
    """`generation` is that of the refresh token in force."""

    __tablename__ = "sessions"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    generation: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(Moment)
    refreshed_at: Mapped[datetime] = mapped_column(Moment)
    expires_at: Mapped[datetime] = mapped_column(Moment, index=True)


class SigningSecretRow(Table):
    """What signs tokens, the same for all API servers of a database."""

    __tablename__ = "signing_secrets"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    secret: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(Moment)


@dataclass(frozen=True, slots=True)
class Lives:
    """How long things are good for. A session that is not refreshed for `session` ends."""

    access: timedelta = timedelta(minutes=15)
    session: timedelta = timedelta(days=30)
    # A client's two processes may refresh at once, and an answer may get lost on its way.
    repeat: timedelta = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Session:
    """`expires_in` are the seconds of the access token."""

    account_id: str
    access_token: str
    refresh_token: str
    expires_in: int


class Sessions:
    """Every method raises Unavailable when the database does not answer.

    A session that ends lives `seconds` longer in the other processes, which remember it for so long.
    """

    def __init__(self, database: Database, seconds: float, lives: Lives | None = None) -> None:
        self._database, self._lives = database, lives or Lives()
        self._recent: Recent[str, Principal] = Recent(seconds)
        self._tokens: Tokens | None = None

    async def open(self, account_id: str) -> Session:
        """Raises NotFound for an unknown account."""
        tokens, now = await self._signing(), datetime.now(UTC)
        session_id = str(uuid.uuid4())
        crowd = (
            select(SessionRow.id)
            .where(SessionRow.account_id == account_id)
            .order_by(SessionRow.created_at.desc(), SessionRow.id)
            .offset(MOST - 1)
        )
        async with self._database.writing(alone=True) as connection:
            await require_account(connection, account_id)
            await connection.execute(delete(SessionRow).where(SessionRow.expires_at < now))
            await connection.execute(delete(SessionRow).where(SessionRow.id.in_(crowd)))
            await connection.execute(
                insert(SessionRow).values(
                    id=session_id,
                    account_id=account_id,
                    generation=0,
                    created_at=now,
                    refreshed_at=now,
                    expires_at=now + self._lives.session,
                )
            )
        return self._session(tokens, account_id, Refresh(session_id, 0))

    async def refresh(self, refresh_token: str) -> Session:
        """The session with new tokens, each refresh token once: a second use of one ends the session, since
        one of the two users is a thief. Within seconds it repeats the first answer instead.

        Raises Unauthenticated.
        """
        tokens = await self._signing()
        asked, now = tokens.read_refresh(refresh_token), datetime.now(UTC)
        reused = False
        async with self._database.writing(alone=True) as connection:
            row = (await connection.execute(_in_force(asked.session_id, now))).first()
            if row is not None and row.generation == asked.generation:
                await self._advance(connection, asked, now)
            elif row is not None and not self._repeats(asked.generation, row.generation, row.refreshed_at):
                reused = True
                await connection.execute(delete(SessionRow).where(SessionRow.id == asked.session_id))
        if row is None:
            raise _ended()
        if reused:
            self.forget()
            raise Unauthenticated(
                "This refresh token was used before, so its session was ended: log in again.",
                code="refresh_token_reused",
            )
        return self._session(tokens, row.account_id, Refresh(asked.session_id, asked.generation + 1))

    async def principal(self, access_token: str) -> Principal:
        """Who has the session. Raises Unauthenticated."""
        session_id = (await self._signing()).read_access(access_token)
        found = await self._recent.get(session_id, lambda: self._find(session_id))
        if found is None:
            raise _ended()
        return found

    async def end(self, account_id: str, *, but: str | None = None) -> int:
        """All sessions of an account, except that of the id `but`. Returns how many they were."""
        gone = delete(SessionRow).where(SessionRow.account_id == account_id)
        if but is not None:
            gone = gone.where(SessionRow.id != but)
        async with self._database.writing() as connection:
            count = (await connection.execute(gone)).rowcount
        self.forget()
        return count

    def forget(self) -> None:
        """Ask the database again: after what is known of a session's account has changed."""
        self._recent.forget()

    async def _advance(self, connection: AsyncConnection, asked: Refresh, now: datetime) -> None:
        await connection.execute(
            update(SessionRow)
            .where(SessionRow.id == asked.session_id)
            .values(generation=asked.generation + 1, refreshed_at=now, expires_at=now + self._lives.session)
        )

    def _repeats(self, asked: int, current: int, refreshed_at: datetime) -> bool:
        return asked == current - 1 and datetime.now(UTC) - refreshed_at < self._lives.repeat

    async def _find(self, session_id: str) -> Principal | None:
        query = _in_force(session_id, datetime.now(UTC))
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            return None
        return Principal(None, row.account_id, None, row.selected_model, session_id)

    def _session(self, tokens: Tokens, account_id: str, refresh: Refresh) -> Session:
        return Session(
            account_id=account_id,
            access_token=tokens.access(refresh.session_id, account_id, self._lives.access),
            refresh_token=tokens.refresh(refresh, account_id, self._lives.session),
            expires_in=int(self._lives.access.total_seconds()),
        )

    async def _signing(self) -> Tokens:
        if self._tokens is None:
            self._tokens = Tokens(bytes.fromhex(await self._secret()))
        return self._tokens

    async def _secret(self) -> str:
        """Made by whoever needs it first."""
        query = select(SigningSecretRow.secret).where(SigningSecretRow.id == _SECRET)
        async with self._database.writing(alone=True) as connection:
            known = (await connection.execute(query)).scalar_one_or_none()
            if known is not None:
                return known
            fresh = secrets.token_hex(32)
            await connection.execute(
                insert(SigningSecretRow).values(id=_SECRET, secret=fresh, created_at=datetime.now(UTC))
            )
        return fresh


def _in_force(session_id: str, now: datetime) -> Executable:
    return (
        select(SessionRow.account_id, SessionRow.generation, SessionRow.refreshed_at, LoginRow.selected_model)
        .outerjoin(LoginRow, LoginRow.account_id == SessionRow.account_id)
        .where(SessionRow.id == session_id, SessionRow.expires_at > now)
    )


def _ended() -> Unauthenticated:
    return Unauthenticated("This session has ended: log in again.", code="session_ended")
