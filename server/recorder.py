"""From requests to what is kept of them: beside the answers, which never wait for it nor fail with it."""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.backlog import SECONDS, Backlog
from server.metrics import OBSERVED_DROPPED
from server.observation import CLIENT_LEFT, SNIPPET, Observation, current_observation
from server.observed import MAX_ERROR, MAX_ID, MAX_MODEL, ObservedRequest, storable
from server.redaction import NOTHING_REDACTED, Redaction
from server.refusal import route_path

ROUTES = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/api/ai/chat/completions",
        "/generate",
        "/sampling/generate",
        "/steering/run",
        "/sae/generate",
        "/policies/run",
        "/policies/{policy_id}/run",
        "/policies/compare",
        "/policies/evaluate",
        "/policies/autotune",
    }
)
QUEUED = 4096
_BATCH = 512
_UNFORESEEN = "internal error; the server's log has the details"


class Keeper(Protocol):
    async def keep(self, requests: Sequence[ObservedRequest], *, most: int, since: datetime) -> None: ...


class Recorder:
    """Calls of this process on their way to the database, which keeps `most` of all for `days`.

    With `most` 0 none is recorded, and what is kept from before is deleted.
    """

    def __init__(
        self, keeper: Keeper, *, most: int, days: float, redaction: Redaction = NOTHING_REDACTED
    ) -> None:
        self._keeper, self._most, self._age = keeper, most, timedelta(days=days)
        self._redaction = redaction
        self._backlog = Backlog[Observation]("calls", self._write, self._drop, batch=_BATCH)

    @property
    def on(self) -> bool:
        return self._most > 0

    def record(self, observation: Observation) -> None:
        if len(self._backlog) >= QUEUED:
            OBSERVED_DROPPED.inc()
        else:
            self._backlog.add(observation)

    async def flush(self) -> None:
        """Hand over what came; while the database is unavailable it waits for the next time."""
        await self._backlog.flush()

    async def run(self, interval: float = SECONDS) -> None:
        """Flush every `interval` seconds until cancelled; what came since is flushed then."""
        await self._backlog.run(interval)

    async def _write(self, batch: list[Observation]) -> None:
        # In a thread: telling how requests were steered takes longer than others should wait.
        requests = await asyncio.to_thread(lambda: [_settled(each, self._redaction) for each in batch])
        await self._keeper.keep(requests, most=self._most, since=datetime.now(UTC) - self._age)

    def _drop(self, batch: list[Observation]) -> None:
        OBSERVED_DROPPED.inc(len(batch))


def _settled(seen: Observation, redaction: Redaction) -> ObservedRequest:
    told = redaction.json(seen.told()) if seen.told is not None else {}
    return ObservedRequest(
        id=storable(seen.id)[:MAX_ID],
        account_id=seen.account_id,
        created_at=seen.created_at,
        route=seen.route,
        status=CLIENT_LEFT if seen.left or seen.status is None else seen.status,
        model=_cut(seen.model, MAX_MODEL),
        prompt=_cut(redaction.text(seen.prompt), SNIPPET),
        output=_cut(redaction.text(seen.output), SNIPPET),
        latency_ms=round(seen.latency_ms, 3),
        prompt_tokens=seen.prompt_tokens,
        completion_tokens=seen.completion_tokens,
        stream=seen.stream,
        steering=told.get("steering"),
        behaviors=_without_levels(told.get("behaviors")),
        policies=seen.policies or None,
        error=_cut(redaction.text(seen.error), MAX_ERROR),
    )


def _without_levels(behaviors: Sequence[Mapping[str, Any]] | None) -> Sequence[Mapping[str, Any]] | None:
    """A number for each token is for who asked for it, not for the log of calls."""
    if behaviors is None:
        return None
    return [{name: value for name, value in each.items() if name != "levels"} for each in behaviors]


def _cut(text: str | None, length: int) -> str | None:
    return None if text is None else storable(text[:length])


@dataclass(frozen=True, slots=True)
class Observing:
    """ASGI middleware, within the authentication: every POST has an observation, and those of `ROUTES` are
    recorded, however they end."""

    app: ASGIApp
    recorder: Recorder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        principal = scope.get("state", {}).get("principal")
        if scope["type"] != "http" or scope["method"] != "POST" or principal is None:
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = headers.get(b"x-request-id", b"").decode("latin-1")
        observation = Observation(id=request_id, account_id=principal.account_id)
        current_observation.set(observation)
        wire = _Wire(observation, receive, send)
        try:
            await self.app(scope, wire.receive, wire.send)
        except Exception:  # whatever it is, it is noted here, and answered further out
            # Where a stream broke off, its status stays.
            observation.status = observation.status or 500
            if not observation.left:
                observation.fails(observation.error or _UNFORESEEN)
            raise
        finally:
            route = getattr(scope.get("route"), "path", None) or route_path(scope)
            if route in ROUTES and self.recorder.on:
                observation.ends(route)
                self.recorder.record(observation)


class _Wire:
    """What passes between the application and its client."""

    def __init__(self, observation: Observation, receive: Receive, send: Send) -> None:
        self._observation, self._receive, self._send = observation, receive, send
        self._ended = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._ended:
            self._observation.left = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._observation.status = message["status"]
            kind = dict(message.get("headers", ())).get(b"content-type", b"")
            self._observation.stream = kind.startswith(b"text/event-stream")
        else:
            self._ended = not message.get("more_body", False)
            if self._observation.stream and _FAILED.match(message.get("body", b"")):
                self._observation.fails(_message(message["body"]))
        try:
            await self._send(message)
        except OSError:
            self._observation.left = True
            raise


# The event with which a stream says that it failed, in each of the shapes that clients parse.
_FAILED = re.compile(rb'(event: error\n)?data: \{"(error|status": ?"error|type": ?"error)"')


def _message(event: bytes) -> str:
    text = event.decode(errors="replace").partition("data: ")[2].partition("\n")[0]
    try:
        payload: Any = json.loads(text)
    except ValueError:
        return text
    found = payload.get("error") or payload
    return str(found.get("message", text)) if isinstance(found, dict) else str(found)
