"""Requests of keys with limits, from the door to their end: two applications on a database."""

import asyncio
from types import SimpleNamespace

import httpx
import pytest
from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from server.auth import Authentication, KeyRing
from server.calls import Calls, spend
from server.errors import InvalidRequest
from server.limiter import Limiter
from server.limiting import Limiting, is_limited
from server.limits import Limited, RateLimits
from server.metrics import RATE_LIMITED
from server.quotas import Quotas
from tests.access import ROUTES, plain_path
from tests.server.apps import routes_alone

# What generates or embeds, or computes with the model: the rest is about what is stored.
GENERATES = {
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
    "/v1/systemone",
    "/invocations",
    "/generative_scoring",
    "/inference/v1/generate",
    "/api/ai/chat/completions",
    "/api/v1/chat/completions",
    "/api/v1/completions",
    "/api/v1/embeddings",
    "/generate",
    "/sampling/generate",
    "/policies/run",
    "/policies/compare",
    "/policies/evaluate",
    "/policies/autotune",
    "/policies/{policy_id}/run",
    "/steering/generate",
    "/steering/run",
    "/steering/presets/{preset}",
    "/steering/evaluate",
    "/steering/generate-pairs",
    "/steering/evaluate/margins",
    "/sae/states",
    "/sae/generate",
    "/behaviors/create",
    "/behaviors/recompute-baselines",
}


@pytest.mark.parametrize("route", [route for route in ROUTES if route.startswith("POST ")])
def test_what_generates_counts(route):
    """And what is about stored things does not; a new route counts unless somebody says otherwise."""
    path = plain_path(route)
    free = path not in GENERATES and not path.startswith(("/v1/chat/completions/render", "/scale"))
    renders = path.endswith("render") or path in {"/scale_elastic_ep", "/inference/v1/abort_requests"}
    if not renders:  # an operator's own
        assert is_limited(path) != free, path


def test_no_spelling_leads_past_the_count():
    """What the router takes for a generating route is one; ids cannot make a free one of it."""
    for path in ("/v1/chat/completions", "/v1/chat/completions/", "/v1/chat/completions/batch", "/x"):
        assert is_limited(path), path


class World:
    """Two applications on one database, each with routes that answer as told."""

    def __init__(self, store, default=None) -> None:
        self.store, self.limiters, self.apps = store, [], []
        self.go = asyncio.Event()
        for name in ("a1", "b2"):
            limiter = Limiter(Quotas(store.database, name), default or RateLimits())
            self.limiters.append(limiter)
            app = routes_alone(self.router())
            counted = Limiting(app, limiter)
            ring = KeyRing(store.find_key, ttl=60)
            self.apps.append(Authentication(Calls(counted), ring, lambda *_: None))

    def router(self) -> APIRouter:
        router = APIRouter()

        @router.post("/v1/chat/completions")
        async def chat(request: Request):
            kind = request.query_params.get("kind")
            spend(int(request.query_params.get("tokens", 0)))
            if kind == "bad":
                raise InvalidRequest("wrong", param="x")
            if kind == "defect":
                raise RuntimeError("inside")
            if kind == "stream":
                return StreamingResponse(self.events(), media_type="text/event-stream")
            if kind == "wait":
                await self.go.wait()
            return {}

        @router.post("/generate")
        @router.post("/api/ai/chat/completions")
        @router.post("/api/v1/chat/completions")
        @router.post("/tokenize")
        async def answer():
            return {}

        return router

    async def events(self):
        yield "data: 1\n\n"
        await self.go.wait()
        yield "data: 2\n\n"

    async def client(self, which: int = 0, **limits: int) -> httpx.AsyncClient:
        key = (await self.store.create_key(None, None, rates=RateLimits(**limits))).key
        return self.of(key, which)

    def of(self, key: str, which: int = 0) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.apps[which], raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://test", headers={"x-api-key": key})

    async def settled(self) -> None:
        for limiter in self.limiters:
            await asyncio.gather(*limiter._tasks)


CHAT = "/v1/chat/completions"


@pytest.fixture
async def world(store):
    made = World(store)
    yield made
    await made.settled()


async def test_a_key_without_limits_asks_no_database(world):
    """And its answers carry no headers of limits."""
    client = await world.client()
    world.limiters[0]._quotas = SimpleNamespace()  # which answers nothing
    answer = await client.post(CHAT)
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]


