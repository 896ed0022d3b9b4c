"""A real Prometheus that scrapes the server's own metrics and evaluates the shipped rules."""

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from server import metrics
from tests.deploy.scraping import asked, scraping
from tests.deploy.tools import ROOT


def page() -> bytes:
    """/metrics as the server would show it: our own registry's, and some of vLLM's series."""
    metrics.record_build()
    metrics.POLICY_DECISIONS.labels("accepted").inc(0)
    vllms = CollectorRegistry()
    Gauge("vllm:num_requests_waiting", "", ["model_name"], registry=vllms).labels("m").set(16)
    Counter("vllm:num_preemptions", "", ["model_name"], registry=vllms).labels("m").inc()
    return generate_latest() + generate_latest(vllms)


class Handler(BaseHTTPRequestHandler):
    page = b""

    def do_GET(self):
        body = self.page
        self.send_response(200 if self.path == "/metrics" else 404)
        self.send_header("content-length", str(len(body)))
        self.send_header("content-type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory):
    """The address of one that scrapes the page above."""
    # Made by a process of its own: this one's registry has what other tests counted.
    write = "import sys; from tests.deploy.test_prometheus import page; sys.stdout.buffer.write(page())"
    Handler.page = subprocess.check_output([sys.executable, "-c", write], cwd=ROOT)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with scraping(tmp_path_factory.mktemp("prometheus"), f"127.0.0.1:{server.server_port}") as address:
            yield address
    finally:
        server.shutdown()
        server.server_close()


def test_a_replica_is_scraped(prometheus):
    """The job is `steersman`, its page is read, and a recording rule sums what it says."""
    assert asked(prometheus, 'up{job="steersman"}') == [1]
    assert asked(prometheus, "steersman_build_info") == [1]
    assert asked(prometheus, "model:vllm_num_requests_waiting:sum") == [16]


def test_every_rule_evaluates(prometheus):
    """No rule fails on what is scraped, and the one that has a reason begins to wait."""
    assert asked(prometheus, 'ALERTS{alertname="SteersmanQueueGrowing", alertstate="pending"}') == [1]
    groups = httpx.get(f"{prometheus}/rules").json()["data"]["groups"]
    states = {
        rule["name"]: (rule["health"], rule.get("lastError")) for group in groups for rule in group["rules"]
    }
    assert len(states) > 15
    assert {name: state for name, state in states.items() if state[0] != "ok"} == {}
    # A replica is down until it was scraped.
    assert asked(prometheus, '(count(ALERTS{alertname!="SteersmanQueueGrowing"}) or vector(0)) == 0') == [0]
