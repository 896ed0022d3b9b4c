"""Connections and migrations, on SQLite and on a real PostgreSQL server."""

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import inspect, text

from server import (  # noqa: F401  # their tables
    aliases,
    behaviors,
    campaigns,
    comparisons,
    database,
    feedback,
    interactions,
    jobs,
    observed,
    policies,
    projects,
    quotas,
    sessions,
    vectors,
)
from server.completion_ids import completion_id
from server.completion_rows import prompt_hash
from server.database import Database
from server.database import database_url as parse_url
from server.errors import InvalidRequest, Unavailable
from server.metrics import DATABASE_FAILURES
from server.store import Store, Table

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


def test_the_migrations_make_the_schema_that_the_code_expects(database_url):
    """After `migrate` there is nothing left for Alembic to change, and running it again changes nothing."""
    Store(database_url).migrate()
    assert on_connection(database_url, tables) == {"alembic_version", *Table.metadata.tables}
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


def test_what_came_after_steering_can_be_undone_alone(database_url):
    """Steps down take A/B tests, logins, interactions, recent calls, behaviours, policies and their presets,
    and nothing else; steps up bring them back."""
    Store(database_url).migrate()
    whole = on_connection(database_url, tables)
    Database(database_url).alembic(lambda config: command.downgrade(config, "0002"))
    left = on_connection(database_url, tables)
    gone = {"observed_requests", "behaviors", "policies", "policy_versions", "policy_presets"}
    assert whole - left == gone | INTERACTIONS | LOGINS | PROJECTS | CAMPAIGNS | SCORES | QUOTAS
    Store(database_url).migrate()
    assert on_connection(database_url, differences) == []


QUOTAS = {"quotas"}
SCORES = {"metrics", "completions", "comparisons", "outcomes"}
CAMPAIGNS = {"campaigns"}
PROJECTS = {"projects", "memberships", "aliases"}
LOGINS = {"logins", "sessions", "signing_secrets"}
INTERACTIONS = {"interactions", "interaction_labels", "feedback"}


@pytest.mark.parametrize(
    ("above", "below", "gone"),
    [
        ("0013", "0012", set()),
        ("0012", "0011", QUOTAS),
        ("0011", "0010", SCORES),
        ("0010", "0009", CAMPAIGNS),
        ("0009", "0008", PROJECTS),
        ("0008", "0007", LOGINS),
        ("0007", "0006", INTERACTIONS),
        ("0006", "0005", {"observed_requests"}),
    ],
)
def test_later_tables_can_be_undone_alone(database_url, above, below, gone):
    """One step down takes their tables away and nothing else; steps up bring them back."""
    Store(database_url).migrate()
    Database(database_url).alembic(lambda config: command.downgrade(config, above))
    whole = on_connection(database_url, tables)
    Database(database_url).alembic(lambda config: command.downgrade(config, below))
    assert whole - on_connection(database_url, tables) == gone
    Store(database_url).migrate()
    assert on_connection(database_url, differences) == []


def test_the_version_before_limits_goes_on(database_url):
    """What it writes and reads of keys is whole on the new schema, and going back keeps its keys."""
    Store(database_url).migrate()
    now = "'2026-01-01 00:00:00+00'"
    columns = (
        "id, account_id, name, prefix, hash, role, created_at, requests, prompt_tokens, completion_tokens"
    )

    def old(connection):
        connection.exec_driver_sql(f"INSERT INTO accounts VALUES ('a', 'a@localhost', {now})")
        values = f"'k', 'a', 'n', '01234567', 'h', 'owner', {now}, 1, 2, 3"
        connection.exec_driver_sql(f"INSERT INTO api_keys ({columns}) VALUES ({values})")

    def read(connection):
        found = connection.exec_driver_sql("SELECT id, name, requests FROM api_keys")
        return [tuple(row) for row in found]

    on_connection(database_url, old)
    Database(database_url).alembic(lambda config: command.downgrade(config, "0011"))
    assert on_connection(database_url, read) == [("k", "n", 1)]
    Store(database_url).migrate()
    assert on_connection(database_url, read) == [("k", "n", 1)]


def test_behaviours_can_be_undone_alone(database_url):
    """Above them stand recent calls; a step down from there takes their table and nothing else, steps up
    bring it back."""
    Store(database_url).migrate()
    Database(database_url).alembic(lambda config: command.downgrade(config, "0005"))
    whole = on_connection(database_url, tables)
    Database(database_url).alembic(lambda config: command.downgrade(config, "0004"))
    assert whole - on_connection(database_url, tables) == {"behaviors"}
    Store(database_url).migrate()
    assert on_connection(database_url, differences) == []


def test_policies_become_their_account_s(database_url):
    """Policies and versions stay when their ids stop being shared; undoing that keeps them too, and is
    refused where accounts have the same id."""

    def at(revision, *statements):
        Database(database_url).alembic(lambda config: command.upgrade(config, revision))
        on_connection(database_url, lambda c: [c.exec_driver_sql(statement) for statement in statements])

    def rows(query):
        return on_connection(database_url, lambda c: [tuple(row) for row in c.execute(text(query))])

    now = "'2026-01-01 00:00:00+00'"
    at(
        "0003",
        f"INSERT INTO accounts VALUES ('a', 'a@localhost', {now}), ('b', 'b@localhost', {now})",
        f"INSERT INTO policies VALUES ('x', 'a', 2, {now}), ('y', 'b', 1, {now})",
        f"INSERT INTO policy_versions VALUES ('x', 1, '{{}}', {now}), ('x', 2, '{{}}', {now}),"
        f" ('y', 1, '{{}}', {now})",
    )
    versions = "SELECT policy_id, version FROM policy_versions ORDER BY policy_id, version"
    kept = rows(versions)
    at("head", f"INSERT INTO policies (account_id, id, version, created_at) VALUES ('b', 'x', 1, {now})")
    owners = rows("SELECT account_id, policy_id, version FROM policy_versions ORDER BY policy_id, version")
    assert owners == [("a", "x", 1), ("a", "x", 2), ("b", "y", 1)]
    with pytest.raises(RuntimeError, match="several accounts have a policy 'x'"):
        Database(database_url).alembic(lambda config: command.downgrade(config, "0003"))
    at("head", "DELETE FROM policies WHERE account_id = 'b' AND id = 'x'")
    Database(database_url).alembic(lambda config: command.downgrade(config, "0003"))
    assert rows(versions) == kept
    assert rows("SELECT id, account_id, version FROM policies ORDER BY id") == [("x", "a", 2), ("y", "b", 1)]
    Store(database_url).migrate()
    assert on_connection(database_url, differences) == []
    assert rows(versions) == kept


