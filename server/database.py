"""The database behind a URL: drivers, connections, transactions and migrations, for SQLite and PostgreSQL."""

import asyncio
import fcntl
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, NullPool, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from server.errors import InvalidRequest, Unavailable
from server.metrics import DATABASE_FAILURES

logger = logging.getLogger(__name__)

_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}
_LOCKED_OUT = frozenset({"55P03", "40P01"})  # lock_not_available, deadlock_detected
_MIGRATION_TRIES, _PAUSE_SECONDS = 60, 1.0
_CONNECT_SECONDS = 5.0  # a host that is gone does not refuse, it is silent
_MIGRATIONS = Path(__file__).parent / "migrations"
# Any constant does; PostgreSQL's advisory locks are numbers that the applications of a database agree on.
_ADVISORY_LOCK = text("SELECT pg_advisory_xact_lock(7305219461)")


def database_url(written: str) -> URL:
    """The URL with its async driver. Raises ValueError for a database that is not supported."""
    try:
        url = make_url(written)
    except ArgumentError as error:
        raise ValueError(
            "The database URL cannot be parsed: write `driver://user:password@host/name`."
        ) from error
    if url.drivername not in _DRIVERS:
        raise ValueError(f"Unknown database {url.drivername!r}: use one of {', '.join(_DRIVERS)}.")
    url = url.set(drivername=_DRIVERS[url.drivername])
    if url.get_backend_name() == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise ValueError(
                "SQLite needs a file: every connection would see an in-memory database of its own."
            )
        return url
    # libpq's name for it, which hosting providers put into the URLs they hand out
    mode = url.query.get("sslmode")
    return url if mode is None else url.difference_update_query(["sslmode"]).update_query_dict({"ssl": mode})


class Migrated(NamedTuple):
    """Revisions of the schema; None: no tables yet. `newer`: of a version that this code does not know."""

    before: str | None
    after: str | None
    newer: bool


class Database:
    """Transactions on a pool of connections. Raises Unavailable when the database does not answer."""

    def __init__(self, written: str) -> None:
        self.url = database_url(written)
        # A server may close a connection that waits in the pool, a file does not.
        self._engine = (
            _engine(self.url)
            if self.is_sqlite
            else _engine(self.url, pool_pre_ping=True, connect_args={"timeout": _CONNECT_SECONDS})
        )

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """For one statement: the next one may see what others wrote in between."""
        with _translated():
            async with self._engine.connect() as connection:
                yield connection

    @asynccontextmanager
    async def writing(self, *, alone: bool = False) -> AsyncIterator[AsyncConnection]:
        """`alone`: no other such transaction runs meanwhile, in any process."""
        with _translated():
            async with self._engine.execution_options(write=True).begin() as connection:
                if alone:
                    await _lock(connection)
                yield connection

    @asynccontextmanager
    async def at_once(self) -> AsyncIterator[AsyncConnection]:
        """For one statement that writes: it commits by itself, in one round trip."""
        # SQLite's connections commit by themselves unless a transaction was begun.
        options = {} if self.is_sqlite else {"isolation_level": "AUTOCOMMIT"}
        with _translated():
            async with self._engine.execution_options(**options).connect() as connection:
                yield connection

    async def close(self) -> None:
        await self._engine.dispose()

    def migrate(self) -> Migrated:
        """Bring the schema to the newest revision. Call it outside of any event loop; processes may race.

        A schema of a newer version is left as it is, with a warning: migrations leave the release before them
        at work, which may have to start anew beside the new one, or in its place.
        """
        told: list[Migrated] = []  # the last of as many tries as it takes

        def upgrade(config: Config) -> None:
            revision = MigrationContext.configure(config.attributes["connection"]).get_current_revision
            before = revision()
            newer = before is not None and not _knows(config, before)
            if newer:
                logger.warning("The schema, %s, is of a newer version of Steersman: left as it is", before)
            else:
                command.upgrade(config, "head")
            told.append(Migrated(before, revision(), newer))

        self.alembic(upgrade)
        return told[-1]

    def alembic(self, action: Callable[[Config], None]) -> None:
        """Run an Alembic command in one transaction, alone; again where servers held what it changes."""
        # SQLite's own lock is waited for ten seconds at most, and not at all while the journal mode changes.
        with _translated(), _file_lock(self.url) if self.is_sqlite else nullcontext():
            for left in reversed(range(_MIGRATION_TRIES)):
                try:
                    asyncio.run(self._alembic(action))
                except DBAPIError as error:
                    if not left or _state(error) not in _LOCKED_OUT:
                        raise
                    logger.warning("The tables that are to be changed are in use; trying again")
                    time.sleep(_PAUSE_SECONDS)
                else:
                    return

    @property
    def is_sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    async def _alembic(self, action: Callable[[Config], None]) -> None:
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))

        def act(connection: Connection) -> None:
            config.attributes["connection"] = connection
            action(config)

        # Connections belong to the event loop that opened them, so the pool is not for this one.
        engine = _engine(self.url, poolclass=NullPool)
        if self.is_sqlite:
            # Batch mode drops the table that it has copied, which would delete the rows that refer to it.
            event.listen(engine.sync_engine, "connect", _ignore_foreign_keys)
        try:
            async with engine.execution_options(write=True).begin() as connection:
                await _lock(connection)
                await _yield_to_servers(connection)
                await connection.run_sync(act)
        finally:
            await engine.dispose()


