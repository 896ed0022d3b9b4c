"""Embeddings, in OpenAI's dialect and Adaptive's: asked of the server that embeds, counted here."""

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.addressing import within
from server.auth import Principal
from server.calls import spend
from server.embedding_server import EmbeddingServer
from server.embeddings_wire import AdaptiveEmbeddingsRequest, Asked, Embedded, EmbeddingsRequest
from server.errors import NotSupported
from server.observation import observed
from server.roles import Role
from server.routes.body import JsonRoute
from server.state import ServerState
from server.vllm_serving import guarded

router = APIRouter(route_class=JsonRoute, tags=["Embeddings"])


@router.post("/v1/embeddings")
@guarded
async def create_embeddings(request: EmbeddingsRequest, raw_request: Request) -> Response:
    server = _server(raw_request)
    embedded = await _embedded(request.asked(await server.resolve(request.model)), server, raw_request)
    return _json(await asyncio.to_thread(embedded.as_openai))


@router.post("/api/v1/embeddings")
@guarded
async def create_for_adaptive(request: AdaptiveEmbeddingsRequest, raw_request: Request) -> Response:
    server = _server(raw_request)
    state: ServerState = raw_request.app.state.steersman
    principal: Principal = raw_request.state.principal
    within(await state.projects.enter(principal, request.project, needs=Role.MEMBER), raw_request)
    embedded = await _embedded(request.asked(await server.resolve(request.named)), server, raw_request)
    return _json(await asyncio.to_thread(embedded.as_adaptive))


def _server(raw: Request) -> EmbeddingServer:
    state: ServerState = raw.app.state.steersman
    if state.embeddings is None:
        raise NotSupported(
            "no server that embeds is configured: start this one with --embeddings-url URL, of any server"
            " that answers OpenAI's /v1/embeddings"
        )
    return state.embeddings


async def _embedded(asked: Asked, server: EmbeddingServer, raw: Request) -> Embedded:
    observed().resolves(asked.model)
    embedded = await server.embed(asked)
    principal: Principal = raw.state.principal
    state: ServerState = raw.app.state.steersman
    state.meter.add(principal.usage_id, prompt_tokens=embedded.prompt_tokens)
    state.tenants.spent(principal.account_id, embedded.prompt_tokens, 0)
    spend(embedded.prompt_tokens)
    observed().counts(embedded.prompt_tokens, 0, "")
    return embedded


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")
