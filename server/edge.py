"""What every request meets first: an id, a size limit, a clock."""

import time
from dataclasses import dataclass
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.access_log import AccessLog
from server.errors import PayloadTooLarge
from server.json_log import request_id as current_request_id
from server.metrics import HTTP_DURATION
from server.refusal import refuse, route_path

_ID = b"x-request-id"
# A client may send any word as its method; a label must not grow with what clients send.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Edge:
    """Outermost ASGI middleware.

    Gives a request an `x-request-id` where it brings none and returns it; answers 413 to a body over
    `max_body_bytes`; observes `steersman_http_request_duration_seconds`, streams included to their end,
    and tells `access_log` of it.
    """

    app: ASGIApp
    max_body_bytes: int
    access_log: AccessLog | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = _take_id(scope)
        # Never reset: the task ends with the request, and what it fails with is logged further out.
        current_request_id.set(request_id.decode())
        status = 500

        async def stamped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [pair for pair in message.get("headers", ()) if pair[0] != _ID]
                message = {**message, "headers": [*headers, (_ID, request_id)]}
            await send(message)

        try:
            body = await _limited(scope, receive, self.max_body_bytes)
            if body is None:
                message = f"the request body is larger than the limit of {self.max_body_bytes} bytes"
                await refuse(scope, receive, stamped, PayloadTooLarge(message), close=True)
            else:
                await self.app(scope, body, stamped)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if scope["method"] in METHODS else "other"
            seconds = time.perf_counter() - started
            HTTP_DURATION.labels(method, route, str(status)).observe(seconds)
            if self.access_log is not None:
                self.access_log.tell(route_path(scope), method, route, status, seconds)


def _take_id(scope: Scope) -> bytes:
    """The request's id; one it lacks, or one unfit for a header or a log line, is replaced."""
    for name, value in scope["headers"]:
        if name == _ID and 0 < len(value) <= 128 and value.isascii() and value.decode().isprintable():
            return bytes(value)
    fresh = uuid4().hex.encode()
    scope["headers"] = [*(pair for pair in scope["headers"] if pair[0] != _ID), (_ID, fresh)]
    return fresh


async def _limited(scope: Scope, receive: Receive, limit: int) -> Receive | None:
    """`receive`, safe to read: declared bodies are judged by their length, others are read up to the limit.

    None: too large.
    """
    headers = dict(scope["headers"])
    if b"transfer-encoding" not in headers:
        length = headers.get(b"content-length", b"0")
        return receive if not length.isdigit() or int(length) <= limit else None
    body = bytearray()
    message: Message = {"more_body": True}
    while message.get("more_body", False):
        message = await receive()
        body += message.get("body", b"")
        if len(body) > limit:
            return None
    if message["type"] == "http.request":
        message = {"type": "http.request", "body": bytes(body), "more_body": False}
    pending = [message]  # or the disconnect: half a body is not a body

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay
