"""vllm-router as the chart starts it."""

import contextlib
import re
import subprocess
import threading

import httpx
import pytest
import uvicorn
from fastapi import Request

from server.router_fields import ADDED
from tests.conftest import free_port
from tests.deploy.chart import container, pods
from tests.deploy.envoy import wait
from tests.deploy.tools import run, tool
from tests.server.test_router_fields import LEAST, UNKNOWN, strict_routes


def test_vllm_router_has_the_flags_it_is_given():
    """Every flag is one of the version that the shape names, and the policy one of its policies."""
    router = container(dict(pods("vllm-router"))["Deployment/t-steersman-router"], "vllm-router")
    known = run("vllm-router", "--help").stdout
    assert router["image"].endswith(":0.1.17")
    flags = [argument for argument in router["args"] if argument.startswith("--")]
    assert "--disable-retries" in flags
    for flag in flags:
        assert re.search(rf"{flag}[ \]\n]", known), flag
    policy = router["args"][router["args"].index("--policy") + 1]
    assert policy in re.search(r"\[--policy \{(.*?)\}\]", known)[1].split(",")


def test_vllm_router_finds_serving_pods_of_this_release_alone():
    """It asks for pods with all labels of the serving pods, in the release's namespace."""
    args = container(dict(pods("vllm-router"))["Deployment/t-steersman-router"], "vllm-router")["args"]
    labels = dict(pods("vllm-router"))["Deployment/t-steersman"]["metadata"]["labels"]
    selector = dict(argument.split("=") for argument in args[args.index("--selector") + 1 :])
    assert selector.items() <= labels.items()
    assert {"app.kubernetes.io/instance", "app.kubernetes.io/component"} <= selector.keys()
    assert args[args.index("--service-discovery-namespace") + 1] == "serving"


@contextlib.contextmanager
def worker(*, behind):
    """The server's own strict bodies over HTTP, with its middleware or without; its URL, and the probes it
    has had."""
    app = strict_routes(behind=behind)
    asked = []

    async def probed(request: Request) -> None:
        asked.append(request.url.path)

    app.add_api_route("/health", probed)  # asked once, at the router's start
    app.add_api_route("/readyz", probed)
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait(lambda: server.started)
        yield f"http://127.0.0.1:{port}", asked
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def routed(url, log):
    """A client of a real router in front of `url`, with the chart's flags but for how it finds workers."""
    given = container(dict(pods("vllm-router"))["Deployment/t-steersman-router"], "vllm-router")["args"]
    flags = given[given.index("--policy") : given.index("--service-discovery")]
    port = free_port()
    where = ("--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port()))
    with log.open("wb") as output:
        command = [tool("vllm-router"), *where, *flags, "--worker-urls", url]
        process = subprocess.Popen(command, stdout=output, stderr=output)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        try:
            wait(lambda: client.get("/health").status_code == 200, seconds=30)
            yield client
        finally:
            process.terminate()
            process.wait()


@pytest.fixture(scope="module")
def behind(tmp_path_factory):
    log = tmp_path_factory.mktemp("router") / "log"
    with worker(behind=True) as (url, asked), routed(url, log) as client:
        yield client
        wait(lambda: "/readyz" in asked)  # by which it hears of a drain


@pytest.mark.parametrize("path", LEAST)
def test_what_the_real_router_adds_is_taken(behind, path):
    """A client's plain request is answered. Of what the router added only vLLM's own fields are left."""
    answer = behind.post(path, json=LEAST[path])
    assert answer.status_code == 200, answer.text
    assert not ADDED[path].keys() & set(answer.json())
    assert LEAST[path].keys() <= set(answer.json())


@pytest.mark.parametrize(("path", "name"), UNKNOWN)
def test_a_wish_that_passes_the_router_is_refused(behind, path, name):
    """Another value than the router's own is still refused by the field's name."""
    answer = behind.post(path, json=LEAST[path] | {name: not ADDED[path][name]})
    assert answer.status_code in (400, 422), answer.text
    assert name in answer.text


def test_without_the_option_every_field_it_adds_is_refused(tmp_path):
    """So the list of fields is neither too short nor too long for this version."""
    with worker(behind=False) as (url, _), routed(url, tmp_path / "log") as client:
        for path, body in LEAST.items():
            told = client.post(path, json=body).text
            unknown = {name for route, name in UNKNOWN if route == path}
            assert {name for _, name in UNKNOWN if f"{name}" in told} == unknown, told
