"""Who gets in: the key ring, and the middleware on a small application."""

import asyncio
import hashlib
import json
from collections import Counter
from contextlib import asynccontextmanager

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute

from server import auth
from server.auth import OPERATOR, Authentication, KeyRing, Principal, current_principal
from server.errors import Unauthenticated, Unavailable
from server.roles import Role

KEY = "ax_" + "0123456789abcdef" * 3
OTHER = "ax_" + "f" * 48
ME = Principal(key_id="k1", account_id="a1", name="ci", selected_model=None)
YOU = Principal(key_id="k2", account_id="a1", name=None, selected_model="m")
OPEN = ("/health", "/metrics", "/metrics/", "/docs", "/docs/oauth2-redirect", "/openapi.json", "/version")
OPEN += ("/auth/signup", "/auth/login", "/auth/refresh")


class World:
    """An application behind `Authentication`, its store of keys, its clock and its counters."""

    def __init__(self) -> None:
        self.keys: dict[str, Principal] = {KEY: ME, OTHER: YOU}
        self.lookups: list[str] = []
        self.now = 0.0
        self.failure: Exception | None = None
        self.hangs: asyncio.Event | None = None
        self.counts: Counter[tuple[str, str]] = Counter()
        self.keyring = KeyRing(self.find, ttl=2.0, clock=lambda: self.now)
        routes = [
            Route("/{path:path}", self.answer, methods=["GET", "POST", "OPTIONS"]),
            WebSocketRoute("/{path:path}", self.talk),
        ]
        self.app = Authentication(Starlette(routes=routes), self.keyring, self.count)

    async def find(self, key: str) -> Principal | None:
        self.lookups.append(key)
        await asyncio.sleep(0)
        if self.hangs is not None:
            await self.hangs.wait()
        if self.failure is not None:
            raise self.failure
        return self.keys.get(key)

    def count(self, method: str, outcome: str) -> None:
        self.counts[method, outcome] += 1

    async def answer(self, request) -> JSONResponse:
        principal = getattr(request.state, "principal", None)
        assert current_principal.get(None) == principal
        return JSONResponse(principal and principal.key_id)

    async def talk(self, socket) -> None:
        await socket.accept()
        await socket.send_text(socket.state.principal.key_id)
        await socket.close()

    async def get(self, path: str = "/models", method: str = "GET", **headers: str) -> httpx.Response:
        transport = httpx.ASGITransport(self.app)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, headers=named)


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize(
    ("headers", "method"),
    [
        ({"x_api_key": KEY}, "x-api-key"),
        ({"X_API_KEY": f" {KEY} "}, "x-api-key"),
        ({"authorization": f"Bearer {KEY}"}, "bearer"),
        ({"authorization": f"bearer   {KEY}"}, "bearer"),
        ({"x_api_key": KEY, "authorization": f"Bearer {OTHER}"}, "x-api-key"),
        ({"x_api_key": "", "authorization": f"Bearer {KEY}"}, "bearer"),
        ({"x_api_key": KEY, "authorization": "Basic dXNlcg=="}, "x-api-key"),
    ],
)
async def test_a_key_opens_in_either_header(world, headers, method):
    """Both headers are taken on every route, `x-api-key` before `Authorization`, and counted by name."""
    for path in ("/models", "/v1/models"):
        response = await world.get(path, **headers)
        assert (response.status_code, response.json()) == (200, "k1")
    assert world.counts == {(method, "ok"): 2}
    assert current_principal.get(None) is None


