"""Axionic's own generation routes: /generate, /sampling/generate, and the models they run on.

Their prompt is what a user says: it goes through the model's chat template where there is one.
"""

import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from policies.sampling import own_fields
from policies.steering import SteeringEntry
from server.addressing import STEERING, addressed
from server.candidates import text_of
from server.errors import InvalidRequest, SteersmanError
from server.policy_requests import CONSTRAINTS, Own, native_template, overridden
from server.policy_wire import outcome_summary
from server.routes.body import JsonRoute
from server.routes.evidence import evidence, outcome_evidence
from server.served_models import ServedModels
from server.streams import sse
from server.vllm_serving import Decoded, Serving, guarded, kept_alive
from server.wire import GenerateRequest, HostedModel, NativeSampling, SamplingRequest, SamplingResponse

_KEEP_ALIVE_SECONDS = 15.0

router = APIRouter(route_class=JsonRoute, tags=["Axionic"])


@router.post("/generate", responses={200: {"content": {"text/event-stream": {}}}})
@guarded
async def generate(request: GenerateRequest, raw_request: Request) -> Response:
    return await generated(request, raw_request)


async def generated(
    request: GenerateRequest, raw: Request, steering: Mapping[str, SteeringEntry] | None = None
) -> Response:
    """`steering` stands for the request's own, as its client's paths name it."""
    serving: Serving = raw.app.state.steersman.serving
    planned = serving.plan(own_fields(request.asked(request.sampling_method)))
    events = wants_events(request.stream, raw)
    more = {"stream": events, **request.steering_fields()}
    sent = serving.prompted(request.prompt, request.model, request.max_tokens, request, **more)
    sent = await addressed(sent, raw, binds=STEERING)
    decoded = await serving.decode(sent, raw, planned, steering=steering)
    if decoded.stream is not None:
        return StreamingResponse(
            _events(decoded, decoded.stream), media_type="text/event-stream", headers=evidence(decoded)
        )
    return JSONResponse(_result(decoded), headers=evidence(decoded))


def wants_events(asked: bool | None, raw: Request) -> bool:
    """Events unless JSON is asked for: Axionic's client names no media type and reads nothing but events."""
    if asked is not None:
        return asked
    accept = raw.headers.get("accept", "")
    return "text/event-stream" in accept or "application/json" not in accept


def _result(decoded: Decoded) -> dict[str, Any]:
    text = text_of(decoded.response.choices[0])
    return _final(decoded, text)


def _final(decoded: Decoded, text: str) -> dict[str, Any]:
    result: dict[str, Any] = {"output": text, "text": text, "method_used": decoded.plan.method_used}
    if decoded.steered is not None:
        result |= decoded.steered.told()
    return result


