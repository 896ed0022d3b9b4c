"""A rolling upgrade: each migration runs under servers of the release before it, which go on afterwards.

What those servers send is known from the schema that they were written for: rows with all of its columns or
with those alone that it demands, by its types, over connections that have prepared these statements before.
"""

import asyncio
import itertools
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Column, MetaData, Table, text, types
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from server.database import Database

# Older ones came before there were replicas.
SINCE = "0009"
_TEXTS = {"messages": "[]"}  # migrations read what is stored as JSON
_TEXT = '{"choices": [{"index": 0}]}'


def _revisions() -> list[tuple[str, str]]:
    """Each with the one before it."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parents[2] / "server/migrations"))
    found = ScriptDirectory.from_config(config).walk_revisions()
    return sorted((each.revision, str(each.down_revision)) for each in found if each.revision >= SINCE)


def _value(column: Column[Any], seed: int, rows: dict[str, dict[str, Any]]) -> Any:
    for key in column.foreign_keys:
        return rows[key.column.table.name][key.column.name]
    match column.type:
        case types.Boolean():
            return bool(seed % 2)
        case types.Integer():
            return seed
        case types.Float():
            return float(seed)
        case types.DateTime():
            return datetime.now(UTC)
        case types.LargeBinary():
            return b"0"
        case types.JSON():
            return []
        case types.Text() | types.String(length=None):
            return _TEXTS.get(column.name, _TEXT)
        case types.String(length=length):
            return f"{seed}-{column.name}"[:length]
    raise AssertionError(f"{column.table.name}.{column.name}: no value for {column.type}")


def _demanded(column: Column[Any]) -> bool:
    return not column.nullable and column.server_default is None


class OldServer:
    """Writes, reads, changes and deletes a row of every table; each statement a transaction of its own."""

    def __init__(self, engine: AsyncEngine, schema: MetaData) -> None:
        self._engine = engine
        self._tables = [table for table in schema.sorted_tables if table.name != "alembic_version"]
        self._seeds = itertools.count(1_000_000)  # far from the numbers that the database gives itself
        self.turns = 0

    async def turn(self) -> None:
        for whole in (True, False):
            rows = await self._written(next(self._seeds), whole=whole)
            for table in reversed(self._tables):
                await self._read_and_changed(table, rows[table.name])
        self.turns += 1

    async def leave_rows(self) -> None:
        """For the migration to find."""
        await self._written(next(self._seeds), whole=True)

    async def _written(self, seed: int, *, whole: bool) -> dict[str, dict[str, Any]]:
        rows: dict[str, dict[str, Any]] = {}
        for table in self._tables:
            rows[table.name] = row = {each.name: _value(each, seed, rows) for each in table.columns}
            sent = {name: row[name] for name in row if whole or _demanded(table.columns[name])}
            # A number that the database gives is told by the row.
            made = await self._one(table.insert().values(sent).returning(*table.primary_key.columns))
            row |= dict(made)
        return rows

    async def _read_and_changed(self, table: Table, row: dict[str, Any]) -> None:
        this = [each == row[each.name] for each in table.primary_key.columns]
        found = await self._one(table.select().where(*this))
        assert set(found) == set(row)
        changed = {
            each.name: row[each.name]
            for each in table.columns
            if not each.primary_key and not each.foreign_keys
        }
        if changed:
            await self._one(table.update().where(*this).values(changed).returning(*table.columns))
        await self._one(table.delete().where(*this).returning(*table.primary_key.columns))

    async def _one(self, statement: Any) -> dict[str, Any]:
        async with self._engine.begin() as connection:
            return dict((await connection.execute(statement)).mappings().one())


@pytest.mark.parametrize(("revision", "before"), _revisions())
async def test_a_migration_leaves_the_release_before_it_serving(postgres, revision, before):
    """It runs on tables with rows while an old server works on them, and whatever that one sent before it
    sends afterwards over the same connections: nothing fails, neither meanwhile nor later."""
    name = f"upgrade_{uuid.uuid4().hex}"
    postgres.psql(f"CREATE DATABASE {name}")
    database = Database(postgres.get_uri(database=name))
    await asyncio.to_thread(database.alembic, lambda config: command.upgrade(config, before))
    engine = create_async_engine(database.url, pool_size=1)
    try:
        await _upgraded(engine, database, revision)
    finally:
        await engine.dispose()


async def _upgraded(engine: AsyncEngine, database: Database, revision: str) -> None:
    schema = MetaData()
    async with engine.connect() as connection:
        await connection.run_sync(schema.reflect)
    server = OldServer(engine, schema)
    await server.turn()
    await server.leave_rows()
    migrating = asyncio.create_task(
        asyncio.to_thread(database.alembic, lambda config: command.upgrade(config, revision))
    )
    while not migrating.done():
        await server.turn()
    await migrating
    await server.turn()
    assert server.turns >= 3


async def test_a_migration_gives_way_to_a_long_transaction(postgres, caplog):
    """While somebody reads for long what it is to change, it holds nobody up for longer than a moment, and
    is done as soon as it can be."""
    name = f"upgrade_{uuid.uuid4().hex}"
    postgres.psql(f"CREATE DATABASE {name}")
    database = Database(postgres.get_uri(database=name))
    await asyncio.to_thread(database.alembic, lambda config: command.upgrade(config, "0010"))
    async with database.reading() as reader:
        await reader.execute(text("SELECT * FROM interactions"))
        migrating = asyncio.create_task(asyncio.to_thread(database.migrate))
        while "in use" not in caplog.text:
            async with database.writing() as other, asyncio.timeout(2):
                await other.execute(text("SELECT * FROM interactions"))
            await asyncio.sleep(0.05)
        assert not migrating.done()
    await asyncio.wait_for(migrating, 10)
    async with database.reading() as connection:
        await connection.execute(text("SELECT stored_at FROM interactions"))
    await database.close()


def test_there_are_migrations_to_look_at():
    """The list is read from the migrations themselves, so that a new one is not forgotten."""
    assert _revisions()[0] == ("0009", "0008")