async def test_an_answer_says_what_is_left(world):
    """OpenAI's headers, on answers and on refusals; a refusal says when to come back."""
    client = await world.client(requests=2, tokens=1000)
    told = [await client.post(CHAT, params={"tokens": 10}) for _ in range(2)]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in told] == ["1", "0"]
    assert told[0].headers["x-ratelimit-limit-tokens"] == "1000"
    before = RATE_LIMITED.labels(Limited.REQUESTS)._value.get()
    refused = await client.post(CHAT)
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "30"
    assert refused.headers["x-ratelimit-limit-requests"] == "2"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert refused.headers["x-ratelimit-reset-requests"].startswith(("59", "1m0"))
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert RATE_LIMITED.labels(Limited.REQUESTS)._value.get() == before + 1


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/generate", lambda body: body["detail"]),
        ("/api/ai/chat/completions", lambda body: body["error"]["message"]),
        ("/api/v1/chat/completions", lambda body: body["error"]),
    ],
)
async def test_each_dialect_has_its_shape(world, path, told):
    """429 with the words in the place where its clients look."""
    client = await world.client(requests=1)
    await client.post(path)
    refused = await client.post(path)
    assert refused.status_code == 429
    assert "1 requests a minute" in told(refused.json())
    assert int(refused.headers["retry-after"]) >= 1


async def test_what_does_not_generate_is_free(world):
    """However often it is asked."""
    client = await world.client(requests=1)
    for _ in range(3):
        assert (await client.post("/tokenize")).status_code == 200
    assert (await client.post(CHAT)).status_code == 200


async def test_replicas_admit_n_together(world):
    """Requests at once to both applications are let in as often as the limit says, whichever they reach."""
    key = (await world.store.create_key(None, None, rates=RateLimits(requests=7))).key
    clients = [world.of(key, 0), world.of(key, 1)]
    answers = await asyncio.gather(*(clients[number % 2].post(CHAT) for number in range(20)))
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [429] * 13


async def test_tokens_of_one_replica_count_on_the_other(world):
    """An answer that used more than the minute's tokens keeps the next ones out, everywhere."""
    key = (await world.store.create_key(None, None, rates=RateLimits(tokens=100))).key
    assert (await world.of(key, 0).post(CHAT, params={"tokens": 150})).status_code == 200
    await world.settled()
    refused = await world.of(key, 1).post(CHAT)
    assert refused.status_code == 429
    assert "100 tokens a minute" in refused.json()["error"]["message"]
    assert 29 <= int(refused.headers["retry-after"]) <= 31


@pytest.mark.parametrize("kind", ["", "bad", "defect", "stream", "wait"])
async def test_a_place_is_given_back_however_a_request_ends(world, kind):
    """After an answer, a refusal, a defect, the end of a stream: on the other replica too."""
    key = (await world.store.create_key(None, None, rates=RateLimits(concurrent=1))).key
    running = asyncio.create_task(world.of(key).post(CHAT, params={"kind": kind}))
    if kind in ("stream", "wait"):
        await asyncio.sleep(0.2)
        refused = await world.of(key, 1).post(CHAT)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "1 requests running at once" in refused.json()["error"]["message"]
        world.go.set()
    await running
    await world.settled()
    assert (await world.of(key, 1).post(CHAT)).status_code == 200


@pytest.mark.parametrize("kind", ["stream", "wait"])
async def test_a_place_is_given_back_when_the_client_leaves(world, kind):
    """In the middle of a stream, or before an answer."""
    key = (await world.store.create_key(None, None, rates=RateLimits(concurrent=1))).key
    scope = {
        "type": "http",
        "method": "POST",
        "path": CHAT,
        "query_string": f"kind={kind}".encode(),
        "headers": [(b"x-api-key", key.encode())],
    }
    asked, begun = asyncio.Event(), asyncio.Event()

    async def receive():
        if not asked.is_set():
            asked.set()
            return {"type": "http.request", "body": b"", "more_body": False}
        await begun.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        if message.get("body"):
            begun.set()

    running = asyncio.create_task(world.apps[0](scope, receive, send))
    if kind == "wait":  # a server cancels what its client left
        await asyncio.sleep(0.2)
        running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await world.settled()
    assert (await world.of(key, 1).post(CHAT)).status_code == 200


async def test_the_server_s_default_holds_for_keys_without_limits(store):
    """Each by itself; a key of 0 has none."""
    world = World(store, RateLimits(requests=1))
    for client in (await world.client(), await world.client()):
        assert [(await client.post(CHAT)).status_code for _ in range(2)] == [200, 429]
    free = await world.client(requests=0)
    assert [(await free.post(CHAT)).status_code for _ in range(3)] == [200] * 3
    own = await world.client(requests=2)
    assert [(await own.post(CHAT)).status_code for _ in range(3)] == [200, 200, 429]
    await world.settled()
