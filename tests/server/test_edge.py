"""The outermost middleware: request ids, body limit, durations."""

import asyncio
import json
import logging

import httpx
import pytest
from fastapi import FastAPI, Request
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from starlette.responses import PlainTextResponse, StreamingResponse

from server.access_log import AccessLog
from server.edge import Edge
from server.json_log import request_id

LIMIT = 100


def application(access_log: AccessLog | None = None) -> FastAPI:
    app = FastAPI()
    app.add_middleware(Edge, max_body_bytes=LIMIT, access_log=access_log)

    @app.post("/v1/echo/{name}")
    @app.post("/echo/{name}")
    async def echo(name: str, request: Request) -> PlainTextResponse:
        return PlainTextResponse(await request.body(), headers={"x-request-id": "the app's own"})

    @app.get("/id")
    async def identity(request: Request) -> list[str]:
        return request.headers.getlist("x-request-id")

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def pieces():
            for _ in range(3):
                await asyncio.sleep(0.05)
                yield b"x"

        return StreamingResponse(pieces())

    @app.get("/broken")
    async def broken() -> None:
        raise LookupError("unforeseen")

    @app.get("/context")
    async def context() -> str | None:
        return await asyncio.create_task(noted())

    async def noted() -> str | None:
        return request_id.get()

    return app


