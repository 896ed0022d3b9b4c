"""Fields that vllm-router adds: dropped behind it where it added them, refused otherwise."""

import httpx
import pytest
from fastapi import APIRouter

from server.router_fields import ADDED, BehindVllmRouter
from server.routes.body import JsonRoute
from server.vllm_wire import ChatRequest, CompletionRequest
from server.wire import GenerateRequest
from tests.server.apps import routes_alone

LEAST = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "/v1/completions": {"prompt": "x"},
    "/generate": {"prompt": "x"},
}
UNKNOWN = [(path, name) for path, fields in ADDED.items() for name in fields if name != "stream"]


def strict_routes(*, behind: bool):
    """The three routes' bodies, as strict as they are, each answered with the fields that were given."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/chat/completions")
    async def chat(request: ChatRequest) -> list[str]:
        return sorted(request.model_fields_set)

    @router.post("/v1/completions")
    async def complete(request: CompletionRequest) -> list[str]:
        return sorted(request.model_fields_set)

    @router.post("/generate")
    async def generate(request: GenerateRequest) -> list[str]:
        return sorted(request.model_fields_set)

    app = routes_alone(router)

    if behind:
        app.add_middleware(BehindVllmRouter)
    return app


async def posted(path: str, body: object, *, behind: bool = True) -> httpx.Response:
    transport = httpx.ASGITransport(strict_routes(behind=behind))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post(path, json=body)


@pytest.mark.parametrize("path", LEAST)
async def test_what_the_router_adds_is_forgotten(path):
    """With the added values the request is the one that the client sent."""
    plain = await posted(path, LEAST[path], behind=False)
    added = await posted(path, LEAST[path] | dict(ADDED[path]))
    assert plain.status_code == added.status_code == 200, added.text
    assert added.json() == plain.json()


@pytest.mark.parametrize(("path", "name"), UNKNOWN)
async def test_another_value_is_refused_by_name(path, name):
    """Somebody asked for it, and would not get it. So is a number that is equal to the added value."""
    for value in (not ADDED[path][name], int(ADDED[path][name])):
        answer = await posted(path, LEAST[path] | {name: value})
        assert answer.status_code in (400, 422), answer.text
        assert name in answer.text


@pytest.mark.parametrize(("path", "name"), UNKNOWN)
async def test_without_the_router_all_are_refused(path, name):
    """The added value too."""
    answer = await posted(path, LEAST[path] | {name: ADDED[path][name]}, behind=False)
    assert answer.status_code in (400, 422)
    assert name in answer.text


async def test_what_is_no_object_passes():
    """It is refused as ever."""
    assert (await posted("/generate", [1])).status_code == 422
