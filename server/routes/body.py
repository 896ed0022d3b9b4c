"""Strict JSON bodies: what a client sent must be JSON, and nothing else."""

import json
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from server.errors import InvalidRequest


class JsonRequest(Request):
    async def json(self) -> Any:
        """Raises InvalidRequest for what RFC 8259 does not allow, NaN and Infinity included."""
        if not hasattr(self, "_json"):
            try:
                self._json = json.loads(await self.body(), parse_constant=_refuse_constant)
            except RecursionError as error:
                raise InvalidRequest("the JSON body is nested too deeply", code="json_invalid") from error
            except ValueError as error:
                raise InvalidRequest(f"the body is not valid JSON: {error}", code="json_invalid") from error
        return self._json


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


class JsonRoute(APIRoute):
    """A route whose body is read by JsonRequest; another content type is refused by name."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        takes_body = self.body_field is not None

        async def strict(request: Request) -> Response:
            if takes_body:
                media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
                if media_type != "application/json":
                    raise InvalidRequest("send the body as application/json", param="content-type")
            return await handle(JsonRequest(request.scope, request.receive))

        return strict
