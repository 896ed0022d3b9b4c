"""Steering vectors and the jobs that make them: look up, upload, download, label, delete, cancel."""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, cast

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from server.auth import Principal
from server.errors import Conflict, InvalidBody, InvalidRequest, NotSupported, PayloadTooLarge
from server.jobs import Status
from server.routes.body import JsonRequest, JsonRoute
from server.routes.dependencies import Caller, State
from server.state import ServerState
from server.steering import SteeredModel
from server.vector_wire import (
    DeletedVector,
    DeletedVectors,
    Described,
    FileMetadata,
    JobItem,
    SteeringVectorItem,
    Upload,
    VectorDetail,
    VectorIds,
    VectorItem,
    VectorLabel,
    VectorLabels,
)
from server.vectors import Labels, NewVector, VectorRecord, misfit
from steering import files
from steering.files import Format, VectorFile
from steering.vector import SteeringVector, VectorError

MEDIA_TYPES = {
    Format.JSON: "application/json",
    Format.SAFETENSORS: "application/x-safetensors",
    Format.GGUF: "application/gguf",
}
_FILES = frozenset({"application/octet-stream", "application/x-gguf", *MEDIA_TYPES.values()})


Limit = Annotated[int, Query(ge=1, le=1000)]
Offset = Annotated[int, Query(ge=0, le=2**31 - 1)]

router = APIRouter(route_class=JsonRoute, tags=["steering"])


@router.get("/steering/vectors")
async def list_vectors(
    principal: Caller,
    state: State,
    *,
    method: str | None = None,
    category: str | None = None,
    shared: bool = False,
    limit: Limit = 100,
    offset: Offset = 0,
) -> list[VectorItem]:
    """Newest first; `shared` adds the presets that all accounts share."""
    records = await state.vectors.list(
        principal.account_id, method=method, category=category, shared=shared, limit=limit, offset=offset
    )
    return [VectorItem.of(record) for record in records]


@router.get("/steering/vectors/{vector_id}")
async def get_vector(principal: Caller, state: State, vector_id: str) -> VectorDetail:
    return VectorDetail.of(await state.vectors.get(principal.account_id, vector_id))


@router.get("/steering/vectors/{vector_id}/download")
async def download_vector(
    principal: Caller, state: State, vector_id: str, format: Format = Format.JSON
) -> Response:
    """The vector as a file. `x-steersman-omits` names parts of it that the format cannot hold."""
    record = await state.vectors.get(principal.account_id, vector_id)
    blob = await state.vectors.blob(vector_id)
    content, missing = await asyncio.to_thread(_written, blob, format, FileMetadata.of(record).plain)
    headers = {"content-disposition": f'attachment; filename="{vector_id}.{format}"'}
    if missing:
        headers["x-steersman-omits"] = ", ".join(missing)
    return Response(content, media_type=MEDIA_TYPES[format], headers=headers)


def _written(blob: bytes, format: Format, metadata: dict[str, Any]) -> tuple[bytes, tuple[str, ...]]:
    vector = SteeringVector.from_blob(blob)
    return files.write_vector(vector, format, metadata), files.omitted(vector, format)


_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_UPLOAD_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": Upload.model_json_schema()},
            **dict.fromkeys(sorted(_FILES - {"application/json"}), _BINARY),
        },
    }
}


@router.post("/steering/vectors", openapi_extra=_UPLOAD_BODY)
async def upload_vector(
    principal: Caller, state: State, request: Request, query: Annotated[Described, Query()]
) -> VectorDetail:
    """A JSON body, or the bytes of a file in any of the three formats and the rest in the query."""
    model = state.steered_model
    if model is None:
        raise NotSupported(
            "The served model cannot be steered, so there is nothing to check a vector against."
        )
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in _FILES:
        raise InvalidRequest(f"send one of {', '.join(sorted(_FILES))}", param="content-type")
    sent = JsonRequest(request.scope, request.receive)
    data = await _body(sent)
    body = await sent.json() if media_type == "application/json" else None
    described: Described = query
    if body is None or files.is_flat(body):
        file = await _read(lambda: files.read_vector(data, source=query.source))
    else:
        described = upload = _upload(body, request.query_params)
        flat = partial(files.read_flat, upload.vector, source=upload.source)
        file = await _read(lambda: VectorFile(flat(), Format.JSON))
    new = _new_vector(principal.account_id, described, file, model, state)
    vector_id = await state.vectors.add(new)
    return VectorDetail.of(await state.vectors.get(principal.account_id, vector_id))


def _upload(body: Any, query: Mapping[str, str]) -> Upload:
    """Raises InvalidRequest where the query says anything beside the body."""
    for name in query:
        raise InvalidRequest(f"with a JSON body {name} belongs there, not in the query", param=name)
    try:
        return Upload.model_validate(body)
    except ValidationError as error:
        raise InvalidBody.of(error.errors()) from error


