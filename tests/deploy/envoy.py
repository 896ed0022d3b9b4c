"""A real Envoy with the chart's own configuration, before replicas on this machine."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.conftest import free_port
from tests.deploy.chart import only
from tests.deploy.tools import tool


@dataclass(frozen=True)
class Router:
    """`url` is for clients, `stats` for Prometheus."""

    url: str
    stats: str


def configuration(*replicas: int) -> tuple[Mapping[str, Any], Router]:
    """As rendered, on ports of its own; `replicas` are ports, which stand where DNS would name pods."""
    text = json.dumps(yaml.safe_load(only("envoy", "ConfigMap", "t-steersman-router")["data"]["envoy.yaml"]))
    ports = {8080: free_port(), 9901: free_port(), 9902: free_port()}
    for old, new in ports.items():
        text = text.replace(f'"port_value": {old}', f'"port_value": {new}')
    config: dict[str, Any] = json.loads(text.replace('"0.0.0.0"', '"127.0.0.1"'))
    for cluster in config["static_resources"]["clusters"][:2]:
        assert cluster["type"] == "STRICT_DNS"
        cluster["type"] = "STATIC"
        del cluster["dns_lookup_family"]
        cluster["load_assignment"]["endpoints"][0]["lb_endpoints"] = [
            {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
            for port in replicas
        ]
    return config, Router(f"http://127.0.0.1:{ports[8080]}", f"http://127.0.0.1:{ports[9902]}")


@contextmanager
def routing(folder: Path, *replicas: int) -> Iterator[Router]:
    """It runs, whether the replicas do or not. Skips the test where Envoy is not installed."""
    config, router = configuration(*replicas)
    path = folder / "envoy.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [tool("envoy"), "--config-path", path, "--disable-hot-restart", "--concurrency", "2"]
    with (folder / "envoy.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait(lambda: httpx.get(f"{router.stats}/ready").status_code == 200)
        yield router
    finally:
        process.terminate()
        process.wait()


def wait(true: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if true():
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("not within the time")
