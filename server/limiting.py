"""Requests of keys with limits, on their way in: let in, told what is left, let go of."""

import re
from dataclasses import dataclass
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.auth import Principal
from server.calls import current_call
from server.limiter import Admission, Limiter
from server.refusal import refuse, route_path

# What neither generates nor embeds: it is about things that are stored, or counts without an engine. All else
# that is posted counts, so that no new route is forgotten.
_FREE: Final = (
    "tokenize|detokenize|ping|is_scaling_elastic_ep",
    "v1/messages/count_tokens",
    "v1/chat/completions/(?!batch/?$|render/?$|derender/?$).+",
    "v1/responses/[^/]+/cancel",
    "api/graphql",
    "api/ai/models/.+",
    "api/v1/(?:interactions|feedback|comparison|outcome)",
    "policies/save|policies/presets/.+",
    "steering/vectors|steering/dose",
    "constraints/check",
    "auth/.+",
    "projects(?:/.+)?",
)
_FREE_PATHS = re.compile(f"/(?:{'|'.join(_FREE)})/?", re.DOTALL)


def is_limited(path: str) -> bool:
    """Whether a POST there counts towards a key's limits."""
    return _FREE_PATHS.fullmatch(path) is None


@dataclass(frozen=True, slots=True)
class Limiting:
    """ASGI middleware, within the authentication: 429 beyond the limits of the caller's key.

    Requests that are refused later count too. A socket counts as one request for as long as it is open.
    """

    app: ASGIApp
    limiter: Limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        principal: Principal | None = scope.get("state", {}).get("principal")
        limits = principal.rates.over(self.limiter.default) if principal is not None else None
        if principal is None or not limits or not _counts(scope):
            await self.app(scope, receive, send)
            return
        admission = await self.limiter.admit(principal.usage_id, limits)
        telling = _told(admission, send)
        if admission.refused is not None:
            await refuse(scope, receive, telling, admission.refused)
            return
        if (call := current_call.get()) is not None:
            call.admission = admission
        try:
            await self.app(scope, receive, telling)
        finally:
            admission.release()


def _counts(scope: Scope) -> bool:
    if scope["type"] == "websocket":
        return True
    return scope["type"] == "http" and scope["method"] == "POST" and is_limited(route_path(scope))


def _told(admission: Admission, send: Send) -> Send:
    headers = [(name.encode(), value.encode()) for name, value in admission.headers.items()]

    async def telling(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *headers]}
        await send(message)

    return telling