async def _body(request: Request) -> bytes:
    try:
        data = await request.body()
    except ClientDisconnect as error:
        raise InvalidRequest("the connection closed before the body was complete") from error
    if len(data) > files.MAX_BYTES:
        raise PayloadTooLarge(f"a vector's file has at most {files.MAX_BYTES} bytes, not {len(data)}")
    return data


async def _read(read: Callable[[], VectorFile]) -> VectorFile:
    try:
        return await asyncio.to_thread(read)
    except VectorError as error:
        raise _invalid(error) from error


def _invalid(problem: VectorError | str) -> InvalidRequest:
    return InvalidRequest(str(problem), param="vector", code="invalid_vector")


def _new_vector(
    account_id: str, described: Described, file: VectorFile, model: SteeredModel, state: ServerState
) -> NewVector:
    """What the client says of the vector wins over what its file says, but doses are ours to tell."""
    try:
        said = FileMetadata.read(file)
    except VectorError as error:
        raise _invalid(error) from error
    if problem := misfit(file.vector, model):
        raise _invalid(problem)
    made_for = described.model_name or said.model_name
    if said.model_fingerprint is None:
        same = made_for in ("", "default", *state.models.bases)
    else:
        same = said.model_fingerprint == model.fingerprint
    if not same:
        raise Conflict(
            f"The vector was made for {made_for or 'another model'!r}; this server serves {model.name!r}.",
            param="model_name" if described.model_name else "vector",
            code="vector_of_another_model",
        )
    given: dict[str, Any] = {
        name: value for name in VectorLabels.model_fields if (value := getattr(described, name)) is not None
    }
    given |= {"model_name": model.name, "model_fingerprint": model.fingerprint}
    given["doses"] = model.doses(file.vector)
    return said.model_copy(update=given).new_vector(account_id, file.vector)


@router.patch("/steering/vectors/{vector_id}")
async def change_vector(principal: Caller, state: State, vector_id: str, body: VectorLabels) -> VectorDetail:
    """Change what is given of name, label and category."""
    return VectorDetail.of(await _relabelled(principal, state, vector_id, body))


async def _relabelled(
    principal: Principal, state: ServerState, vector_id: str, body: VectorLabels | VectorLabel
) -> VectorRecord:
    changes = cast("Labels", body.model_dump(exclude_unset=True))
    await state.vectors.relabel(principal.account_id, vector_id, **changes)
    return await state.vectors.get(principal.account_id, vector_id)


@router.delete("/steering/vectors/{vector_id}")
async def delete_vector(principal: Caller, state: State, vector_id: str) -> DeletedVector:
    """Requests in flight finish with the vector that they began with."""
    await state.vectors.delete(principal.account_id, vector_id)
    return DeletedVector(id=vector_id)


@router.get("/auth/steering-vectors")
async def list_steering_vectors(principal: Caller, state: State) -> list[SteeringVectorItem]:
    return [SteeringVectorItem.of(record) for record in await state.vectors.list(principal.account_id)]


@router.patch("/auth/steering-vectors/{vector_id}")
async def label_steering_vector(
    principal: Caller, state: State, vector_id: str, body: VectorLabel
) -> SteeringVectorItem:
    return SteeringVectorItem.of(await _relabelled(principal, state, vector_id, body))


@router.delete("/auth/steering-vectors/{vector_id}")
async def delete_steering_vector(principal: Caller, state: State, vector_id: str) -> DeletedVector:
    return await delete_vector(principal, state, vector_id)


@router.post("/auth/steering-vectors/bulk-delete")
async def delete_steering_vectors(principal: Caller, state: State, body: VectorIds) -> DeletedVectors:
    """Ids that the account does not have are passed over."""
    gone = await state.vectors.delete_many(principal.account_id, body.vector_ids)
    return DeletedVectors(vector_ids=list(gone), deleted=len(gone))


@router.get("/steering/jobs")
async def list_jobs(
    principal: Caller, state: State, status: Status | None = None, limit: Limit = 100, offset: Offset = 0
) -> list[JobItem]:
    """Newest first."""
    records = await state.jobs.list(principal.account_id, status=status, limit=limit, offset=offset)
    return [JobItem.of(record) for record in records]


@router.get("/steering/jobs/{job_id}")
async def get_job(principal: Caller, state: State, job_id: str) -> JobItem:
    return JobItem.of(await state.jobs.get(principal.account_id, job_id))


@router.delete("/steering/jobs/{job_id}")
async def cancel_job(principal: Caller, state: State, job_id: str) -> JobItem:
    """Waiting or running, it ends as `cancelled`; a job that has ended is a conflict."""
    return JobItem.of(await state.jobs.cancel(principal.account_id, job_id))
