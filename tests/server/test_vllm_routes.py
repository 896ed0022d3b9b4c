"""Every route of the app as vLLM builds it: declared in `tests/access.py`, behind a key. Needs no engine."""

import re
from urllib.parse import unquote

import pytest
from vllm.entrypoints.launchers.app import build_app

from server import vllm_launch
from server.auth import _OPEN_PATHS
from server.operator_routes import is_operators
from tests.access import ROUTES, Access, guarded, plain_path, spellings

DEVELOPMENT = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}


def built(directory, *flags, **environ):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"VLLM_PLUGINS": "steersman", **environ}.items():
            patch.setenv(name, value)
        args = vllm_launch._parse(["model", "--home", str(directory), *flags])
        return build_app(args, ("generate",))


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    return built(tmp_path_factory.mktemp("home"), "--allowed-origins", '["*"]')


@pytest.fixture(scope="module")
def development(tmp_path_factory):
    return built(tmp_path_factory.mktemp("home"), "--enable-scale-out", **DEVELOPMENT)


def declared(app):
    """Each method and path; a mount is one for all methods."""
    return {
        f"{method} {route.path}"
        for route in app.routes
        for method in (getattr(route, "methods", None) or {"*"}) - {"HEAD"}
    }


async def answered(app, method, path, *headers, kind="http"):
    """What the app sends to one request without a key, as an ASGI server would hand it in."""
    scope = {
        "type": kind,
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": app.root_path,
        "scheme": "http" if kind == "http" else "ws",
        "server": ("localhost", 80),
        "client": ("127.0.0.1", 1),
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json"), *headers],
        **({"subprotocols": []} if kind == "websocket" else {}),
    }
    sent = []

    async def receive():
        return {"type": f"{kind}.{'request' if kind == 'http' else 'connect'}", "body": b"{}"}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    return sent


async def status(app, method, path, *headers):
    return (await answered(app, method, path, *headers))[0]["status"]


def test_every_route_says_whose_things_it_shows(app):
    """The table has each method and path that the app serves, and none that it does not."""
    assert declared(app) == ROUTES.keys()


def test_open_is_what_the_table_says(app):
    """No other paths are let through without a key."""
    opened = {plain_path(route) for route, access in ROUTES.items() if access is Access.OPEN}
    console = {"/console", "/console/{file}"}
    assert opened == {path.rstrip("/") for path in _OPEN_PATHS} | console


@pytest.mark.parametrize("route", guarded())
async def test_without_a_key_a_route_is_refused(app, route):
    """By its own method, by others, and however its path is written."""
    method, path = route.split(" ")[0], re.sub(r"\{\w+\}", "x", plain_path(route))
    for asked in {method, "GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE"}:
        assert await status(app, asked, path) == 401, asked
    for written in spellings(path):
        assert await status(app, method, written) == 401, written


@pytest.mark.parametrize("route", guarded())
async def test_a_preflight_learns_nothing(app, route):
    """What a browser asks before it sends a key has no body but its middleware's own word."""
    asking = ((b"origin", b"https://evil.example"), (b"access-control-request-method", b"GET"))
    start, body, *_ = await answered(app, "OPTIONS", plain_path(route), *asking)
    assert start["status"] == 200
    assert body["body"] == b"OK"


@pytest.mark.parametrize("route", guarded())
async def test_a_socket_is_closed_without_a_key(app, route):
    """Whatever there may be to connect to."""
    sent = await answered(app, "GET", plain_path(route), kind="websocket")
    assert [(message["type"], message["code"]) for message in sent] == [("websocket.close", 1008)]


async def test_what_is_no_route_asks_for_a_key_too(app):
    """Below an open path as anywhere: nobody learns without a key what there is."""
    below = ("/docs/x", "/health/x", "/metrics/x", "/openapi.json/x", "/auth/login/x", "/console/.x")
    for path in ("/", "/nothing", "/consoles", *below):
        assert await status(app, "GET", path) == 401, path


async def test_what_an_operator_switches_on_asks_for_a_key(development):
    """vLLM's routes for developers, for adapters and for scaling out."""
    added = declared(development) - ROUTES.keys()
    assert {"POST /collective_rpc", "GET /server_info", "POST /v1/load_lora_adapter"} <= added
    for route in added:
        method, path = route.split(" ")
        assert await status(development, method, path) == 401, route


def test_what_acts_on_the_whole_server_is_the_operator_s(development):
    """Every route of vLLM's for developers and for scaling out is known as such, and none that others use."""
    owned = {route.split(" ")[1] for route in declared(development) - ROUTES.keys()}
    owned |= {"/scale_elastic_ep", "/is_scaling_elastic_ep", "/inference/v1/abort_requests"}
    for route in declared(development):
        path = route.split(" ")[1]
        assert is_operators(path) == (path in owned), path


async def test_behind_a_prefix_the_same_is_open(tmp_path):
    """With --root-path a path is open with its prefix and without, and a prefix opens nothing."""
    app = built(tmp_path, "--root-path", "/metrics")
    for path in ("/metrics/v1/models", "/metrics/policies", "/v1/models", "/metrics/metrics/x"):
        assert await status(app, "GET", path) == 401, path
