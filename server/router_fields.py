"""What vllm-router 0.1.17 adds to the bodies that pass through it, though no client wrote it.

The router parses a body into its own type and writes it anew, with every field of that type that has a
default. Most of them are vLLM's too; these are not, and a strict server would refuse each request for them.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from server.refusal import route_path

_BOTH = {"no_stop_trim": False, "return_hidden_states": False}
# By route: the fields and the values that the router gives them. /generate has a `stream` of its own, but
# where it is absent the Accept header decides. Other routes' bodies pass as they are.
ADDED: Mapping[str, Mapping[str, bool]] = MappingProxyType(
    {
        "/v1/chat/completions": {**_BOTH, "separate_reasoning": True, "stream_reasoning": True},
        "/v1/completions": _BOTH,
        "/generate": {"stream": False, "return_logprob": False, "return_hidden_states": False},
    }
)
_STATE = "router_fields"


class BehindVllmRouter:
    """ASGI middleware: has `forget_added` forget them in this request's body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (fields := ADDED.get(route_path(scope))):
            scope.setdefault("state", {})[_STATE] = fields
        await self._app(scope, receive, send)


def forget_added(body: Any, scope: Scope) -> None:
    """Take from `body` what the router added; what has another value was somebody's wish, and stays."""
    fields = scope.get("state", {}).get(_STATE, {})
    if isinstance(body, dict):
        for name, value in fields.items():
            if body.get(name) is value:
                del body[name]
