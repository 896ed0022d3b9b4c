"""Strict JSON bodies: what a client sent must be JSON, and nothing else."""

import json
import re
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, NoReturn

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from server.errors import InvalidRequest
from server.observation import observed
from server.router_fields import forget_added

MAX_NESTING = 128  # of objects and arrays: deep enough for any schema, far from the interpreter's limit
_TOO_DEEP = f"the JSON body nests deeper than {MAX_NESTING} levels"
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class JsonRequest(Request):
    async def json(self) -> Any:
        """Raises InvalidRequest for what RFC 8259 does not allow, NaN and Infinity included, for half of a
        surrogate pair, which no answer could quote, and for nesting beyond MAX_NESTING."""
        if not hasattr(self, "_json"):
            try:
                self._json = strict_json(await self.body())
            except RecursionError as error:
                raise InvalidRequest(_TOO_DEEP, code="json_invalid") from error
            except ValueError as error:
                raise InvalidRequest(f"the body is not valid JSON: {error}", code="json_invalid") from error
        return self._json


def strict_json(body: bytes) -> Any:
    """Raises as JsonRequest.json does, but ValueError and RecursionError where it says so in words."""
    value = json.loads(body.decode(), parse_constant=_refuse_constant)
    if _SURROGATE.search(body):
        json.dumps(value, ensure_ascii=False).encode()
    if body.count(b"[") + body.count(b"{") > MAX_NESTING:
        _check_nesting(value)
    return value


def _check_nesting(value: Any) -> None:
    level: list[Any] = [[value]]
    for _ in range(MAX_NESTING + 1):
        level = [child for node in level for child in _children(node) if isinstance(child, dict | list)]
        if not level:
            return
    raise InvalidRequest(_TOO_DEEP, code="json_invalid")


def _children(node: Any) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


class JsonRoute(APIRoute):
    """A route whose body is read by JsonRequest; another content type is refused by name."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        takes_body = self.body_field is not None

        async def strict(request: Request) -> Response:
            if takes_body:
                request = JsonRequest(request.scope, request.receive)
                try:
                    sent = await request.body()
                except ClientDisconnect as error:
                    raise InvalidRequest("the connection closed before the body was complete") from error
                media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
                if media_type != "application/json" and (sent or media_type):
                    raise InvalidRequest("send the body as application/json", param="content-type")
                if sent:
                    # here, because FastAPI answers any error of its own read alike
                    body = await request.json()
                    forget_added(body, request.scope)
                    observed().asks(body)
            return await handle(request)

        return strict
