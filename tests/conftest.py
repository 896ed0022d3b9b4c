"""Fixtures of the whole suite: the embedded model, and one live server that all tests share."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from hypothesis import settings
from safetensors.numpy import load

from server import embedded
from server.saes import SaeCard, StoredSae, write
from server.settings import Settings
from steering.sae import train
from steering.sae.quality import measure
from tests.live.steered import PAIRS

START_SECONDS = 480
LONG = ("live", "steering")  # folders of tests
OWN_SERVERS = (
    "test_lifecycle.py",
    "test_accounts.py",
    "test_media.py",
    "test_embeddings.py",
    "test_replicas.py",
)  # files of tests/live that start servers themselves

# How long an example takes says what else the machine does.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@dataclass(frozen=True)
class LiveServer:
    """A server process of our own, its first key and its log."""

    url: str
    key: str
    process: subprocess.Popen[bytes]
    log: Path
    home: Path

    def client(self, **options: object) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=600, **options)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_server(
    home: Path,
    *flags: str,
    environ: dict[str, str] | None = None,
    database_url: str | None = None,
    port: int | None = None,
) -> LiveServer:
    """Run `steersman serve` with its data under `home` and wait until it is ready."""
    port, log = port or free_port(), home / "server.log"
    home.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "server", "serve", *flags]
    command += ["--port", str(port), "--host", "127.0.0.1"]
    command += ["--database-url", database_url or f"sqlite+aiosqlite:///{home / 'test.db'}"]
    # pytest's own warning filters are for this process alone
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=inherited | {"PYTHONUNBUFFERED": "1"} | (environ or {}),
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    while b"Steersman is ready" not in log.read_bytes():
        if process.poll() is not None or time.monotonic() > deadline:
            stop(process)
            pytest.fail(f"the server did not start:\n{log.read_text()[-6000:]}")
        time.sleep(0.3)
    # As a line of its own, or as the message of one in JSON; without a first key, the last word is no key.
    told = re.search(r"^(?:.*\"message\": \")?API key[^\"\n]* (\S+?)(?:\"|$)", log.read_text(), re.MULTILINE)
    key = told[1]
    return LiveServer(f"http://127.0.0.1:{port}", key, process, log, home)


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(45)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What an upgrade of vLLM breaks is told first, not by a server that fails to start.

    Then the files that start engines, which take longest; short ones at the end keep both processes busy.
    """
    items.sort(
        key=lambda item: (item.path.name != "test_vllm_contract.py", item.path.parent.name not in LONG)
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Side by side, the tests of the shared server stay together, as those of any other file do."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            shared = file.startswith("tests/live/") and not file.endswith(OWN_SERVERS)
            return "the shared server" if shared or file == "tests/test_readme.py" else file

    return Together(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means: a second engine finds room beside the first on a CPU, but not on a GPU."""
    return 0 if torch.cuda.is_available() else min(2, os.cpu_count() or 1)


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The embedded model: real weights, made once and kept beyond the run."""
    return embedded.prepare(Settings.read().home, print)


@pytest.fixture(scope="session")
def server(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The embedded model served in float32, so that log-probabilities can be compared closely."""
    flags = ("--dtype", "float32", "--max-num-seqs", "64", "--max-model-len", "2048")
    home = tmp_path_factory.mktemp("live")
    (home / "models").symlink_to(model_path.parent)  # made once, for all homes
    live = start_server(home, *flags, "--home", str(home))
    yield live
    stop(live.process)


@pytest.fixture(scope="session")
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with server.client() as http:
        yield http


@pytest.fixture(scope="session")
def autoencoder(server, client) -> str:
    """The name of a small one, trained on the server's own states of some answers."""
    return small_autoencoder(client, server.home)


def small_autoencoder(client: httpx.Client, home: Path, *, passes: int = 20) -> str:
    """Its name; it lies under `home`, which is that of the server asked for its states."""
    model = client.get("/saes").json()["model"]
    layer, name = model["layers"] * 2 // 3, "tests"
    texts = [pair[field] for pair in PAIRS[:30] for field in ("positive_answer", "negative_answer")]
    response = client.post("/sae/states", json={"texts": texts, "layer": layer}, timeout=240)
    assert response.status_code == 200, response.text
    rows = load(response.content)["states"]
    options = train.Options(len(rows), latents=256, active=16, passes=passes)
    ranked = train.fit(train.skipping(lambda: [rows]), options, f"blocks.{layer}.hook_resid_post")
    sae = train.with_threshold(ranked, rows)
    quality = measure(sae, [rows])
    told = {"explained": quality.explained, "l0": quality.l0, "dead": quality.dead}
    card = SaeCard(
        name=name,
        source="tests",
        architecture="topk",
        layer=layer,
        hook=sae.hook,
        d_in=sae.d_in,
        d_sae=sae.d_sae,
        digest=sae.digest,
        model_name=model["name"],
        model_fingerprint=model["fingerprint"],
        quality=told,
        approximated=True,
        created_at="2026-01-01T00:00:00+00:00",
    )
    write(home / "saes", StoredSae(card, sae, quality.density))
    return name
