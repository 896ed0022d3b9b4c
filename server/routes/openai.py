"""OpenAI's generation routes and model list under /v1, with Axionic's fields."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from server.addressing import STEERING, Directory, addressed
from server.auth import Principal, caller
from server.errors import InvalidRequest, NotFound, Unavailable
from server.routes import policy_answers
from server.routes.body import JsonRoute
from server.routes.evidence import evidence
from server.routes.storing import stored
from server.served_models import ServedModels
from server.vllm_responses import SteeredResponses, cancel, respond, retrieve
from server.vllm_serving import Decodable, Decoded, guarded
from server.vllm_wire import ChatRequest, CompletionRequest

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])

Caller = Annotated[Principal, Depends(caller)]

_STREAMS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}


@router.post("/v1/chat/completions", responses=_STREAMS)
@guarded
async def create_chat_completion(request: ChatRequest, raw_request: Request) -> Response:
    return await stored(await addressed(request, raw_request), raw_request, answer)


@router.post("/v1/completions", responses=_STREAMS)
@guarded
async def create_completion(request: CompletionRequest, raw_request: Request) -> Response:
    if request.store:
        raise InvalidRequest("only chat completions are stored", param="store")
    return await answer(await addressed(request, raw_request), raw_request)


@router.post("/v1/responses", responses=_STREAMS)
@guarded
async def create_response(request: SteeredResponses, raw_request: Request) -> Response:
    return await respond(await addressed(request, raw_request, binds=STEERING), raw_request)


@router.get("/v1/responses/{response_id}", responses=_STREAMS)
@guarded
async def retrieve_response(
    response_id: str, raw_request: Request, starting_after: int | None = None, stream: bool = False
) -> Response:
    return await retrieve(response_id, raw_request, starting_after=starting_after, stream=stream)


@router.post("/v1/responses/{response_id}/cancel")
@guarded
async def cancel_response(response_id: str, raw_request: Request) -> Response:
    return await cancel(response_id, raw_request)


async def answer(request: Decodable, raw: Request) -> Response:
    """For the routes of every dialect that speaks OpenAI's. Raises SteersmanError."""
    if request.policy is not None or request.policy_id is not None:
        return await policy_answers.respond(request, raw)
    if request.include_trace:
        raise InvalidRequest("include_trace has no effect without a policy", param="include_trace")
    decoded: Decoded = await raw.app.state.steersman.serving.decode(request, raw)
    headers = evidence(decoded)
    if decoded.stream is not None:
        events = request.as_events(decoded.stream)
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)
    content = request.as_body(decoded.response)
    content["steersman"] = {"method_used": decoded.plan.method_used}
    if decoded.plan.warning:
        content["steersman"]["warning"] = decoded.plan.warning
    if decoded.steered is not None:
        content["steersman"] |= decoded.steered.told()
    return JSONResponse(content, headers=headers)


@router.get("/v1/models")
async def list_models(principal: Caller, raw_request: Request) -> JSONResponse:
    """What is served, then the aliases of the caller's project."""
    directory: Directory = raw_request.app.state.steersman.directory
    served = await raw_request.app.state.openai_serving_models.show_available_models()
    body = served.model_dump()
    aliases = await directory.aliases.list(principal.account_id)
    body["data"] += [_model(directory.models, alias.key, alias.model) for alias in aliases]
    body["data"] += [_embedding(directory.models, name) for name in await _embedding_names(raw_request)]
    return JSONResponse(body)


@router.get("/v1/models/{model_id:path}")
async def retrieve_model(principal: Caller, model_id: str, raw_request: Request) -> JSONResponse:
    directory: Directory = raw_request.app.state.steersman.directory
    try:
        found = await directory.find(model_id, principal)
    except NotFound:
        if model_id not in await _embedding_names(raw_request):
            raise
        return JSONResponse(_embedding(directory.models, model_id))
    return JSONResponse(_model(directory.models, model_id, found.model))


async def _embedding_names(raw: Request) -> Sequence[str]:
    """The models of the server that embeds; none while it does not answer."""
    server = raw.app.state.steersman.embeddings
    with suppress(Unavailable):
        return await server.names() if server is not None else ()
    return ()


def _embedding(models: ServedModels, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": models.created, "owned_by": "embeddings"}


def _model(models: ServedModels, name: str, served: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": models.created,
        "owned_by": "steersman",
        "root": models.root if name == served else served,
        "max_model_len": models.max_model_len,
    }