def test_what_was_stored_before_can_be_scored(database_url):
    """Interactions of older servers get their completions, who asked, and the metrics that they were scored
    by; undoing that leaves them as they were, but for scores of other choices than the first."""

    def rows(query):
        return on_connection(database_url, lambda c: [tuple(row) for row in c.execute(text(query))])

    def act(*statements):
        on_connection(database_url, lambda c: [c.exec_driver_sql(statement) for statement in statements])

    now = "'2026-01-01 00:00:00.000000+00'" if "postgres" in database_url else "'2026-01-01 00:00:00.000000'"
    asked = json.dumps([{"role": "user", "content": "Hi"}])
    parts = json.dumps([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}])

    def interaction(key, messages, user, choices):
        asked, answer = json.dumps({"user": user}), json.dumps({"choices": choices})
        return (
            f"INSERT INTO interactions VALUES ({key}, {now}, 'base', 's', '{messages}', '{asked}',"
            f" '{answer}', '{{}}', 1, 1, 1.0, NULL)"
        )

    Database(database_url).alembic(lambda config: command.upgrade(config, "0009"))
    act(
        f"INSERT INTO accounts VALUES ('a', 'a@localhost', {now}), ('b', 'b@localhost', {now})",
        interaction("7, 'x', 'a'", asked, "ann", [{"index": 0}, {"index": 1}]),
        interaction("8, 'y', 'b'", parts, None, [{}]),
        "INSERT INTO interaction_labels VALUES (7, 'team', 'x', 'a')",
        f"INSERT INTO feedback VALUES ('f', 7, 'polite', 1.0, 'why', NULL, {now})",
    )
    tables_before = ("interactions", "interaction_labels", "feedback")
    before = [rows(f"SELECT * FROM {each} ORDER BY number") for each in tables_before]
    Store(database_url).migrate()
    assert on_connection(database_url, differences) == []
    found = rows(
        "SELECT number, choice, id, account_id, model, session_id, user_id, source FROM completions"
        " ORDER BY number, choice"
    )
    assert found == [
        (7, 0, completion_id("a", "x", 0), "a", "base", "s", "ann", "LIVE"),
        (7, 1, completion_id("a", "x", 1), "a", "base", "s", "ann", "LIVE"),
        (8, 0, completion_id("b", "y", 0), "b", "base", "s", None, "LIVE"),
    ]
    hashes = rows("SELECT DISTINCT prompt_hash FROM completions")
    assert hashes == [(prompt_hash(json.loads(asked)),)]
    assert rows("SELECT number, source, user_id FROM interactions ORDER BY number") == [
        (7, "LIVE", "ann"),
        (8, "LIVE", None),
    ]
    assert rows("SELECT stored_at FROM interactions") == rows("SELECT created_at FROM interactions")
    assert rows("SELECT account_id, key, name, kind FROM metrics") == [("a", "polite", "polite", "SCALAR")]
    assert rows("SELECT account_id, choice, metric FROM feedback") == [("a", 0, "polite")]
    act(
        "INSERT INTO feedback SELECT 'g', number, 'polite', 0, NULL, NULL, created_at, account_id, 1, NULL"
        " FROM feedback"
    )
    Database(database_url).alembic(lambda config: command.downgrade(config, "0009"))
    assert [rows(f"SELECT * FROM {each} ORDER BY number") for each in tables_before] == before
    Store(database_url).migrate()
    assert rows("SELECT count(*) FROM completions") == [(3,)]


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


async def test_foreign_keys_are_enforced(store):
    """Deleting an account deletes its keys."""
    await store.first_key()
    async with store.database.writing() as connection:
        await connection.execute(text("DELETE FROM accounts"))
    assert await store.list_keys(None) == []


async def test_sqlite_readers_do_not_wait_for_a_writer(tmp_path):
    """In WAL mode a key can be checked while a write is open, and a second writer waits for its turn."""
    store = Store(f"sqlite:///{tmp_path / 'a.db'}")
    await asyncio.to_thread(store.migrate)
    created = await store.create_key(None, None)
    async with store.database.writing() as connection:
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


async def test_a_database_that_is_silent_is_unavailable(monkeypatch):
    """A host that takes the connection and says nothing is given up after seconds, and counted."""
    monkeypatch.setattr(database, "_CONNECT_SECONDS", 0.2)
    before = DATABASE_FAILURES._value.get()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        store = Store(f"postgresql://user@127.0.0.1:{port}/steersman?sslmode=disable")
        with pytest.raises(Unavailable):
            await asyncio.wait_for(store.usage("x"), 3)
        await store.close()
    assert DATABASE_FAILURES._value.get() == before + 1


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
