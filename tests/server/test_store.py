"""The store and its migrations, on SQLite and on a real PostgreSQL server."""

import asyncio
import hashlib
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import inspect, text

from server.database import Database
from server.database import database_url as parse_url
from server.errors import InvalidRequest, NotFound, Unavailable
from server.store import DEFAULT_ACCOUNT, Store, Table
from server.usage import Usage, UsageMeter

ROOT = Path(__file__).parents[2]


def on_connection(url, function):
    """Call `function(connection)` in a transaction of the database and return what it returns."""
    returned = []
    Database(url).alembic(lambda config: returned.append(function(config.attributes["connection"])))
    return returned[0]


def differences(connection):
    return compare_metadata(MigrationContext.configure(connection), Table.metadata)


def tables(connection):
    return set(inspect(connection).get_table_names())


async def rows(store, query):
    async with store._database.reading() as connection:
        return (await connection.execute(text(query))).all()


def test_the_migrations_make_the_schema_that_the_code_expects(database_url):
    """After `migrate` there is nothing left for Alembic to change, and running it again changes nothing."""
    Store(database_url).migrate()
    assert {"accounts", "api_keys"} <= on_connection(database_url, tables)
    assert on_connection(database_url, differences) == []
    Store(database_url).migrate()
    assert on_connection(database_url, differences) == []


def test_the_migrations_can_be_undone(database_url):
    """A downgrade to base leaves Alembic's own table only, and upgrading again works."""
    Store(database_url).migrate()
    Database(database_url).alembic(lambda config: command.downgrade(config, "base"))
    assert on_connection(database_url, tables) == {"alembic_version"}
    Store(database_url).migrate()
    assert on_connection(database_url, differences) == []


def test_racing_processes_migrate_once(database_url):
    """Several processes may migrate an empty database at the same moment; each of them succeeds."""
    script = "import sys; from server.store import Store; input(); Store(sys.argv[1]).migrate()"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", script, database_url],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    time.sleep(1)  # until all have imported and wait for the line, so that they start together
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    for racer in racers:
        _, stderr = racer.communicate(timeout=60)
        assert racer.returncode == 0, stderr
    assert on_connection(database_url, differences) == []
    versions = on_connection(database_url, lambda c: c.execute(text("SELECT * FROM alembic_version")).all())
    assert len(versions) == 1


def test_a_migration_waits_for_the_one_that_runs(database_url):
    """While one process migrates, a second one does nothing until the first is done."""
    running, finish = threading.Event(), threading.Event()

    def dawdle(config: Config) -> None:
        running.set()
        assert finish.wait(30)
        command.upgrade(config, "head")

    with ThreadPoolExecutor() as pool:
        first = pool.submit(Database(database_url).alembic, dawdle)
        assert running.wait(30)
        second = pool.submit(on_connection, database_url, tables)
        with pytest.raises(TimeoutError):
            second.result(timeout=0.5)
        finish.set()
        first.result(30)
        assert "api_keys" in second.result(30)


def test_the_folder_of_a_new_database_is_private(tmp_path):
    """Migrating makes the missing folders of an SQLite file, closed to other users."""
    Store(f"sqlite:///{tmp_path}/deep/home/a.db").migrate()
    assert (tmp_path / "deep/home").stat().st_mode & 0o077 == 0


def test_a_failing_migration_leaves_nothing_behind(database_url):
    """Schema changes of a migration that fails are rolled back, in SQLite too."""

    def fail(config: Config) -> None:
        command.upgrade(config, "head")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        Database(database_url).alembic(fail)
    assert on_connection(database_url, tables) == set()


async def test_recreating_a_table_keeps_the_rows_that_refer_to_it(store, database_url):
    """A migration in batch mode on `accounts` does not cascade into `api_keys`."""
    await store.first_key()

    def recreate(connection) -> None:
        operations = Operations(MigrationContext.configure(connection))
        with operations.batch_alter_table("accounts", recreate="always") as batch:
            batch.alter_column("email", nullable=True)

    if database_url.startswith("sqlite"):
        await asyncio.to_thread(on_connection, database_url, recreate)
    assert len(await store.list_keys(None)) == 1


