"""A real Prometheus that scrapes the server's own metrics and evaluates the shipped rules."""

import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
import yaml
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from server import metrics
from tests.deploy.test_envoy import free_port
from tests.deploy.tools import ROOT, tool


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
    """The address of a Prometheus with compose's configuration, every second instead of every fifteen."""
    program = tool("prometheus")
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    # Made by a process of its own: this one's registry has what other tests counted.
    write = "import sys; from tests.deploy.test_prometheus import page; sys.stdout.buffer.write(page())"
    Handler.page = subprocess.check_output([sys.executable, "-c", write], cwd=ROOT)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    config["global"] = dict.fromkeys(config["global"], "1s")
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{server.server_port}"]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (folder / "rules.yaml").write_text((ROOT / "helm/files/rules.yaml").read_text())
    command = [
        program,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log
        )
    try:
        yield f"http://127.0.0.1:{port}/api/v1"
    finally:
        process.terminate()
        process.wait()
        server.shutdown()
        server.server_close()


def asked(prometheus: str, query: str) -> list[float]:
    """The values of an expression, once there are some."""
    for _ in range(200):
        try:
            answer = httpx.get(f"{prometheus}/query", params={"query": query}).json()
            if values := [float(each["value"][1]) for each in answer["data"]["result"]]:
                return values
        except (httpx.TransportError, json.JSONDecodeError):
            pass
        time.sleep(0.1)
    return []


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
    assert asked(prometheus, 'count(ALERTS{alertname!="SteersmanQueueGrowing"}) or vector(0)') == [0]
