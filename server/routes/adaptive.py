"""Adaptive Engine's generation routes under /api/v1."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.adaptive_chat import AdaptiveChatRequest
from server.adaptive_prompt import PromptRequest, as_text, chat_request
from server.addressing import addressed
from server.deadline import Deadline
from server.errors import InvalidRequest
from server.routes.body import JsonRoute
from server.routes.openai import answer
from server.routes.storing import stored
from server.vllm_serving import guarded

router = APIRouter(prefix="/api/v1", route_class=JsonRoute, tags=["Adaptive"])

_STREAMS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}


@router.post("/chat/completions", responses=_STREAMS)
@guarded
async def create_chat_completion(request: AdaptiveChatRequest, raw_request: Request) -> Response:
    return await _answered(request, raw_request)


@router.post("/completions", responses=_STREAMS)
@guarded
async def create_completion(request: PromptRequest, raw_request: Request) -> Response:
    """Of an older version: the prompt is a user's message, and stored as one."""
    body = request.chat()
    return as_text(await _answered(chat_request(body), raw_request, body))


async def _answered(
    request: AdaptiveChatRequest, raw: Request, body: Mapping[str, Any] | None = None
) -> Response:
    """`body` is what stands for the one that was sent, where another route is the right one for it."""
    state = raw.app.state.steersman
    request = await addressed(request, raw)
    if request.ab_campaign is not None and request.assignment is None:
        raise InvalidRequest(
            "ab_campaign chooses a model of an A/B test that runs: name the project alone as `model`",
            param="ab_campaign",
        )
    request.admit(state.models.modalities, state.media_hosts)
    first_token = None if request.max_ttft_ms is None else request.max_ttft_ms / 1000
    deadline = Deadline(state.settings.adaptive_seconds, first_token)
    return await deadline.within(lambda: stored(request, raw, answer, body))