def test_the_alembic_command_works_on_the_database_of_the_settings(tmp_path):
    """`alembic upgrade head`, given only the folder of the migrations, changes the settings' database."""
    ini = tmp_path / "alembic.ini"
    ini.write_text(f"[alembic]\nscript_location = {ROOT / 'server/migrations'}\n")
    url = f"sqlite:///{tmp_path / 'a.db'}"
    subprocess.run(
        [sys.executable, "-m", "alembic", "-c", ini, "upgrade", "head"],
        cwd=ROOT,
        env={"STEERSMAN_DATABASE_URL": url, "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=60,
    )
    assert on_connection(url, differences) == []


async def test_keys_have_the_published_form(store):
    """A key is `ax_` and 48 lowercase hexadecimal digits, and no two are equal."""
    keys = [(await store.create_key(None, None)).key for _ in range(5)]
    assert all(re.fullmatch(r"ax_[0-9a-f]{48}", key) for key in keys)
    assert len(set(keys)) == 5


async def test_only_the_hash_of_a_key_is_stored(store):
    """The record holds the SHA-256 and the first eight digits; the rest of the key is nowhere."""
    key = (await store.create_key(None, "ci")).key
    [row] = await rows(store, "SELECT * FROM api_keys")
    assert row.hash == hashlib.sha256(key.encode()).hexdigest()
    assert row.prefix == key[3:11]
    assert not any(key[11:] in str(column) for column in row)


async def test_the_plain_key_is_not_in_the_database_file(tmp_path):
    """Not one byte sequence of the files on disk, the write-ahead log included, is the key's secret part."""
    store = Store(f"sqlite:///{tmp_path / 'a.db'}")
    await asyncio.to_thread(store.migrate)
    key = await store.first_key()
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    await store.close()
    written += b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert key[3:11].encode() in written
    assert key[11:].encode() not in written
    assert bytes.fromhex(key[3:]) not in written


async def test_the_first_key_is_made_once(store):
    """Only the first of several processes gets a key, even if they ask at the same time."""
    others = [Store(store._database.url.render_as_string(hide_password=False)) for _ in range(6)]
    for each in others:
        await each.list_keys(None)  # so that all have a connection when it begins
    made = await asyncio.gather(*(each.first_key() for each in others))
    for each in others:
        await each.close()
    assert sorted(key is not None for key in made) == [False] * 5 + [True]
    assert len(await store.list_keys(None)) == 1
    assert await store.first_key() is None


async def test_a_revoked_first_key_is_not_replaced(store):
    """Revoking the only key does not make a start mint a new one."""
    principal = await store.find_key(await store.first_key())
    await store.revoke_key(None, principal.key_id)
    assert await store.first_key() is None


async def test_a_key_is_found_by_all_of_its_digits(store):
    """The key finds its principal; one that differs in the last digit, or is no key at all, finds nobody."""
    created = await store.create_key(None, "ci")
    found = await store.find_key(created.key)
    assert (found.key_id, found.account_id, found.name, found.selected_model) == (
        created.id,
        DEFAULT_ACCOUNT,
        "ci",
        None,
    )
    other = created.key[:-1] + ("0" if created.key[-1] != "0" else "1")
    for wrong in (other, created.key[:-1], created.key.upper(), f"{created.key}0", "", "ax_", "ax_\0"):
        assert await store.find_key(wrong) is None


async def test_keys_that_share_a_prefix_are_told_apart(store):
    """The prefix only narrows the search: both keys work and each has its own principal."""
    one = await store.create_key(None, "one")
    two = "ax_" + one.key[3:11] + "f" * 40
    other = await store.create_key(None, "two")
    async with store._database.writing() as connection:
        await connection.execute(
            text("UPDATE api_keys SET prefix = :prefix, hash = :hash WHERE id = :id"),
            {"prefix": two[3:11], "hash": hashlib.sha256(two.encode()).hexdigest(), "id": other.id},
        )
    assert (await store.find_key(one.key)).name == "one"
    assert (await store.find_key(two)).name == "two"


async def test_a_revoked_key_finds_nobody(store):
    """Revocation ends the key, is dated, and cannot be repeated; its counters stay."""
    created = await store.create_key(None, None)
    await store.record_usage({created.id: Usage(1, 2, 3)}, datetime.now(UTC))
    await store.revoke_key(None, created.id)
    assert await store.find_key(created.key) is None
    [record] = await store.list_keys(None)
    assert record.revoked_at is not None
    assert record.usage == Usage(1, 2, 3)
    with pytest.raises(NotFound):
        await store.revoke_key(None, created.id)


async def test_an_account_sees_and_revokes_only_its_own_keys(store):
    """Keys of another account are neither listed nor revocable; no account means all of them."""
    created = await store.create_key(None, "mine")
    assert [record.id for record in await store.list_keys(DEFAULT_ACCOUNT)] == [created.id]
    assert await store.list_keys("somebody") == []
    assert len(await store.list_keys(None)) == 1
    with pytest.raises(NotFound):
        await store.revoke_key("somebody", created.id)
    with pytest.raises(NotFound):
        await store.create_key("somebody", None)
    assert await store.find_key(created.key) is not None


async def test_a_model_can_be_bound_and_unbound(store):
    """`set_model` shows in the principal; an unknown key is an error."""
    created = await store.create_key(None, None)
    await store.set_model(created.id, "org/model")
    assert (await store.find_key(created.key)).selected_model == "org/model"
    await store.set_model(created.id, None)
    assert (await store.find_key(created.key)).selected_model is None
    with pytest.raises(NotFound):
        await store.set_model("nobody", "m")


async def test_concurrent_increments_all_count(store):
    """Usage recorded by many writers at once, in opposite orders, adds up without loss or deadlock."""
    first, second = [(await store.create_key(None, None)).id for _ in range(2)]
    other = Store(store._database.url.render_as_string(hide_password=False))
    now = datetime.now(UTC)

    async def record(writer: Store, turn: int) -> None:
        ids = (first, second) if turn % 2 else (second, first)
        await writer.record_usage({key_id: Usage(1, 10, 100) for key_id in ids}, now)

    await asyncio.gather(*(record(writer, turn) for writer in (store, other) for turn in range(20)))
    await other.close()
    assert await store.usage(first) == Usage(40, 400, 4000)
    assert await store.usage(second) == Usage(40, 400, 4000)


async def test_usage_counts_beyond_32_bits(store):
    """Token counters of a busy key pass 2³¹ without overflow."""
    key_id = (await store.create_key(None, None)).id
    await store.record_usage({key_id: Usage(0, 2**31, 2**40)}, datetime.now(UTC))
    await store.record_usage({}, datetime.now(UTC))
    assert await store.usage(key_id) == Usage(0, 2**31, 2**40)
    with pytest.raises(NotFound):
        await store.usage("nobody")


async def test_times_come_back_in_utc(store):
    """A time written in any zone is the same moment in UTC when read."""
    created = await store.create_key(None, None)
    [fresh] = await store.list_keys(None)
    assert fresh.last_used is None
    assert fresh.created_at.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - fresh.created_at) < timedelta(minutes=1)
    moment = datetime(2030, 5, 6, 7, 8, 9, 123456, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    await store.record_usage({created.id: Usage(1)}, moment)
    [used] = await store.list_keys(None)
    assert used.last_used == moment
    assert used.last_used.tzinfo is UTC


async def test_the_default_account_has_an_address(store):
    """The account behind the first key can be read; an unknown one is an error."""
    principal = await store.find_key(await store.first_key())
    account = await store.account(principal.account_id)
    assert account.id == principal.account_id
    assert "@" in account.email
    with pytest.raises(NotFound):
        await store.account("nobody")


async def test_foreign_keys_are_enforced(store):
    """Deleting an account deletes its keys."""
    await store.first_key()
    async with store._database.writing() as connection:
        await connection.execute(text("DELETE FROM accounts"))
    assert await store.list_keys(None) == []


async def test_sqlite_readers_do_not_wait_for_a_writer(tmp_path):
    """In WAL mode a key can be checked while a write is open, and a second writer waits for its turn."""
    store = Store(f"sqlite:///{tmp_path / 'a.db'}")
    await asyncio.to_thread(store.migrate)
    created = await store.create_key(None, None)
    async with store._database.writing() as connection:
        await connection.execute(text("UPDATE api_keys SET name = 'new'"))
        assert (await asyncio.wait_for(store.find_key(created.key), 2)).name is None
        second = asyncio.create_task(store.set_model(created.id, "m"))
        await asyncio.sleep(0.1)
        assert not second.done()
    await second
    found = await store.find_key(created.key)
    await store.close()
    assert (found.name, found.selected_model) == ("new", "m")


async def test_postgres_refuses_what_it_cannot_hold(postgres):
    """Text that PostgreSQL has no room for is the client's error, not an outage."""
    postgres.psql("CREATE DATABASE narrow")
    store = Store(postgres.get_uri(database="narrow"))
    await asyncio.to_thread(store.migrate)
    for name in ("x" * 201, "nul\0"):
        with pytest.raises(InvalidRequest):
            await store.create_key(None, name)
    await store.close()


async def test_a_database_that_does_not_answer_is_unavailable(caplog):
    """Nothing listens: the client is told to come back, the log says why, and the password is in neither."""
    store = Store("postgresql://user:secret@127.0.0.1:1/steersman")
    with pytest.raises(Unavailable) as caught:
        await store.usage("x")
    assert caught.value.retry_after == 1
    assert "127.0.0.1" not in caught.value.message
    assert "127.0.0.1" in caplog.text
    assert "secret" not in caplog.text
    await store.close()


async def test_connections_that_the_server_dropped_are_replaced(postgres):
    """After the server has closed every connection, the next query opens a new one."""
    postgres.psql("CREATE DATABASE dropped")
    store = Store(postgres.get_uri(database="dropped"))
    await asyncio.to_thread(store.migrate)
    key = await store.first_key()
    postgres.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'dropped'")
    assert await store.find_key(key) is not None
    await store.close()


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("postgres://u:p@h/d", "postgresql+asyncpg://u:p@h/d"),
        ("postgresql://u:p@h:5/d?sslmode=require", "postgresql+asyncpg://u:p@h:5/d?ssl=require"),
        ("postgresql+asyncpg://h/d", "postgresql+asyncpg://h/d"),
        ("sqlite:////a/b.db", "sqlite+aiosqlite:////a/b.db"),
    ],
)
def test_plain_urls_get_the_async_driver(written, meant):
    """An operator may write the URL as other programs take it."""
    assert parse_url(written).render_as_string(hide_password=False) == meant


