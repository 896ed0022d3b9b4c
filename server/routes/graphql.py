"""POST /api/graphql: Adaptive's GraphQL, as JSON or as a multipart request that uploads files."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from pydantic import Field, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.requests import ClientDisconnect

from server.auth import Principal, caller
from server.errors import InvalidBody, InvalidRequest
from server.graphql.context import Context, GraphqlState
from server.graphql.document import MAX_CHARACTERS
from server.graphql.schema import execute
from server.routes.body import JsonRequest
from server.wire import Strict

MAX_FILES = 20

router = APIRouter(tags=["Adaptive"])


class GraphqlRequest(Strict):
    """`extensions` are the client's own and change nothing."""

    query: Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]
    operation_name: Annotated[str | None, Field(alias="operationName")] = None
    variables: dict[str, Any] | None = None
    extensions: dict[str, Any] | None = None


async def _state(request: Request) -> GraphqlState:
    """With what this process has answered until now."""
    state: GraphqlState = request.app.state.steersman
    await state.interaction_log.flush()
    return state


@router.post("/api/graphql")
async def graphql(
    request: Request,
    principal: Annotated[Principal, Depends(caller)],
    state: Annotated[GraphqlState, Depends(_state)],
) -> JSONResponse:
    """One operation a request. What goes wrong within it is told in `errors`, with status 200."""
    asked = _parsed(await _sent(request))
    answer = await execute(
        asked.query,
        Context(state, principal),
        variables=asked.variables,
        operation_name=asked.operation_name,
    )
    return JSONResponse(answer)


async def _sent(request: Request) -> Any:
    """Raises InvalidRequest for what is neither."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if media_type == "application/json":
            return await JsonRequest(request.scope, request.receive).json()
        if media_type == "multipart/form-data":
            async with request.form(max_files=MAX_FILES, max_fields=2) as form:
                return _uploaded(form)
    except ClientDisconnect as error:
        raise InvalidRequest("the connection closed before the body was complete") from error
    raise InvalidRequest(
        "send the body as application/json, or as multipart/form-data with files", param="content-type"
    )


def _parsed(sent: Any) -> GraphqlRequest:
    if not isinstance(sent, dict):
        raise InvalidRequest("the body is one JSON object with `query`: one operation a request")
    try:
        return GraphqlRequest.model_validate(sent)
    except ValidationError as error:
        # or a field called `query` would be taken for a part of the URL
        raise InvalidBody.of([{**each, "loc": ("body", *each["loc"])} for each in error.errors()]) from error


def _uploaded(form: FormData) -> Any:
    """The operation of https://github.com/jaydenseric/graphql-multipart-request-spec, whose variables stay
    null where the files go: nothing that this server does takes one."""
    operations, files = _json(form, "operations"), _json(form, "map")
    if not isinstance(files, dict) or not all(isinstance(form.get(name), UploadFile) for name in files):
        raise InvalidRequest("map says which variables each file of the form is", param="map")
    return operations


def _json(form: FormData, name: str) -> Any:
    value = form.get(name)
    if not isinstance(value, str):
        raise InvalidRequest(f"the form has a field {name!r} of JSON before its files", param=name)
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name} is not valid JSON: {error}", param=name) from error
