"""A real Prometheus with the shipped rules, that reads one page of metrics every second."""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import yaml

from tests.conftest import free_port
from tests.deploy.tools import ROOT, tool


@contextmanager
def scraping(folder: Path, target: str) -> Iterator[str]:
    """The address of its API. Compose's configuration, every second instead of every fifteen."""
    program, port = tool("prometheus"), free_port()
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    config["global"] = dict.fromkeys(config["global"], "1s")
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
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


def asked(prometheus: str, query: str, seconds: float = 20) -> list[float]:
    """The values of an expression, once there are some."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            answer = httpx.get(f"{prometheus}/query", params={"query": query}).json()
            if values := [float(each["value"][1]) for each in answer["data"]["result"]]:
                return values
        except (httpx.TransportError, json.JSONDecodeError):
            pass
        if time.monotonic() > deadline:
            return []
        time.sleep(0.1)