@pytest.mark.parametrize(
    ("headers", "counted", "says"),
    [
        ({}, ("none", "missing"), "No API key was sent"),
        ({"authorization": "Bearer "}, ("bearer", "missing"), "No API key was sent"),
        ({"x_api_key": ""}, ("none", "missing"), "No API key was sent"),
        ({"authorization": "Basic dXNlcg=="}, ("none", "invalid"), "`Bearer KEY`"),
        ({"authorization": KEY}, ("none", "invalid"), "`Bearer KEY`"),
        ({"authorization": "Bearer sk-123"}, ("bearer", "invalid"), "48 hexadecimal digits"),
        ({"x_api_key": KEY[:-1]}, ("x-api-key", "invalid"), "48 hexadecimal digits"),
        ({"x_api_key": KEY.upper()}, ("x-api-key", "invalid"), "48 hexadecimal digits"),
        ({"x_api_key": "ax_" + "0" * 48}, ("x-api-key", "invalid"), "unknown or was revoked"),
        ({"x_api_key": KEY[:11] + "0" * 40}, ("x-api-key", "invalid"), "unknown or was revoked"),
        ({"x_api_key": "sk-1", "authorization": f"Bearer {KEY}"}, ("x-api-key", "invalid"), "48 hex"),
    ],
)
async def test_each_refusal_says_what_is_wrong(world, headers, counted, says):
    """Every way to fail is a 401 in the shape of the route's family, with its own message and counter."""
    await world.keyring.principal(KEY)  # a cached neighbour must not let others in
    response = await world.get("/policies", **headers)
    message = response.json()["detail"]
    assert (response.status_code, response.json()) == (401, {"detail": message})
    assert says in message
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["content-type"] == "application/json"
    response = await world.get("/v1/chat/completions", "POST", **headers)
    assert response.status_code == 401
    assert response.json() == {
        "error": {
            "message": message,
            "type": "authentication_error",
            "param": None,
            "code": "invalid_api_key",
        },
        "detail": message,
    }
    assert world.counts == {counted: 2}
    sent = [value.removeprefix("Bearer ").strip() for value in headers.values()]
    assert not any(value in response.text for value in sent if value)


@pytest.mark.parametrize("path", OPEN)
async def test_open_paths_need_no_key(world, path):
    """Health, metrics, documentation, version and what gives credentials answer anybody and count nothing."""
    assert (await world.get(path)).status_code == 200
    assert world.counts == {}
    assert world.lookups == []


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/ping",
        "/load",
        "/health/",
        "//health",
        "/health/x",
        "/metrics/x",
        "/v1/health",
        "/HEALTH",
        "/docs/",
        "/redoc",
        "/tokenize",
        "/invocations",
        "/auth/whoami",
        "/auth/login/",
        "/auth/change-password",
        "/health%2f",
        "/unknown",
    ],
)
async def test_every_other_path_needs_a_key(world, path):
    """Only exact matches are open; vLLM's own `/ping` and `/load` and unknown paths are not."""
    assert (await world.get(path)).status_code == 401


async def test_a_mounted_application_opens_the_same_paths(world):
    """Behind a root path the open paths and the family of an error are those that the router sees."""
    transport = httpx.ASGITransport(world.app, root_path="/llm")
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/llm/health")).status_code == 200
        assert (await client.get("/llmhealth")).status_code == 401
        assert (await client.get("/llm/llm/health")).status_code == 401
        refused = await client.get("/llm/v1/models")
    assert refused.json()["error"]["code"] == "invalid_api_key"


async def test_only_preflights_pass_without_a_key(world):
    """A browser's CORS preflight passes; any other OPTIONS request needs a key."""
    preflight = {"origin": "http://page", "access_control_request_method": "POST"}
    assert (await world.get("/v1/models", "OPTIONS", **preflight)).status_code == 200
    assert (await world.get("/v1/models", "OPTIONS", origin="http://page")).status_code == 401
    assert (await world.get("/v1/models", "OPTIONS")).status_code == 401
    assert (await world.get("/v1/models", "POST", **preflight)).status_code == 401


async def converse(app, headers, extensions=None) -> list[dict]:
    """What a server would send for a WebSocket handshake with these headers."""
    sent: list[dict] = []

    async def receive() -> dict:
        return {"type": "websocket.connect"}

    async def send(message) -> None:
        sent.append(message)

    scope = {
        "type": "websocket",
        "path": "/v1/realtime",
        "headers": headers,
        "query_string": b"",
        "extensions": extensions or {},
    }
    await app(scope, receive, send)
    return sent


async def test_websockets_need_a_key(world):
    """A handshake without a key is refused before it is accepted; with one it reaches the application."""
    [closed] = await converse(world.app, [])
    assert (closed["type"], closed["code"]) == ("websocket.close", 1008)
    start, body = await converse(world.app, [], {"websocket.http.response": {}})
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 401)
    assert json.loads(body["body"])["error"]["code"] == "invalid_api_key"
    accepted, said, _ = await converse(world.app, [(b"authorization", f"Bearer {KEY}".encode())])
    assert (accepted["type"], said["text"]) == ("websocket.accept", "k1")


async def test_the_lifespan_passes(world):
    """Start-up and shutdown messages are none of this middleware's business."""
    seen = []

    @asynccontextmanager
    async def lifespan(app):
        seen.append("start")
        yield
        seen.append("stop")

    app = Authentication(Starlette(lifespan=lifespan), world.keyring, world.count)
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive():
        return next(messages)

    async def send(message):
        pass

    await app({"type": "lifespan"}, receive, send)
    assert seen == ["start", "stop"]