async def _events(decoded: Decoded, stream: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """OpenAI's chunks as Axionic's events: `token` … `complete`, or `error` under HTTP 200."""
    pieces: list[str] = []
    try:
        async for event in kept_alive(stream, _KEEP_ALIVE_SECONDS):
            if not event.startswith("data: {"):
                if event.startswith(":"):
                    yield event
                continue
            chunk = json.loads(event[6:])
            if "error" in chunk:
                yield sse({"status": "error", "message": chunk["error"]["message"]})
                return
            piece = "".join(_piece(choice) for choice in chunk["choices"])
            if piece:
                pieces.append(piece)
                yield sse({"status": "token", "token": piece})
    except SteersmanError as error:
        yield sse({"status": "error", "message": error.message})
        return
    text = "".join(pieces)
    yield sse({"status": "complete", "result": _final(decoded, text)})


def _piece(choice: dict[str, Any]) -> str:
    """What a chat or a completion chunk adds to the text."""
    return (choice["delta"].get("content") if "delta" in choice else choice["text"]) or ""


# What planning calls a field → where it stands in this request.
_SAMPLING_NAMES = {
    **{field: f"params.{field}" for field in NativeSampling.model_fields},
    "sampling_method": "method",
    "best_of": "best_of_n",
}


@router.post("/sampling/generate", response_model=SamplingResponse)
@guarded
async def sampling_generate(request: SamplingRequest, raw_request: Request) -> Response:
    if request.policy is not None or request.policy_id is not None:
        return await _under_policy(request, raw_request)
    serving: Serving = raw_request.app.state.steersman.serving
    fields = request.params or NativeSampling()
    constraints = {name: value for name in CONSTRAINTS if (value := getattr(request, name)) is not None}
    method = request.method or ("guided-generation" if constraints else "top-k")
    asked = fields.asked(
        method,
        constrained=bool(constraints),
        best_of=request.best_of_n,
        ensemble_models=tuple(request.ensemble_models or ()),
        draft_model=request.draft_model,
    )
    planned = serving.plan(own_fields(asked), _SAMPLING_NAMES)
    more = {**constraints, **request.steering_fields()}
    sent = serving.prompted(request.prompt, request.model, request.max_new_tokens, fields, **more)
    sent = await addressed(sent, raw_request, binds=STEERING)
    decoded = await serving.decode(sent, raw_request, planned)
    answer = SamplingResponse(
        output=text_of(decoded.response.choices[0]),
        method_used=decoded.plan.method_used,
        **(decoded.steered.told() if decoded.steered else {}),
    )
    return JSONResponse(answer.model_dump(exclude_none=True), headers=evidence(decoded))


async def _under_policy(request: SamplingRequest, raw: Request) -> Response:
    """As /policies/run; what the request says itself wins over the policy."""
    if request.policy is not None and request.policy_id is not None:
        raise InvalidRequest("give one of policy and policy_id", param="policy_id")
    state = raw.app.state.steersman
    policy = request.policy
    if policy is None:
        policy = (await state.policies.get(raw.state.principal.account_id, request.policy_id)).policy
    params = request.params or NativeSampling()
    policy = overridden(policy.expanded(), _own(request, params), params.stop or ())
    template = native_template(
        state.serving,
        request.prompt,
        policy,
        model=request.model,
        max_tokens=request.max_new_tokens,
        seed=params.seed,
        steering=request.steering_fields(),
    )
    template = await addressed(template, raw, binds=())
    outcome = await state.policy_runs.run(policy, template, raw)
    winner = outcome.winner.answer
    answer = SamplingResponse(
        output=winner.text,
        method_used=winner.method_used,
        steering=dict(winner.steering) if winner.steering else None,
        behaviors=list(winner.behaviors) if winner.behaviors else None,
        policy=outcome_summary(policy, outcome, trace=False),
    )
    return JSONResponse(answer.model_dump(exclude_none=True), headers=outcome_evidence(outcome))


def _own(request: SamplingRequest, params: NativeSampling) -> list[Own]:
    """What the request says beside its policy; null is nothing said."""
    given = params.model_dump(exclude_none=True, exclude={"seed", "stop"})
    fields = {name: f"sampling.{name}" for name in ("method", "draft_model", "ensemble_models")}
    fields |= {name: f"constraints.{name}" for name in CONSTRAINTS}
    fields["best_of_n"] = "optimization.best_of_n"
    return [
        *(Own(f"params.{name}", value, f"sampling.{name}") for name, value in given.items()),
        *(
            Own(name, getattr(request, name), place)
            for name, place in fields.items()
            if getattr(request, name) is not None
        ),
    ]


@router.get("/models")
async def list_models(raw_request: Request) -> list[HostedModel]:
    models: ServedModels = raw_request.app.state.steersman.models
    return models.hosted(str(raw_request.base_url).rstrip("/"))


@router.get("/graph")
async def graph(raw_request: Request) -> dict[str, list[dict[str, Any]]]:
    """The decoder's blocks in order, as the model's own modules are named."""
    return {"graph": raw_request.app.state.steersman.models.graph()}
