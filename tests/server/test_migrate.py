"""`steersman migrate`: the schema, and nothing else."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from server import migrate
from server.__main__ import main
from server.store import Store

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No settings of whoever runs the tests."""
    for name in ("STEERSMAN_DATABASE_URL", "STEERSMAN_LOG_FORMAT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STEERSMAN_HOME", str(tmp_path))


def test_the_schema_is_made_once(database_url, capsys):
    """The first run makes it and no key; the second says that there was nothing to do. Both exit 0."""
    asked = ["migrate", "--steersman-database-url", database_url]
    assert main(asked) == migrate.DONE
    first = capsys.readouterr()
    assert main(asked) == migrate.DONE
    second = capsys.readouterr()
    newest = max(path.name for path in (ROOT / "server/migrations/versions").glob("0*.py"))[:4]
    assert first.out == f"The schema is up to date: nothing to {newest}.\n"
    assert second.out == f"The schema is up to date already: {newest}.\n"
    assert first.err == second.err == ""

    async def keys():
        store = Store(database_url)
        try:
            return await store.list_keys(None)
        finally:
            await store.close()

    assert asyncio.run(keys()) == []


def test_a_database_that_is_away_may_come_back(capsys, caplog):
    """75, sysexits' word for "try again", and one line on standard error."""
    url = "postgresql://nobody:secret@127.0.0.1:1/none"
    assert main(["migrate", "--steersman-database-url", url]) == migrate.AWAY == 75
    told = capsys.readouterr().err
    assert told == "steersman migrate: The database does not answer.\n"
    assert "secret" not in caplog.text


def test_a_schema_of_a_newer_server_is_left_alone(tmp_path, capsys):
    """0: the release before goes on beside the new one, or comes back in its place."""
    url = f"sqlite:///{tmp_path / 'newer.db'}"
    store = Store(url)
    store.migrate()

    async def renumber():
        async with store.database.writing() as connection:
            await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        await store.close()

    asyncio.run(renumber())
    assert main(["migrate", "--steersman-database-url", url]) == migrate.DONE
    assert capsys.readouterr().out == "The schema is of a newer version, and left as it is: 9999.\n"


def test_a_database_that_refuses_is_no_traceback(tmp_path, capsys):
    """A file that is no database: 1, with the reason."""
    (tmp_path / "notes.txt").write_text("no database, but long enough to be looked at " * 100)
    assert main(["migrate", "--steersman-database-url", f"sqlite:///{tmp_path / 'notes.txt'}"]) != 0
    assert capsys.readouterr().err.startswith("steersman migrate: ")


def test_a_url_that_is_none_is_refused(capsys):
    """1, with what is supported."""
    assert main(["migrate", "--steersman-database-url", "mysql://a/b"]) == migrate.IMPOSSIBLE
    assert "sqlite" in capsys.readouterr().err


def test_its_lines_are_json_where_the_server_s_are(tmp_path):
    """STEERSMAN_LOG_FORMAT is heard here too."""
    done = subprocess.run(
        [sys.executable, "-m", "server", "migrate"],
        cwd=ROOT,
        env=os.environ | {"STEERSMAN_HOME": str(tmp_path), "STEERSMAN_LOG_FORMAT": "json"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["message"].startswith("The schema is up to date")
