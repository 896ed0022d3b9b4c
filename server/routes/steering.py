"""Making and trying steering vectors: `/steering/*` of the Axionic API, but for what is stored."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, Field, model_validator

from policies.steering import (
    OWN_EXAMPLES,
    PRESET_FLOORS,
    SteeringEntry,
    Strength,
    known_preset,
    least_strength,
)
from server.errors import Conflict, InvalidRequest, NotFound, SteersmanError
from server.jobs import JobRecord, Status
from server.routes.body import JsonRoute
from server.routes.dependencies import Caller, Open, State
from server.routes.native import generated, wants_events
from server.state import ServerState
from server.streams import sse
from server.training import TrainRequest
from server.vector_wire import VectorDetail
from server.vllm_serving import guarded
from server.wire import GenerateRequest, SteeringFields, Strict
from server.workshop import failure

_POLL_SECONDS = 0.25
_KEEP_ALIVE_SECONDS = 15.0

router = APIRouter(route_class=JsonRoute, tags=["steering"])


class Train(TrainRequest):
    stream: bool | None = Field(default=None, description="true: SSE; absent: as the Accept header says")
    background: bool = Field(default=False, description="answer 202 at once; look the job up")


@router.post("/steering/generate", responses={200: {"content": {"text/event-stream": {}}}})
@guarded
async def train_vector(
    request: Train, raw_request: Request, principal: Caller, state: State, studio: Open
) -> Response:
    """A job, which goes on whether or not the client waits for it."""
    wanted = TrainRequest.model_validate(request.model_dump(exclude={"stream", "background"}))
    job = await studio.workshop.submit(wanted, principal.account_id)
    headers = {"x-steersman-job": job}
    if request.background:
        return JSONResponse({"job_id": job, "status": Status.QUEUED}, status_code=202, headers=headers)
    if wants_events(request.stream, raw_request):
        events = _events(state, principal.account_id, job)
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)
    record = await _ended(state, principal.account_id, job)
    if record.status is Status.CANCELLED:
        raise Conflict(f"the job {job} was cancelled")
    if record.status is not Status.COMPLETE:
        raise failure(record)
    return JSONResponse({**(record.result or {}), "job_id": job}, headers=headers)


async def _ended(state: ServerState, account_id: str, job: str) -> JobRecord:
    while True:
        record = await state.jobs.get(account_id, job)
        if record.status.ended:
            return record
        await asyncio.sleep(_POLL_SECONDS)


async def _events(state: ServerState, account_id: str, job: str) -> AsyncGenerator[str, None]:
    """`processing` with what is new, a comment now and then, `complete` or `error`."""
    told: Any = object()
    quiet = 0.0
    while True:
        try:
            record = await state.jobs.get(account_id, job)
        except SteersmanError as error:
            yield sse({"status": "error", "message": error.message})
            return
        if record.status.ended:
            break
        if record.progress != told:
            told, quiet = record.progress, 0.0
            yield sse({"status": "processing", "job_id": job, "progress": _progress(record)})
        elif quiet >= _KEEP_ALIVE_SECONDS:
            quiet = 0.0
            yield ": still working\n\n"
        quiet += _POLL_SECONDS
        await asyncio.sleep(_POLL_SECONDS)
    if record.status is Status.COMPLETE:
        yield sse({"status": "complete", "result": {**(record.result or {}), "job_id": job}})
    else:
        yield sse({"status": "error", "message": record.error or f"the job was {record.status}"})


def _progress(record: JobRecord) -> Mapping[str, Any]:
    return record.progress or {"stage": record.status.value}


class Run(GenerateRequest):
    multiplier: Strength = 1.0


@router.post("/steering/run", responses={200: {"content": {"text/event-stream": {}}}})
@guarded
async def run(request: Run, raw_request: Request) -> Response:
    """As /generate, with every strength times `multiplier`."""
    entries = request.steering_entries()
    if not entries:
        raise InvalidRequest("name a vector to steer by", param="steering_vector_id")
    scaled = {path: _times(request.multiplier, entry) for path, entry in entries.items()}
    return await generated(request, raw_request, scaled)


def _times(multiplier: float, entry: SteeringEntry) -> SteeringEntry:
    """Raises InvalidRequest where a preset would be raised again."""
    strength, least = entry.effective_strength * multiplier, least_strength(entry.preset)
    if least is not None and strength < least:
        raise InvalidRequest(
            f"the strength of {entry.preset} is at least {least:g}, not {strength:g}", param="multiplier"
        )
    return entry.model_copy(update={"strength": strength})


class Asked(Strict, SteeringFields):
    """POST /steering/dose: how a request would be steered."""


class Dose(BaseModel):
    """The largest of all layers, and of what adds up over them; nothing is loaded or generated for it."""

    dose: float
    warning: str | None


@router.post("/steering/dose")
async def tell_dose(request: Asked, principal: Caller, studio: Open) -> Dose:
    """Refuses what a request that is steered so would be refused for, a dose above the limit included."""
    entries = request.steering_entries()
    if not entries:
        raise InvalidRequest("name a vector to steer by", param="steering_vector_id")
    checked = await studio.steering.check(entries, principal.account_id)
    return Dose(dose=round(checked.dose, 4), warning=checked.warning)


@router.get("/steering/presets")
async def list_presets(principal: Caller, state: State, studio: Open) -> list[dict[str, Any]]:
    """Every preset, its least strength, and the vector behind it where it was made already."""
    found = []
    for name, floor in PRESET_FLOORS.items():
        owner = principal.account_id if name == OWN_EXAMPLES else None
        record = await state.vectors.preset(name, studio.model.fingerprint, owner) if floor else None
        found.append({"name": name, "minimum_strength": floor, "vector_id": record and record.id})
    return found


class Examples(TrainRequest):
    """A user's own pairs for a preset, which decides by itself how it learns from them."""

    @model_validator(mode="before")
    @classmethod
    def _pairs_alone(cls, data: Any) -> Any:
        wanted = ("prompts", "positive_answers", "negative_answers")
        beyond = [name for name in data if name not in wanted] if isinstance(data, dict) else []
        if beyond:
            raise ValueError(f"{beyond[0]} has no effect here; send {', '.join(wanted)}")
        return data


@router.post("/steering/presets/{preset}")
async def build_preset(
    preset: str, principal: Caller, studio: Open, examples: Examples | None = None
) -> VectorDetail:
    """Make a preset's vector ahead of its first use; `domain_specific` from the examples in the body."""
    try:
        name = known_preset(preset)
    except ValueError as error:
        raise NotFound(str(error)) from error
    if name != OWN_EXAMPLES:
        if examples is not None:
            raise InvalidRequest(f"{name} is made from its own pairs; only {OWN_EXAMPLES} takes examples")
        return VectorDetail.of(await studio.presets.vector(name, principal.account_id))
    if examples is None or examples.negative_answers is None or len(examples.prompts) < 4:
        raise InvalidRequest("send at least 4 prompts with positive and negative answers", param="prompts")
    return VectorDetail.of(await studio.presets.build(name, examples.pairs, principal.account_id))
