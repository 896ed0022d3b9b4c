import asyncio
import time

import httpx
import pytest
from prometheus_client import REGISTRY

from server.drain import Drain, Draining
from server.metrics import DRAINING


class Engine:
    """Notes when it was told to stop."""

    def __init__(self):
        self.stopped, self.began = [], time.monotonic()

    def shutdown(self, timeout=None):
        self.stopped.append((timeout, time.monotonic() - self.began))


class Request:
    """One open request of an app that answers with what it is told to."""

    def __init__(self, drain):
        self.drain, self.loop = drain, asyncio.get_running_loop()
        self.status = self.loop.create_future()
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(Draining(self.app, drain)), base_url="http://test"
        )
        self.answer = asyncio.create_task(self.client.post("/v1/completions"))

    async def app(self, scope, receive, send):
        status = 200 if scope["path"] in OPEN else await self.status
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def cut(self):
        self.loop.call_soon_threadsafe(self.status.set_result, 500)

    async def outlasts(self, shutdown, seconds):
        """The task of a shutdown that has begun while the request is open."""
        await until(lambda: self.drain.open)
        stopping = asyncio.create_task(asyncio.to_thread(shutdown, seconds))
        await until(lambda: self.drain.stopping)
        return stopping


async def until(condition):
    while not condition():  # noqa: ASYNC110  # what is waited for is a plain attribute
        await asyncio.sleep(0.01)


async def test_open_requests_end_before_the_engine_hears_of_it():
    """The engine is told only after the last open request, and nothing is cut."""
    drain, engine = Drain(), Engine()
    request = Request(drain)
    stopping = await request.outlasts(drain.before(engine.shutdown, request.cut), 30)
    await asyncio.sleep(0.2)
    assert engine.stopped == []
    request.status.set_result(200)
    await stopping
    assert (await request.answer).status_code == 200
    assert [timeout for timeout, _ in engine.stopped] == [2.0]


OPEN = ("/metrics", "/metrics/", "/health", "/readyz")
OPENAI = {"message": "the server is shutting down", "type": "unavailable_error", "param": None, "code": None}
AXIONIC = {"detail": "the server is shutting down"}


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/completions", {"error": OPENAI}), ("/generate", AXIONIC)],
)
async def test_new_requests_are_refused_meanwhile(path, body):
    """503 in the shape of the path, with retry-after; what watches the server is still answered."""
    DRAINING.set(0)
    drain, engine = Drain(), Engine()
    request = Request(drain)
    stopping = await request.outlasts(drain.before(engine.shutdown, request.cut), 30)
    refused = await request.client.post(path)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert refused.headers["x-steersman-draining"] == "1"
    assert refused.json() == body
    assert [(await request.client.get(each)).status_code for each in OPEN] == [200] * 4
    assert REGISTRY.get_sample_value("steersman_draining") == 1
    request.status.set_result(200)
    await asyncio.gather(stopping, request.answer)


async def test_what_outlasts_the_limit_is_cut():
    """At the limit open requests are failed, so that clients are told, and the engine is stopped after."""
    drain, engine = Drain(), Engine()
    request = Request(drain)
    await (await request.outlasts(drain.before(engine.shutdown, request.cut), 0.4))
    assert (await request.answer).status_code == 500
    ((timeout, after),) = engine.stopped
    assert timeout == pytest.approx(0.1)
    assert after >= 0.3


def test_no_limit_is_no_wait():
    """A shutdown without a timeout is vLLM's own cleaning up: it neither waits nor cuts."""
    drain, engine = Drain(), Engine()
    drain.open = 1
    drain.before(engine.shutdown, lambda: pytest.fail("cut"))()
    assert [timeout for timeout, _ in engine.stopped] == [None]
    assert not drain.stopping
