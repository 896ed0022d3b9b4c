"""/v1/embeddings and /api/v1/embeddings, over a server that embeds of the tests' own."""

import asyncio
import socket
import struct
import sys
from base64 import b64decode
from contextlib import asynccontextmanager
from types import SimpleNamespace

import httpx
import openai
import pytest
import uvicorn

from server.auth import Principal
from server.embedding_server import EmbeddingServer
from server.errors import Forbidden, NotFound
from server.roles import Role
from server.routes.embeddings import router
from server.tenants import Tenants
from server.usage import Usage, UsageMeter
from tests.server.apps import routes_alone
from tests.server.embedding_world import NAMES, answering, packed, until, upstream, vector
from tests.server.steering_app import SignedIn

OPENAI, ADAPTIVE = "/v1/embeddings", "/api/v1/embeddings"


class Projects:
    """`default` and `shop` may be entered by members, `seen` by readers."""

    async def enter(self, principal, key, *, needs):
        assert needs is Role.MEMBER
        if key == "seen":
            raise Forbidden("you only read there")
        if key not in ("default", "shop"):
            raise NotFound(f"There is no project {key!r} that you are a member of.", param="project")
        return Principal("key", key, None, None)


@asynccontextmanager
async def opened(**options):
    """A client, what was counted, and the server behind."""
    async with upstream() as behind:
        server, meter = EmbeddingServer(behind.url, **options), UsageMeter()
        app = routes_alone(router)
        app.state.steersman = SimpleNamespace(
            embeddings=server, meter=meter, projects=Projects(), tenants=Tenants(None)
        )
        transport = httpx.ASGITransport(SignedIn(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            yield http, meter, behind
        await server.close()


@pytest.fixture
async def world():
    async with opened() as made:
        yield made


async def test_openai_s_client_reads_them(world):
    """Which asks for base64 unless it is told otherwise; both are the same numbers."""
    http, meter, behind = world
    client = openai.AsyncOpenAI(base_url="http://test/v1", api_key="key", http_client=http, max_retries=0)
    plain = await client.embeddings.create(input=["a", "b"], model="embedder")
    floats = await client.embeddings.create(input=["a", "b"], model="embedder", encoding_format="float")
    assert [asked["encoding_format"] for asked in behind.asked] == ["base64", "float"]
    for made in (plain, floats):
        assert [each.embedding for each in made.data] == [vector("a"), vector("b")]
        assert [each.index for each in made.data] == [0, 1]
        assert (made.model, made.object, made.usage.prompt_tokens, made.usage.total_tokens) == (
            "embedder", "list", 6, 6
        )  # fmt: skip
    assert meter._pending == {"key": Usage(requests=2, prompt_tokens=12)}


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("a", ["a"]),
        (["a"], ["a"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
async def test_texts_and_tokens_one_or_several(world, given, sent):
    """Every form of OpenAI's input; without a model, the first one."""
    http, _, behind = world
    response = await http.post(OPENAI, json={"input": given, "dimensions": None, "user": "u"})
    assert response.status_code == 200, response.text
    assert response.json()["model"] == NAMES[0]
    asked = {"model": NAMES[0], "input": sent, "encoding_format": "float", "user": "u"}
    assert behind.asked == [asked]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [""]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": "a", "encoding_format": "Float"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimension": 5}, "dimension"),
        ({"input": "a", "user": 5}, "user"),
    ],
)
async def test_a_wrong_body_names_its_field(world, body, param):
    """And asks nobody."""
    http, meter, behind = world
    response = await http.post(OPENAI, json=body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert (behind.asked, meter._pending) == ([], {})


async def test_another_model_is_not_found(world):
    """Those that embed are listed."""
    http, _, _ = world
    response = await http.post(OPENAI, json={"input": "a", "model": "gpt"})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (404, "model", "model_not_found")
    assert "embedder, org/other" in error["message"]


async def test_what_is_wrong_there_is_told_here(world):
    """A mistake of the client's as 400, anything else as 503 with when to come again; neither is counted."""
    http, meter, behind = world
    behind.answer = answering(400, {"error": {"message": "too long", "param": "input"}})
    response = await http.post(OPENAI, json={"input": "a"})
    assert (response.status_code, response.json()["error"]["message"]) == (400, "too long")
    behind.answer = answering(500, "")
    response = await http.post(OPENAI, json={"input": "a"})
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert meter._pending == {}


@pytest.mark.parametrize(("path", "more"), [(OPENAI, {}), (ADAPTIVE, {"model": "default"})])
async def test_without_a_server_there_are_none(path, more):
    """501 that says how to have one."""
    app = routes_alone(router)
    app.state.steersman = SimpleNamespace(embeddings=None)
    transport = httpx.ASGITransport(SignedIn(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        response = await http.post(path, json={"input": "a", **more})
    assert response.status_code == 501
    assert "--embeddings-url" in response.text


@pytest.mark.parametrize(
    ("model", "asked"),
    [
        ("default", "embedder"),
        ("shop", "embedder"),
        ("shop/default", "embedder"),
        ("shop/embedder", "embedder"),
        ("default/org/other", "org/other"),
    ],
)
async def test_adaptive_names_a_model_within_a_project(world, model, asked):
    """A project alone is its first model; a model's own name may have slashes."""
    http, meter, behind = world
    uuid = "6a5b3c1e-0000-4000-8000-000000000001"
    body = {"input": "a", "model": model, "user": uuid, "session_id": uuid, "encoding_format": "Base64"}
    response = await http.post(ADAPTIVE, json=body)
    assert response.status_code == 200, response.text
    usage = {"completion_tokens": 0, "prompt_tokens": 3, "total_tokens": 3}
    assert response.json() == {"data": [{"index": 0, "embedding": packed(vector("a"))}], "usage": usage}
    sent = {"model": asked, "input": ["a"], "encoding_format": "base64", "user": uuid}
    assert behind.asked == [sent]
    assert meter._pending == {"key": Usage(requests=1, prompt_tokens=3)}


@pytest.mark.parametrize(
    ("model", "status"), [("elsewhere/embedder", 404), ("shop/gpt", 404), ("seen", 403), ("", 422)]
)
async def test_adaptive_refuses_other_models_and_projects(world, model, status):
    """Who only reads a project asks nothing of its models."""
    http, _, behind = world
    response = await http.post(ADAPTIVE, json={"input": "a", "model": model})
    assert response.status_code in (status, 400 if status == 422 else status), response.text
    assert behind.asked == []


@pytest.mark.parametrize(
    "field",
    [
        {"input": ["a"]},
        {"encoding_format": "float"},
        {"dimensions": 0},
        {"user": "me"},
        {"session_id": "s"},
        {"other": 1},
    ],
)
async def test_adaptive_s_fields_are_checked(world, field):
    """Its capitals among them."""
    http, _, _ = world
    response = await http.post(ADAPTIVE, json={"input": "a", "model": "default", **field})
    assert response.status_code in (400, 422), response.text
    assert next(iter(field)) in response.text


def test_base64_is_little_endian_float32():
    """As OpenAI's clients unpack it; what this machine would write is no proof."""
    assert sys.byteorder == "little" or packed([1.0]) == "AACAPw=="
    assert struct.unpack("<4f", b64decode(packed(vector("a")))) == tuple(vector("a"))


async def test_a_client_that_leaves_ends_the_request():
    """Over a real connection, whose end is noticed: what it asked goes no further."""
    async with opened() as (http, _, behind):
        app = http._transport.app
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.create_task(server.serve([listener]))
            url = f"http://127.0.0.1:{listener.getsockname()[1]}{OPENAI}"
            behind.answer = hanging
            async with httpx.AsyncClient() as client:
                with pytest.raises(httpx.ReadTimeout):
                    await client.post(url, json={"input": "a"}, timeout=1)
            await until(lambda: behind.left == 1)
            server.should_exit = True
            await serving


async def hanging(request):
    await asyncio.sleep(60)