async def test_an_outage_of_the_store_is_a_503(world):
    """While the store is away an unknown key is not called wrong, and nothing is counted."""

    async def find(key):
        raise Unavailable("The database does not answer.", retry_after=1)

    world.app._keyring = KeyRing(find, ttl=2.0)
    response = await world.get("/v1/models", x_api_key=KEY)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["type"] == "unavailable_error"
    assert world.counts == {}


async def test_a_revoked_key_works_no_longer_than_the_ttl(world):
    """A revocation elsewhere takes effect when the cached entry has expired, and not a request later."""
    assert (await world.get(x_api_key=KEY)).status_code == 200
    del world.keys[KEY]
    world.now = 1.99
    assert (await world.get(x_api_key=KEY)).status_code == 200
    world.now = 2.0
    assert (await world.get(x_api_key=KEY)).status_code == 401


async def test_known_keys_go_on_while_the_store_is_away(world):
    """For ten minutes after they were looked up; then, or unknown here, they are 503; back, it is asked."""
    assert (await world.get(x_api_key=KEY)).status_code == 200
    world.failure = Unavailable("The database does not answer.", retry_after=1)
    world.now = 2.0 + 599
    assert (await world.get(x_api_key=KEY)).status_code == 200
    assert (await world.get(x_api_key=OTHER)).status_code == 503
    assert (await world.get(x_api_key=KEY[:11] + "0" * 40)).status_code == 503  # the same prefix
    world.now = 2.0 + 600
    assert (await world.get(x_api_key=KEY)).status_code == 503
    world.failure = None
    assert (await world.get(x_api_key=KEY)).status_code == 200


async def test_a_revoked_key_stays_so_while_the_store_is_away(world):
    """Whether this process revoked it, or had heard of it."""
    for key in (KEY, OTHER):
        await world.keyring.principal(key)
    world.now = 2.0
    del world.keys[KEY]
    assert (await world.get(x_api_key=KEY)).status_code == 401
    world.keyring.forget("k2")
    world.failure = Unavailable("The database does not answer.", retry_after=1)
    assert {(await world.get(x_api_key=key)).status_code for key in (KEY, OTHER)} == {503}


async def test_a_store_that_hangs_holds_no_known_key_up(world, monkeypatch):
    """It is waited for a moment only, but by those whose key nobody knows."""
    monkeypatch.setattr(auth, "PATIENCE_SECONDS", 0.05)
    await world.keyring.principal(KEY)
    world.now, world.hangs = 2.0, asyncio.Event()
    assert (await world.get(x_api_key=KEY)).status_code == 200
    unknown = asyncio.create_task(world.get(x_api_key=OTHER))
    await asyncio.sleep(0.1)
    assert not unknown.done()
    world.hangs.set()
    assert (await unknown).status_code == 200


async def test_a_forgotten_key_is_looked_up_at_once(world):
    """After `forget` the next request asks the store, and other keys stay cached."""
    for key in (KEY, OTHER, KEY, OTHER):
        await world.keyring.principal(key)
    assert world.lookups == [KEY, OTHER]
    del world.keys[KEY]
    world.keyring.forget("k1")
    assert await world.keyring.principal(KEY) is None
    assert await world.keyring.principal(OTHER) == YOU
    assert world.lookups == [KEY, OTHER, KEY]


@pytest.mark.parametrize(
    "path", ["/collective_rpc", "/pause", "/pause/", "/v1/load_lora_adapter", "/adapters/a"]
)
async def test_what_acts_on_the_whole_server_is_the_operator_s(world, path):
    """Its own keys open it, unless they are less than its owner's; nobody else's do."""
    world.keys[OTHER] = Principal("k2", OPERATOR, None, None)
    limited = "ax_" + "d" * 48
    world.keys[limited] = Principal("k4", OPERATOR, None, None, limit=Role.MEMBER, role=Role.MEMBER)
    answers = [await world.get(path, "POST", **{"x-api-key": key}) for key in (KEY, OTHER, limited)]
    assert [answer.status_code for answer in answers] == [403, 200, 403]


async def test_the_keys_of_a_forgotten_account_are_looked_up(world):
    """After `forget_account` all of them are, and those of other accounts stay cached."""
    stranger = "ax_" + "e" * 48
    world.keys[stranger] = Principal(key_id="k3", account_id="a2", name=None, selected_model=None)
    for key in (KEY, OTHER, stranger):
        await world.keyring.principal(key)
    world.keyring.forget_account("a1")
    world.lookups.clear()
    for key in (KEY, OTHER, stranger):
        await world.keyring.principal(key)
    assert world.lookups == [KEY, OTHER]