@pytest.mark.parametrize("written", ["mysql://h/d", "sqlite://", "sqlite:///:memory:", "nonsense"])
def test_databases_that_cannot_work_are_refused(written):
    """An unknown or an in-memory database is refused before anything is opened."""
    with pytest.raises(ValueError, match=r"Unknown database|needs a file|cannot be parsed"):
        Store(written)


class Recorder:
    """A store that fails as often as told, and adds up what it was given."""

    def __init__(self, failures: list[Exception]) -> None:
        self.failures = failures
        self.total: dict[str, Usage] = {}
        self.recorded = asyncio.Event()

    async def record_usage(self, usage, now) -> None:
        await asyncio.sleep(0)
        if self.failures:
            raise self.failures.pop()
        assert now.tzinfo is not None
        for key_id, used in usage.items():
            self.total[key_id] = self.total.get(key_id, Usage()) + used
        self.recorded.set()


async def test_a_failed_flush_keeps_the_counts(caplog):
    """Counts survive an outage, together with those added while the flush was failing."""
    meter, recorder = UsageMeter(), Recorder([Unavailable("away")])
    meter.add("a", prompt_tokens=1, completion_tokens=2)
    flush = asyncio.create_task(meter.flush(recorder))
    await asyncio.sleep(0)
    meter.add("a", prompt_tokens=10, completion_tokens=20)
    meter.add("b")
    await flush
    assert recorder.total == {}
    assert "kept" in caplog.text
    await meter.flush(recorder)
    await meter.flush(recorder)
    assert recorder.total == {"a": Usage(2, 11, 22), "b": Usage(1, 0, 0)}


async def test_a_flush_that_breaks_is_heard_and_keeps_the_counts():
    """An error that is no outage goes up, and still nothing is lost."""
    meter, recorder = UsageMeter(), Recorder([KeyError("bug")])
    meter.add("a")
    with pytest.raises(KeyError):
        await meter.flush(recorder)
    await meter.flush(recorder)
    assert recorder.total == {"a": Usage(1)}


async def test_the_meter_flushes_as_it_runs_and_when_it_is_stopped():
    """Counts arrive at the interval, and the last of them when the task is cancelled."""
    meter, recorder = UsageMeter(), Recorder([])
    running = asyncio.create_task(meter.run(recorder, 0.01))
    meter.add("a")
    await asyncio.wait_for(recorder.recorded.wait(), 5)
    meter.add("a")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert recorder.total == {"a": Usage(2)}