async def call(
    method: str, path: str, access_log: AccessLog | None = None, **options: object
) -> httpx.Response:
    transport = httpx.ASGITransport(application(access_log), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(method, path, **options)


async def chunked(*pieces: bytes):
    for piece in pieces:
        yield piece


def observed(method: str, route: str, status: int, part: str = "count") -> float:
    labels = {"method": method, "route": route, "status": str(status)}
    return REGISTRY.get_sample_value(f"steersman_http_request_duration_seconds_{part}", labels) or 0.0


async def scope_call(app: Edge, sent: list[dict], headers: list[tuple[bytes, bytes]], method: str = "POST"):
    """Straight through ASGI, for what no client library would send."""
    answered: list[dict] = []

    async def receive() -> dict:
        return sent.pop(0)

    async def send(message: dict) -> None:
        answered.append(message)

    scope = {"type": "http", "method": method, "path": "/x", "headers": headers, "query_string": b""}
    await app(scope, receive, send)
    return answered


# --- request ids ---


async def test_an_id_passes_through():
    """A client's own id reaches the app and comes back, in place of any the app would send."""
    answer = await call("GET", "/id", headers={"X-Request-ID": "run-7 (a)"})
    assert answer.json() == ["run-7 (a)"]
    assert answer.headers.get_list("x-request-id") == ["run-7 (a)"]
    echoed = await call("POST", "/echo/a", content=b"x", headers={"x-request-id": "mine"})
    assert echoed.headers.get_list("x-request-id") == ["mine"]


async def test_a_missing_id_is_made():
    """A request without an id gets one of its own, which the app sees too."""
    first, second = await call("GET", "/id"), await call("GET", "/id")
    assert first.json() == [first.headers["x-request-id"]]
    assert len({first.headers["x-request-id"], second.headers["x-request-id"]}) == 2


@given(st.binary(max_size=200))
def test_ids_are_fit_for_headers_and_logs(value):
    """Whatever a client sends, the id is printable ASCII of 1 to 128 characters, its own where that fits."""
    seen: list[list[bytes]] = []

    async def app(scope, receive, send) -> None:
        seen.append([content for name, content in scope["headers"] if name == b"x-request-id"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    answered = asyncio.run(scope_call(Edge(app, LIMIT), [], [(b"x-request-id", value)], "GET"))
    ((_, id_),) = answered[0]["headers"]
    assert seen == [[id_]]
    assert 1 <= len(id_) <= 128
    assert all(0x20 <= byte <= 0x7E for byte in id_)
    fits = 1 <= len(value) <= 128 and all(0x20 <= byte <= 0x7E for byte in value)
    assert (id_ == value) is fits


async def test_what_runs_for_a_request_knows_its_id():
    """Log lines of its tasks carry it."""
    assert (await call("GET", "/context", headers={"x-request-id": "run-8"})).json() == "run-8"


# --- access log ---


async def test_a_request_is_told_once_with_its_template(caplog):
    """Method, template, status, time and id; nothing of what a client wrote into the path."""
    with caplog.at_level(logging.INFO, "server.access"):
        await call("POST", "/echo/secret", AccessLog(), content=b"x", headers={"x-request-id": "mine"})
        await call("GET", "/nowhere/secret", AccessLog())
    first, second = (record for record in caplog.records if record.name == "server.access")
    seconds = first.fields.pop("duration_seconds")
    assert 0 < seconds < 5
    assert first.fields == {"method": "POST", "route": "/echo/{name}", "status": 200}
    assert (second.fields["route"], second.fields["status"]) == ("unmatched", 404)
    assert "secret" not in caplog.text


async def test_probes_are_not_told(caplog):
    """Paths that the operator silences, and no others."""
    with caplog.at_level(logging.INFO, "server.access"):
        await call("GET", "/id", AccessLog(frozenset({"/id"})))
        await call("GET", "/stream", AccessLog(frozenset({"/id"})))
    told = [record.fields["route"] for record in caplog.records if record.name == "server.access"]
    assert told == ["/stream"]


# --- body limit ---


@pytest.mark.parametrize("size", [0, 1, LIMIT])
async def test_a_body_up_to_the_limit(size):
    """A body of just the limit arrives whole, whether its length is declared or not."""
    body = bytes(range(256))[:size]
    assert (await call("POST", "/echo/a", content=body)).content == body
    assert (await call("POST", "/echo/a", content=chunked(body[:3], b"", body[3:]))).content == body


@pytest.mark.parametrize("path", ["/echo/a", "/v1/echo/a"])
@pytest.mark.parametrize("content", [b"x" * (LIMIT + 1), (b"x" * LIMIT, b"y"), (b"x" * 9999,)])
async def test_a_larger_body(path, content):
    """One byte more is a 413 in the shape of the path's API family, with the id and a closed connection."""
    sent = content if isinstance(content, bytes) else chunked(*content)
    answer = await call("POST", path, content=sent, headers={"x-request-id": "big"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (413, "big")
    assert answer.headers["connection"] == "close"
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    message = body["error"]["message"] if path.startswith("/v1/") else body["detail"]
    assert message == f"the request body is larger than the limit of {LIMIT} bytes"


async def test_an_endless_body_is_not_read():
    """A chunked body is read up to the limit and no further."""
    reads = 0

    async def endless():
        nonlocal reads
        while True:
            reads += 1
            yield b"x" * 30

    assert (await call("POST", "/echo/a", content=endless())).status_code == 413
    assert reads == 4


async def test_half_a_body_is_a_disconnect():
    """Where the client leaves in the middle of a chunked body, the app sees that and no shorter body."""
    seen = []

    async def app(scope, receive, send) -> None:
        seen.append(await receive())

    half = {"type": "http.request", "body": b'{"a": 1}', "more_body": True}
    sent = [half, {"type": "http.disconnect"}]
    await scope_call(Edge(app, LIMIT), sent, [(b"transfer-encoding", b"chunked")])
    assert seen == [{"type": "http.disconnect"}]


async def test_after_the_body_comes_the_connection():
    """Once a chunked body was read, the app waits on the real connection, so it notices a disconnect."""
    seen = []

    async def app(scope, receive, send) -> None:
        seen.extend([await receive(), await receive()])

    parts = [
        {"type": "http.request", "body": b"a", "more_body": True},
        {"type": "http.request", "body": b"b"},
    ]
    sent = [*parts, {"type": "http.disconnect"}]
    await scope_call(Edge(app, LIMIT), sent, [(b"transfer-encoding", b"chunked")])
    assert seen == [{"type": "http.request", "body": b"ab", "more_body": False}, {"type": "http.disconnect"}]


# --- durations ---


@pytest.mark.parametrize(
    ("method", "path", "route", "status"),
    [
        ("POST", "/echo/one", "/echo/{name}", 200),
        ("POST", "/echo/two", "/echo/{name}", 200),
        ("GET", "/nowhere/at/all", "unmatched", 404),
        ("DELETE", "/id", "/id", 405),
        ("GET", "/broken", "/broken", 500),
        ("BREW", "/id", "/id", 405),
    ],
)
async def test_durations_carry_the_route_template(method, path, route, status, caplog):
    """One observation per request, under the route's template and a known method: no label grows with what
    clients send."""
    label = "other" if method == "BREW" else method
    before = observed(label, route, status)
    with caplog.at_level(logging.CRITICAL):
        assert (await call(method, path)).status_code == status
    assert observed(label, route, status) == before + 1


async def test_a_refused_body_is_observed():
    """A 413 is counted too, though no route was looked for."""
    before = observed("POST", "unmatched", 413)
    await call("POST", "/echo/a", content=b"x" * 101)
    assert observed("POST", "unmatched", 413) == before + 1


async def test_a_stream_lasts_to_its_end():
    """The duration of a streamed response ends with its last byte."""
    before = observed("GET", "/stream", 200, "sum")
    assert (await call("GET", "/stream")).content == b"xxx"
    assert observed("GET", "/stream", 200, "sum") - before >= 0.15


async def test_other_scopes_pass():
    """What is not HTTP goes to the app as it is."""
    seen = []

    async def app(scope, receive, send) -> None:
        seen.append(scope)

    await Edge(app, LIMIT)({"type": "lifespan"}, None, None)
    assert seen == [{"type": "lifespan"}]


def test_the_413_is_json():
    """The refusal is valid JSON even where it is written without the app."""

    async def app(scope, receive, send) -> None:
        pytest.fail("the app must not see it")

    headers = [(b"content-length", b"101")]
    answered = asyncio.run(scope_call(Edge(app, LIMIT), [], headers))
    assert [message["type"] for message in answered] == ["http.response.start", "http.response.body"]
    assert json.loads(answered[1]["body"])["detail"]
