"""Oxen.ai's AI routes under /api/ai: chat completions and the models it lists."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from server import oxen_wire
from server.addressing import addressed
from server.errors import InvalidRequest, NotFound, NotSupported
from server.oxen_chat import OxenChatRequest
from server.oxen_wire import Model, Models
from server.routes.body import JsonRoute
from server.routes.dependencies import Caller, State
from server.routes.openai import answer
from server.routes.storing import stored
from server.served_models import ServedModels
from server.vllm_serving import guarded

router = APIRouter(prefix="/api/ai", route_class=JsonRoute, tags=["Oxen.ai"])

Live = Annotated[
    Literal["live"] | None, Query(alias="deployment_status", description="it is live either way")
]
_STREAMS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}


async def _first_asked(raw: Request, state: State, principal: Caller) -> None:
    """What Oxen tells in words of its own, which stand before whatever else is wrong with a body."""
    body = await raw.json() if await raw.body() else {}
    if not isinstance(body, dict):
        return
    model = body.get("model")
    if model is None or model == "":
        raise InvalidRequest("You must specify a model to call", param="model")
    if isinstance(model, str):
        try:
            await state.directory.find(model, principal)
        except NotFound as error:
            raise InvalidRequest(f"Model not found: {model}", param="model", code=error.reason) from error
    if body.get("messages") == []:
        raise InvalidRequest("Messages array cannot be empty", param="messages")


@router.post("/chat/completions", responses=_STREAMS, dependencies=[Depends(_first_asked)])
@guarded
async def create_chat_completion(request: OxenChatRequest, raw_request: Request) -> Response:
    state = raw_request.app.state.steersman
    for part in request.media:
        part.admit(state.models.modalities, state.media_hosts)
    return await stored(await addressed(request, raw_request), raw_request, answer)


@router.get("/models")
async def list_models(
    state: State,
    developer_name: str | None = None,
    provider_name: str | None = None,
    action: Annotated[str | None, Query(description="of fine-tuning, which no served model has")] = None,
) -> Models:
    found = [] if action else oxen_wire.listed(state.models)
    if provider_name:
        found = [each for each in found if each.owned_by == provider_name]
    if developer_name:
        found = [each for each in found if each.developer and each.developer.name == developer_name]
    return Models(data=found)


@router.get("/models/search")
async def search_models(state: State, search: str) -> Models:
    return Models(data=[each for each in oxen_wire.listed(state.models) if each.mentions(search)])


@router.get("/models/featured")
async def list_featured_models(state: State) -> Models:
    """The base models: nobody chooses among them here."""
    return Models(data=[each for each in oxen_wire.listed(state.models) if each.model_type == "base"])


@router.get("/models/favorites")
async def list_favorite_models() -> Models:
    """None: there are no favorites here."""
    return Models(data=[])


# Decorators run from below: "x/favorite" would be the id of a model otherwise.
@router.put("/models/{model_id:path}")
@router.delete("/models/{model_id:path}")
@router.delete("/models/{model_id:path}/favorite")
@router.post("/models/{model_id:path}/favorite")
@router.post("/models/{model_id:path}/deactivate")
@router.post("/models/{model_id:path}/activate")
async def refuse_change(model_id: str, state: State) -> None:
    _found(state.models, model_id)
    raise NotSupported("what is served is chosen when the server starts: models are only listed here")


@router.get("/models/{model_id:path}")
async def retrieve_model(model_id: str, state: State, _status: Live = None) -> Model:
    return oxen_wire.listed_as(_found(state.models, model_id), state.models)


def _found(models: ServedModels, model_id: str) -> str:
    """Raises NotFound in Oxen's words."""
    try:
        return models.resolve(model_id)
    except NotFound as error:
        raise NotFound(f"Model not found: {model_id}", param="id", code=error.reason) from error
