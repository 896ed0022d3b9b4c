"""The chart's Envoy: its configuration as Envoy reads it, and two replicas behind a real one."""

import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from tests.deploy.chart import only
from tests.deploy.envoy import routing, wait
from tests.deploy.tools import run


class Replica:
    """Answers with its name, the body it got and its id; drains, limits and fails as the server would."""

    def __init__(self, name: str) -> None:
        replica = self
        self.name, self.draining, self.limited, self.failing, self.seen = name, False, False, False, 0
        self.refusing = False

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                ready = self.path != "/readyz" or not replica.draining
                self._answer(200 if ready else 503, b"")

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.path == "/stream":
                    self._stream()
                else:
                    replica.seen += 1
                    self._answer(replica.status, body)

            def _answer(self, status, body):
                self.send_response(status)
                self.send_header("x-replica", replica.name)
                self.send_header("x-got", self.headers.get("x-request-id", ""))
                if replica.refusing:
                    self.send_header("x-steersman-draining", "1")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _stream(self):
                self.send_response(200)
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                for _ in range(3):
                    self.wfile.write(b"6\r\ndata\n\n\r\n")
                    self.wfile.flush()
                    time.sleep(0.4)
                self.wfile.write(b"0\r\n\r\n")

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def status(self) -> int:
        if self.draining or self.refusing:
            return 503
        return 429 if self.limited else 500 if self.failing else 200

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def routed(tmp_path):
    """Two replicas and a client of the Envoy before them."""
    replicas = [Replica("a"), Replica("b")]
    with routing(tmp_path, *(each.port for each in replicas)) as router:
        with httpx.Client(base_url=router.url, timeout=30) as client:
            wait(lambda: client.get("/health").status_code == 200)
            client.headers["x-stats"] = router.stats
            yield client, *replicas
        for each in replicas:
            each.stop()


def ask(client, session=None, **headers):
    more = {"x-session-id": session} if session else {}
    return client.post("/v1/chat/completions", content=b'{"a": 1}', headers=headers | more)


def answering(client, count=20, **more):
    return Counter(ask(client, **more).headers.get("x-replica") for _ in range(count))


def test_envoy_takes_the_configuration(tmp_path):
    """`envoy --mode validate` accepts it as the chart renders it."""
    config = only("envoy", "ConfigMap", "t-steersman-router")["data"]["envoy.yaml"]
    (tmp_path / "envoy.yaml").write_text(config)
    run("envoy", "--mode", "validate", "--config-path", tmp_path / "envoy.yaml")


def test_bodies_and_ids_pass_untouched(routed):
    """Both replicas get requests, with the very bytes and the request id that the client sent."""
    client, *_ = routed
    assert answering(client).keys() == {"a", "b"}
    body = b'{"steering": [{"vector_id": "v", "strength": 0.80}],  "stream":false}'
    answer = client.post("/v1/chat/completions", content=body, headers={"x-request-id": "my-own-id"})
    assert answer.content == body
    assert answer.headers["x-got"] == "my-own-id"


def test_a_session_stays_with_its_replica(routed):
    """All requests of one session reach one replica; sessions are spread over both."""
    client, *_ = routed
    homes = {session: answering(client, 5, session=session) for session in map(str, range(16))}
    assert all(len(home) == 1 for home in homes.values())
    assert {next(iter(home)) for home in homes.values()} == {"a", "b"}


def test_a_draining_replica_is_left_and_comes_back(routed):
    """Seconds after its first 503 on /readyz nothing reaches it, not even its sessions; later it is back."""
    client, first, _ = routed
    first.draining = True
    time.sleep(4)
    before = first.seen
    sessions = Counter()
    for session in map(str, range(16)):
        sessions += answering(client, 2, session=session)
    assert sessions == {"b": 32}
    assert answering(client) == {"b": 20}
    assert first.seen == before
    first.draining = False
    wait(lambda: "a" in answering(client, 6))


def test_a_killed_replica_costs_no_request(routed):
    """Requests that cannot connect are tried at the other replica."""
    client, first, _ = routed
    first.stop()
    answers = [ask(client).status_code for _ in range(20)]
    assert answers == [200] * 20


def test_what_a_stopping_replica_refuses_the_other_answers(routed):
    """From its first refusal on, before any health check has seen it, however sessions lie on the ring."""
    client, first, _ = routed
    first.refusing = True
    answers = [ask(client, session=session) for session in (None, *map(str, range(100)))]
    assert {(answer.status_code, answer.headers["x-replica"]) for answer in answers} == {(200, "b")}
    assert first.seen > 0


def test_errors_of_clients_take_no_replica_out(routed):
    """Answers of 500 and 429 pass once, unrepeated, and their replica stays."""
    client, first, second = routed
    first.failing = second.limited = True
    statuses = Counter(ask(client).status_code for _ in range(30))
    assert statuses.keys() == {500, 429}
    assert first.seen + second.seen == 30
    assert min(first.seen, second.seen) >= 6
    first.failing = second.limited = False
    assert answering(client).keys() == {"a", "b"}


def test_a_stream_arrives_piece_by_piece(routed):
    """Nothing is held back until the end."""
    client, *_ = routed
    with client.stream("POST", "/stream", content=b"{}") as answer:
        arrived = [time.monotonic() for _ in answer.iter_raw()]
    assert arrived[-1] - arrived[0] > 0.5


def test_without_a_replica_the_error_is_one_that_clients_read(routed):
    """503 with Retry-After, in OpenAI's form."""
    client, first, second = routed
    first.draining = second.draining = True
    wait(lambda: ask(client).headers.get("x-replica") is None)
    answer = ask(client)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    error = answer.json()["error"]
    assert error["type"] == "router_error"
    assert error["code"] == 503
    assert error["message"]


def test_prometheus_can_scrape_it(routed):
    """Its own metrics have a port of their own, which leads to nothing else of the admin interface."""
    client, *_ = routed
    stats = client.headers["x-stats"]
    assert "envoy_cluster_upstream_rq_total" in httpx.get(f"{stats}/stats/prometheus").text
    assert httpx.get(f"{stats}/config_dump").status_code == 404