class Sessions:
    """Knows one access token, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.failure: Exception = Unauthenticated("no such session")

    async def principal(self, token: str) -> Principal:
        self.asked.append(token)
        if token == "good.access.token":
            return Principal(None, "a1", None, None, "s1")
        raise self.failure


@pytest.fixture
def sessions(world) -> Sessions:
    made = Sessions()
    world.app = Authentication(world.app.app, world.keyring, world.count, made.principal)
    return made


async def test_bearer_carries_a_session_too(world, sessions):
    """A token opens every route, keys go on working beside it, and each is counted under its own name."""
    for path in ("/models", "/v1/models"):
        response = await world.get(path, authorization="Bearer good.access.token")
        assert (response.status_code, response.json()) == (200, None)
        assert (await world.get(path, authorization=f"Bearer {KEY}")).json() == "k1"
    assert world.counts == {("session", "ok"): 2, ("bearer", "ok"): 2}
    assert sessions.asked == ["good.access.token"] * 2


async def test_a_refused_session_says_why(world, sessions):
    """In the shape of the route's family; an outage is a 503 and not counted."""
    response = await world.get("/v1/models", authorization="Bearer a.b.c")
    assert (response.status_code, response.json()["error"]["message"]) == (401, "no such session")
    assert world.counts == {("session", "invalid"): 1}
    sessions.failure = Unavailable("away", retry_after=1)
    assert (await world.get("/v1/models", authorization="Bearer a.b.c")).status_code == 503
    assert world.counts == {("session", "invalid"): 1}


async def test_x_api_key_carries_keys_alone(world, sessions):
    """A token there is no key, and a server without accounts has no sessions."""
    assert (await world.get(x_api_key="good.access.token")).status_code == 401
    world.app = Authentication(world.app.app, world.keyring, world.count)
    assert (await world.get(authorization="Bearer good.access.token")).status_code == 401
    assert sessions.asked == []


async def test_only_known_keys_are_cached(world):
    """A key works as soon as it exists, and text that is no key never reaches the store."""
    fresh = "ax_" + "a" * 48
    assert await world.keyring.principal(fresh) is None
    world.keys[fresh] = YOU
    assert await world.keyring.principal(fresh) == YOU
    world.lookups.clear()
    for text in ("", "ax_", "sk-1", KEY + "0", "é" * 51):
        assert await world.keyring.principal(text) is None
    assert world.lookups == []


async def test_the_cache_compares_whole_keys(world):
    """A key that shares a cached key's public prefix is another key, and does not push it out."""
    await world.keyring.principal(KEY)
    twin = KEY[:11] + "0" * 40
    assert await world.keyring.principal(twin) is None
    assert await world.keyring.principal(KEY) == ME
    assert world.lookups == [KEY, twin]


async def test_simultaneous_requests_share_one_lookup(world):
    """A burst with one key costs one query, and a request that goes away does not break it for the rest."""
    burst = [asyncio.create_task(world.keyring.principal(KEY)) for _ in range(20)]
    await asyncio.sleep(0)
    burst[0].cancel()
    found = await asyncio.gather(*burst, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert found[1:] == [ME] * 19
    assert world.lookups == [KEY]


async def test_a_lookup_overtaken_by_a_change_is_not_kept(world):
    """A record read before `forget` answers those who waited for it and nobody after."""
    released = asyncio.Event()

    async def find(key):
        principal = world.keys.get(key)
        world.lookups.append(key)
        await released.wait()
        return principal

    keyring = KeyRing(find, ttl=2.0)
    early = asyncio.create_task(keyring.principal(KEY))
    await asyncio.sleep(0.01)
    del world.keys[KEY]
    keyring.forget("k1")
    late = asyncio.create_task(keyring.principal(KEY))
    await asyncio.sleep(0.01)
    released.set()
    assert await early == ME
    assert await late is None
    assert await keyring.principal(KEY) is None


async def test_a_cache_hit_stores_no_plain_key(world):
    """What stays in memory between requests is the hash of a key."""
    await world.keyring.principal(KEY)
    [known] = world.keyring._known.values()
    assert known.digest == hashlib.sha256(KEY.encode()).hexdigest()
    assert KEY[11:] not in repr(vars(world.keyring))
