"""OpenAI's Responses API: vLLM's own handler, under the steering that a request asks for."""

import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from types import MappingProxyType
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import ConfigDict, JsonValue, model_validator
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest, ResponsesResponse
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import VLLMValidationError

from policies.steering import JSON_PRESET
from server.addressable import Addressable
from server.applied import Applied
from server.errors import InvalidRequest, NotFound, NotSupported, SteersmanError
from server.media_parts import media_parts
from server.observation import observed
from server.vllm_errors import translated
from server.vllm_serving import Serving
from server.vllm_steering import current_spec, during
from server.wire import AxionicFields, SteeringFields

_LAST = {"response.completed", "response.incomplete"}
_PREFIX = "resp_"


class SteeredResponses(Addressable, SteeringFields, ResponsesRequest):
    """vLLM's request with steering; Axionic's other fields are for the chat and completion routes."""

    model_config = ConfigDict(extra="forbid")

    least = MappingProxyType({"input": "?"})

    # Sent by OpenAI's clients as a matter of course; nothing here depends on them.
    safety_identifier: str | None = None
    prompt_cache_retention: str | None = None
    stream_options: dict[str, JsonValue] | None = None

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:
        elsewhere = AxionicFields.model_fields.keys() - cls.model_fields.keys()
        for field in elsewhere.intersection(data if isinstance(data, dict) else ()):
            raise VLLMValidationError(f"`{field}` is not taken on /v1/responses", parameter=field)
        return data


def own_id(account_id: str, response_id: str) -> str:
    """The id with its owner in it: what vLLM keeps (VLLM_ENABLE_RESPONSES_API_STORE) it shows to all."""
    return f"{_own_prefix(account_id)}{response_id.removeprefix(_PREFIX)}"


def _own_prefix(account_id: str) -> str:
    return f"{_PREFIX}{hashlib.sha256(account_id.encode()).hexdigest()[:16]}"


def _require_own(response_id: str, raw: Request, param: str = "response_id") -> None:
    """Raises NotFound, as for one that is not there."""
    if not response_id.startswith(_own_prefix(raw.state.principal.account_id)):
        raise NotFound(f"Response with id '{response_id}' not found.", param=param)


def _handler(raw: Request) -> Any:
    handler = raw.app.state.openai_serving_responses
    if handler is None:
        raise NotSupported("this model does not support the Responses API")
    return handler


async def retrieve(response_id: str, raw: Request, *, starting_after: int | None, stream: bool) -> Response:
    """Raises SteersmanError."""
    _require_own(response_id, raw)
    found = await _handler(raw).retrieve_responses(response_id, starting_after=starting_after, stream=stream)
    return _kept(found)


async def cancel(response_id: str, raw: Request) -> Response:
    """Raises SteersmanError."""
    _require_own(response_id, raw)
    return _kept(await _handler(raw).cancel_responses(response_id))


def _kept(found: Any) -> Response:
    if isinstance(found, ErrorResponse):
        raise translated(found)
    if isinstance(found, ResponsesResponse):
        return JSONResponse(found.model_dump(mode="json", by_alias=True))
    return StreamingResponse(_events(found, None, None), media_type="text/event-stream")


async def respond(request: SteeredResponses, raw: Request) -> Response:
    """Raises SteersmanError."""
    handler = _handler(raw)
    if request.previous_response_id is not None:
        _require_own(request.previous_response_id, raw)
    request.request_id = own_id(raw.state.principal.account_id, request.request_id)
    serving: Serving = raw.app.state.steersman.serving
    request.model = serving.models.resolve(request.model, raw.state.principal.selected_model)
    observed().resolves(request.model)
    for part in media_parts(request.input, "input", ("content", "output")):
        part.require(serving.models.modalities)
    entries = request.steering_entries()
    for path, entry in entries.items():
        if entry.preset == JSON_PRESET:
            raise InvalidRequest(
                f"{JSON_PRESET} is no vector, only a constraint: on /v1/responses, give `text.format`",
                param=path,
            )
    if entries and request.background:
        raise InvalidRequest("a steered response cannot run in the background", param="background")
    watched = await serving.watched(None, raw)
    if watched and request.background:
        raise InvalidRequest("a watched response cannot run in the background", param="background")
    steered = await serving.steer(entries, raw, watched)
    with during(steered) as kept:
        result = await handler.create_responses(request, serving.sticky(request, raw))
        if isinstance(result, ErrorResponse):
            raise translated(result)
        headers = {} if steered is None else steered.headers()
        if not isinstance(result, ResponsesResponse):
            kept.open = steered is not None
            return StreamingResponse(
                _events(result, steered, request.answers_as), media_type="text/event-stream", headers=headers
            )
        content = _named(result.model_dump(mode="json", by_alias=True), request.answers_as)
        if steered is not None:
            await steered.count()
            content["steersman"] = steered.told()
        return JSONResponse(content, headers=headers)


def _named(content: dict[str, Any], name: str | None) -> dict[str, Any]:
    """A response with the name that was asked for."""
    return {**content, "model": name or content["model"]}


async def _events(
    events: AsyncGenerator[Any, None], steered: Applied | None, name: str | None
) -> AsyncIterator[str]:
    """What was applied stands in the event that ends the response."""
    # vLLM's handler asks the engine when the stream is first read, which is in this context.
    current_spec.set(steered.spec if steered else None)
    try:
        async with aclosing(events):
            async for event in events:
                payload = event.model_dump(mode="json", by_alias=True)
                if "response" in payload:
                    payload["response"] = _named(payload["response"], name)
                if steered is not None and event.type in _LAST:
                    await steered.count()
                    payload["response"]["steersman"] = steered.told()
                yield _event(event.type, payload)
    except SteersmanError as error:
        yield _event("error", {"type": "error", "code": str(int(error.status)), "message": error.message})
    finally:
        if steered is not None:
            steered.release()


def _event(kind: str, payload: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(payload, ensure_ascii=False)}\n\n"
