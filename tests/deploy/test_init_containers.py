"""What the chart runs before the server starts, as it runs it."""

import asyncio
import os
import sqlite3
import subprocess
import sys
import uuid

import asyncpg

from tests.deploy.chart import container, engine
from tests.deploy.tools import ROOT


def command(name: str, shape: str = "cpu") -> list[str]:
    return list(container(engine(shape), name)["command"])


def migrate(**environ: str) -> subprocess.Popen[str]:
    """The init container's command; `steersman` is this checkout's."""
    program, *arguments = command("migrate")
    assert program == "steersman"
    hidden = ("STEERSMAN_", "PYTHONWARNINGS")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    return subprocess.Popen(
        [sys.executable, "-m", "server", *arguments],
        cwd=ROOT,
        env=inherited | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_pods_that_start_at_once_migrate_one_database_once(postgres):
    """Three init containers begin on an empty PostgreSQL; all end well, and the schema is the newest."""
    name = f"test_{uuid.uuid4().hex}"
    postgres.psql(f"CREATE DATABASE {name}")
    url = postgres.get_uri(database=name)
    started = [migrate(STEERSMAN_DATABASE_URL=url) for _ in range(3)]
    said = [each.communicate(timeout=120)[0] for each in started]
    assert [each.returncode for each in started] == [0, 0, 0], said

    async def revisions():
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetch("SELECT version_num FROM alembic_version")
        finally:
            await connection.close()

    ((revision,),) = asyncio.run(revisions())
    newest = max(path.name for path in (ROOT / "server/migrations/versions").glob("0*.py"))
    assert newest.startswith(revision)


def test_a_fresh_claim_gets_a_database(tmp_path):
    """On an empty STEERSMAN_HOME the file is made, with no key in it."""
    begun = migrate(STEERSMAN_HOME=str(tmp_path))
    said, _ = begun.communicate(timeout=120)
    assert begun.returncode == 0, said
    connection = sqlite3.connect(tmp_path / "steersman.db")
    assert connection.execute("SELECT count(*) FROM api_keys").fetchone() == (0,)
    connection.close()


def test_the_embedded_model_is_found_on_an_empty_and_on_an_old_claim(tmp_path):
    """The link leads to the image's model, also where an earlier image made one already."""
    image, home = tmp_path / "opt/steersman", tmp_path / "home"
    (image / "models/SmolLM2-135M-Instruct").mkdir(parents=True)
    (image / "models/SmolLM2-135M-Instruct/config.json").write_text("{}")
    shell, flag, script = command("model")
    script = script.replace("/opt/steersman", str(image)).replace("/var/lib/steersman", str(home))
    for _ in range(2):
        subprocess.run([shell, flag, script], check=True)
        model = home / "models/SmolLM2-135M-Instruct"
        assert model.is_symlink()
        assert sorted(path.name for path in model.iterdir()) == ["config.json"]
