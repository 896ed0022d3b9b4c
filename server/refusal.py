"""An error as a response: for the app's exception handlers, and for middlewares that answer in its place."""

from collections.abc import Mapping
from types import MappingProxyType

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from server.errors import SteersmanError, render
from server.observation import observed


def route_path(scope: Scope) -> str:
    """The path as the router will match it, so that both see the same route."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path.removeprefix(root) if root and path.startswith(f"{root}/") else path


def refusal(scope: Scope, error: SteersmanError) -> JSONResponse:
    """`error` in the shape that clients of the request's path parse."""
    observed().fails(error.message)
    rendered = render(route_path(scope), error)
    return JSONResponse(rendered.body, rendered.status, headers=rendered.headers)


_NONE: Mapping[str, str] = MappingProxyType({})


async def refuse(
    scope: Scope,
    receive: Receive,
    send: Send,
    error: SteersmanError,
    *,
    close: bool = False,
    headers: Mapping[str, str] = _NONE,
) -> None:
    """Answer with `error`, and `headers`; `close` has the client not use the connection again."""
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008, "reason": error.message})
        return
    response = refusal(scope, error)
    response.headers.update(headers)
    if close:
        response.headers["connection"] = "close"
    await response(scope, receive, send)
