"""What outlives the process: accounts, their logins and API keys, with their usage."""

import hmac
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Integer,
    MetaData,
    Row,
    String,
    TypeDecorator,
    Update,
    bindparam,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute, Mapped, mapped_column

from server.auth import OPERATOR, Principal, is_key, key_digest, key_prefix, new_key
from server.database import Database
from server.errors import NotFound
from server.limits import NO_LIMITS, RateLimits
from server.roles import Role
from server.usage import Usage

DEFAULT_ACCOUNT = OPERATOR
DEFAULT_EMAIL = "owner@localhost"


class Moment(TypeDecorator[datetime]):
    """A time with its zone, UTC on the way out; SQLite keeps no zone of its own."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


class Table(DeclarativeBase):
    # Named, because SQLite can change a constraint only by name (Alembic's batch mode).
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class AccountRow(Table):
    __tablename__ = "accounts"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    email: Mapped[str] = mapped_column(String(320), unique=True)
    created_at: Mapped[datetime] = mapped_column(Moment)


async def known_accounts(connection: AsyncConnection, account_ids: Collection[str]) -> set[str]:
    """Those that there are, and that stay until the end of the transaction."""
    query = select(AccountRow.id).where(AccountRow.id.in_(account_ids))
    rows = await connection.execute(query.with_for_update(read=True, key_share=True))
    return set(rows.scalars())


class LoginRow(Table):
    """How an account logs in, where it may, and what its sessions have used."""

    __tablename__ = "logins"

    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), primary_key=True)
    password_hash: Mapped[str] = mapped_column(String(200))
    selected_model: Mapped[str | None] = mapped_column(String(500))
    last_used: Mapped[datetime | None] = mapped_column(Moment)
    requests: Mapped[int] = mapped_column(BigInteger, default=0)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    completion_tokens: Mapped[int] = mapped_column(BigInteger, default=0)


class ApiKeyRow(Table):
    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    name: Mapped[str | None] = mapped_column(String(200))
    prefix: Mapped[str] = mapped_column(String(8), index=True)
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    selected_model: Mapped[str | None] = mapped_column(String(500))
    role: Mapped[str] = mapped_column(String(16), server_default=Role.OWNER)
    created_at: Mapped[datetime] = mapped_column(Moment)
    last_used: Mapped[datetime | None] = mapped_column(Moment)
    revoked_at: Mapped[datetime | None] = mapped_column(Moment)
    requests_per_minute: Mapped[int | None] = mapped_column(Integer)
    tokens_per_minute: Mapped[int | None] = mapped_column(Integer)
    concurrent_requests: Mapped[int | None] = mapped_column(Integer)
    requests: Mapped[int] = mapped_column(BigInteger, default=0)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    completion_tokens: Mapped[int] = mapped_column(BigInteger, default=0)


_Counting = type[ApiKeyRow] | type[LoginRow]


@dataclass(frozen=True, slots=True)
class Account:
    id: str
    email: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class NewKey:
    """`key` is the only copy of the plain key there ever is."""

    id: str
    key: str


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """`prefix` is the public part of the key; times are UTC."""

    id: str
    account_id: str
    name: str | None
    prefix: str
    selected_model: str | None
    role: Role
    created_at: datetime
    last_used: datetime | None
    revoked_at: datetime | None
    usage: Usage
    rates: RateLimits = NO_LIMITS

    @property
    def masked(self) -> str:
        return f"ax_{self.prefix}…"


class Store:
    """Every method is one transaction and raises Unavailable when the database does not answer."""

    def __init__(self, database_url: str) -> None:
        """Opens no connection yet. Raises ValueError for a database that is not supported."""
        self.database = Database(database_url)

    def migrate(self) -> None:
        """Bring the schema up to date: once, before the launch, outside of any event loop."""
        self.database.migrate()

    async def close(self) -> None:
        await self.database.close()

    async def first_key(self) -> str | None:
        """Make a first key if there never was one, and return it in plain."""
        async with self.database.writing(alone=True) as connection:
            if (await connection.execute(select(ApiKeyRow.id).limit(1))).first() is not None:
                return None
            return (await _insert_key(connection, DEFAULT_ACCOUNT, "first key")).key

    async def create_key(
        self,
        account_id: str | None,
        name: str | None,
        role: Role = Role.OWNER,
        rates: RateLimits = NO_LIMITS,
    ) -> NewKey:
        """Without an account, or project, the key belongs to the default account; `role` is the most that it
        may do. Raises NotFound for an unknown account."""
        async with self.database.writing(alone=True) as connection:
            return await _insert_key(connection, account_id or DEFAULT_ACCOUNT, name, role, rates)

    async def list_keys(self, account_id: str | None) -> list[KeyRecord]:
        """Oldest first, revoked ones included; without an account, the keys of all."""
        query = select(*ApiKeyRow.__table__.columns).order_by(ApiKeyRow.created_at, ApiKeyRow.id)
        if account_id is not None:
            query = query.where(ApiKeyRow.account_id == account_id)
        async with self.database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return [_record(row) for row in rows]

    async def limit_key(self, account_id: str | None, key_id: str, rates: RateLimits) -> KeyRecord:
        """Replace the limits of a key. Raises NotFound unless the account (any, if None) has it in force."""
        change = (
            update(ApiKeyRow)
            .where(ApiKeyRow.id == key_id, ApiKeyRow.revoked_at.is_(None))
            .values(_columns(rates))
            .returning(*ApiKeyRow.__table__.columns)
        )
        if account_id is not None:
            change = change.where(ApiKeyRow.account_id == account_id)
        async with self.database.writing() as connection:
            row = (await connection.execute(change)).first()
        if row is None:
            raise NotFound(f"There is no API key {key_id!r}.")
        return _record(row)

    async def key(self, account_id: str | None, key_id: str) -> KeyRecord:
        """Raises NotFound unless the account (any, if None) has such a key in force."""
        query = select(*ApiKeyRow.__table__.columns).where(
            ApiKeyRow.id == key_id, ApiKeyRow.revoked_at.is_(None)
        )
        if account_id is not None:
            query = query.where(ApiKeyRow.account_id == account_id)
        async with self.database.reading() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            raise NotFound(f"There is no API key {key_id!r}.")
        return _record(row)

    async def revoke_key(self, account_id: str | None, key_id: str) -> None:
        """Raises NotFound unless the account (any, if None) has such a key in force."""
        change = (
            update(ApiKeyRow)
            .where(ApiKeyRow.id == key_id, ApiKeyRow.revoked_at.is_(None))
            .values(revoked_at=datetime.now(UTC))
        )
        if account_id is not None:
            change = change.where(ApiKeyRow.account_id == account_id)
        async with self.database.writing() as connection:
            if (await connection.execute(change)).rowcount == 0:
                raise NotFound(f"There is no API key {key_id!r}.")

    async def find_key(self, key: str) -> Principal | None:
        """None if the key is malformed, unknown or revoked."""
        if not is_key(key):
            return None
        model = func.coalesce(ApiKeyRow.selected_model, LoginRow.selected_model)
        query = (
            select(
                ApiKeyRow.hash,
                ApiKeyRow.role,
                ApiKeyRow.requests_per_minute,
                ApiKeyRow.tokens_per_minute,
                ApiKeyRow.concurrent_requests,
                ApiKeyRow.id,
                ApiKeyRow.account_id,
                ApiKeyRow.name,
                model,
            )
            .outerjoin(LoginRow, LoginRow.account_id == ApiKeyRow.account_id)
            .where(ApiKeyRow.prefix == key_prefix(key), ApiKeyRow.revoked_at.is_(None))
        )
        async with self.database.reading() as connection:
            rows = (await connection.execute(query)).all()
        digest = key_digest(key)
        matching = (row for row in rows if hmac.compare_digest(row.hash, digest))
        row = next(matching, None)
        if row is None:
            return None
        role = Role(row.role)
        return Principal(*row[5:], limit=role, role=role, rates=RateLimits(*row[2:5]))

    async def set_model(self, key_id: str, model: str | None) -> None:
        """Bind the key to a model; None unbinds it. Raises NotFound."""
        change = update(ApiKeyRow).where(ApiKeyRow.id == key_id).values(selected_model=model)
        async with self.database.writing() as connection:
            if (await connection.execute(change)).rowcount == 0:
                raise NotFound(f"There is no API key {key_id!r}.")

    async def set_account_model(self, account_id: str, model: str | None) -> None:
        """Bind an account that logs in: its sessions, and its keys without a model of their own.

        Raises NotFound.
        """
        change = update(LoginRow).where(LoginRow.account_id == account_id).values(selected_model=model)
        async with self.database.writing() as connection:
            if (await connection.execute(change)).rowcount == 0:
                raise NotFound(f"There is no account {account_id!r} with a login.")

    async def record_usage(self, usage: Mapping[str, Usage], now: datetime) -> None:
        """Add to the counters of each key id, or account id of sessions; unknown ids are passed over."""
        if not usage:
            return
        values = [
            {
                "used_id": key_id,
                "new_requests": used.requests,
                "new_prompt_tokens": used.prompt_tokens,
                "new_completion_tokens": used.completion_tokens,
                "now": now,
            }
            # in one order everywhere, or two processes could each hold a row that the other waits for
            for key_id, used in sorted(usage.items())
        ]
        async with self.database.writing() as connection:
            await connection.execute(_add_usage(ApiKeyRow, ApiKeyRow.id), values)
            await connection.execute(_add_usage(LoginRow, LoginRow.account_id), values)

    async def account_usage(self, account_id: str) -> Usage:
        """Of all its keys, those revoked too, and of its sessions."""
        counting: tuple[_Counting, ...] = (ApiKeyRow, LoginRow)
        queries = [
            select(table.requests, table.prompt_tokens, table.completion_tokens).where(
                table.account_id == account_id
            )
            for table in counting
        ]
        async with self.database.reading() as connection:
            rows = [row for query in queries for row in await connection.execute(query)]
        return sum((Usage(*row) for row in rows), Usage())

    async def usage(self, key_id: str) -> Usage:
        """Raises NotFound."""
        query = select(ApiKeyRow.requests, ApiKeyRow.prompt_tokens, ApiKeyRow.completion_tokens)
        async with self.database.reading() as connection:
            row = (await connection.execute(query.where(ApiKeyRow.id == key_id))).first()
        if row is None:
            raise NotFound(f"There is no API key {key_id!r}.")
        return Usage(*row)

    async def account(self, account_id: str) -> Account:
        """Raises NotFound."""
        query = select(AccountRow.id, AccountRow.email, AccountRow.created_at)
        async with self.database.reading() as connection:
            row = (await connection.execute(query.where(AccountRow.id == account_id))).first()
        if row is None:
            raise NotFound(f"There is no account {account_id!r}.")
        return Account(*row)


def _add_usage(table: _Counting, used_id: InstrumentedAttribute[str]) -> Update:
    change = update(table).where(used_id == bindparam("used_id"))
    return change.values(
        requests=table.requests + bindparam("new_requests"),
        prompt_tokens=table.prompt_tokens + bindparam("new_prompt_tokens"),
        completion_tokens=table.completion_tokens + bindparam("new_completion_tokens"),
        last_used=bindparam("now"),
    )


def _record(row: Row[Any]) -> KeyRecord:
    return KeyRecord(
        id=row.id,
        account_id=row.account_id,
        name=row.name,
        prefix=row.prefix,
        selected_model=row.selected_model,
        role=Role(row.role),
        created_at=row.created_at,
        last_used=row.last_used,
        revoked_at=row.revoked_at,
        usage=Usage(row.requests, row.prompt_tokens, row.completion_tokens),
        rates=RateLimits(row.requests_per_minute, row.tokens_per_minute, row.concurrent_requests),
    )


def _columns(rates: RateLimits) -> dict[str, int | None]:
    return {
        "requests_per_minute": rates.requests,
        "tokens_per_minute": rates.tokens,
        "concurrent_requests": rates.concurrent,
    }


async def _insert_key(
    connection: AsyncConnection,
    account_id: str,
    name: str | None,
    role: Role = Role.OWNER,
    rates: RateLimits = NO_LIMITS,
) -> NewKey:
    await require_account(connection, account_id)
    created = NewKey(id=str(uuid.uuid4()), key=new_key())
    await connection.execute(
        insert(ApiKeyRow).values(
            id=created.id,
            account_id=account_id,
            name=name,
            role=role,
            prefix=key_prefix(created.key),
            hash=key_digest(created.key),
            created_at=datetime.now(UTC),
            **_columns(rates),
        )
    )
    return created


async def require_account(connection: AsyncConnection, account_id: str) -> None:
    found = await connection.execute(select(AccountRow.id).where(AccountRow.id == account_id))
    if found.first() is not None:
        return
    if account_id != DEFAULT_ACCOUNT:
        raise NotFound(f"There is no account {account_id!r}.")
    await connection.execute(
        insert(AccountRow).values(id=DEFAULT_ACCOUNT, email=DEFAULT_EMAIL, created_at=datetime.now(UTC))
    )