def _engine(url: URL, **options: Any) -> AsyncEngine:
    engine = create_async_engine(url, hide_parameters=True, **options)
    if url.get_backend_name() == "sqlite":
        event.listen(engine.sync_engine, "connect", _set_up_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
    else:
        event.listen(engine.sync_engine, "connect", _set_up_postgresql)
    return engine


def _set_up_postgresql(connection: Any, _: object) -> None:
    # After five runs PostgreSQL plans a statement for values and limits unknown: for a page of 20 it then
    # joined a label of all rows to all completions, in 26 ms for 0.2. Not as a connection's parameter, which
    # PgBouncer refuses.
    connection.run_async(lambda driver: driver.execute("SET plan_cache_mode = force_custom_plan"))


def _set_up_sqlite(connection: Any, _: object) -> None:
    # Python's driver begins transactions late and not at all before DDL; `_begin_sqlite` does it instead.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("busy_timeout=10000", "journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _ignore_foreign_keys(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys=OFF")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A reader that turns writer fails at once if somebody wrote in between; a writer from the start waits.
    # A statement that only reads needs no transaction, which costs a third of its time.
    if connection.get_execution_options().get("write", False):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _knows(config: Config, revision: str) -> bool:
    known = ScriptDirectory.from_config(config).walk_revisions()
    return revision in {each.revision for each in known}


async def _lock(connection: AsyncConnection) -> None:
    if connection.dialect.name == "postgresql":  # SQLite has one writer at a time anyway
        await connection.execute(_ADVISORY_LOCK)


async def _yield_to_servers(connection: AsyncConnection) -> None:
    """Give up a table that servers use before PostgreSQL looks for deadlocks, a second later, and ends one of
    their transactions; and before all that come after it have queued for long."""
    if connection.dialect.name == "postgresql":
        await connection.execute(text("SET LOCAL lock_timeout = '500ms'"))


@contextmanager
def _file_lock(url: URL) -> Iterator[None]:
    path = Path(f"{url.database}.lock")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (IntegrityError, ProgrammingError):
        raise  # our own mistakes
    except (DBAPIError, PoolTimeoutError, OSError) as error:
        if _is_data_error(error):
            raise InvalidRequest(
                "The database cannot hold this text: it is too long or not UTF-8."
            ) from error
        DATABASE_FAILURES.inc()
        # Clients are not told which host refused what; the operator is.
        logger.warning("The database does not answer: %s", error)
        raise Unavailable("The database does not answer.", retry_after=1) from error


def _is_data_error(error: Exception) -> bool:
    """Class 22 of the SQL standard's states, which asyncpg's errors carry; SQLite holds any text."""
    return isinstance(error, DBAPIError) and (_state(error) or "").startswith("22")


def _state(error: DBAPIError) -> str | None:
    """PostgreSQL's code of what went wrong."""
    return getattr(error.orig, "sqlstate", None)
