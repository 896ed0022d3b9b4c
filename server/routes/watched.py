"""POST /sae/generate: an answer watched for behaviours as it is generated, with its drift token by token."""

import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from policies.sampling import Plan, own_fields
from server.addressing import STEERING, addressed
from server.applied import Applied
from server.candidates import text_of
from server.errors import InvalidRequest, SteersmanError
from server.monitor import Drift, Mode, Watched, corrected, drifts
from server.routes.body import JsonRoute
from server.routes.evidence import evidence
from server.routes.native import wants_events
from server.streams import Streamed, sse
from server.vllm_serving import (
    LOOK_SECONDS,
    Decodable,
    Decoded,
    Serving,
    guarded,
    kept_alive,
    require_one_answer,
)
from server.wire import WatchedRequest

_KEEP_ALIVE_SECONDS = 15.0

router = APIRouter(route_class=JsonRoute, tags=["SAE"])


@router.post("/sae/generate", responses={200: {"content": {"text/event-stream": {}}}})
@guarded
async def generate_watched(request: WatchedRequest, raw_request: Request) -> Response:
    serving: Serving = raw_request.app.state.steersman.serving
    planned = serving.plan(own_fields(request.asked(request.sampling_method)))
    asked = request.watch(Mode.REGENERATE)
    if asked is None and (serving.monitor is None or not serving.monitor.everywhere.names):
        raise InvalidRequest(
            "name a behavior to watch; POST /generate generates without one", param="behavior_names"
        )
    fields = request.watch_fields() | ({"behavior_mode": asked.mode} if asked and asked.names else {})
    events = wants_events(request.stream, raw_request)
    sent = serving.prompted(
        request.prompt, request.model, request.max_new_tokens, request, **fields, stream=events
    )
    sent = await addressed(sent, raw_request, binds=STEERING)
    if not events:
        decoded = await serving.decode(sent, raw_request, planned)
        assert decoded.steered is not None
        told = {"attempts": 1 + bool(decoded.steered.before)}
        result = _result(decoded, decoded.steered, text_of(decoded.response.choices[0])) | told
        return JSONResponse(result, headers=evidence(decoded))
    watched = await serving.watched(asked, raw_request)
    if any(each.mode is Mode.REGENERATE for each in watched):
        require_one_answer(sent, planned)
    attempts = _Attempts(serving, sent, raw_request, planned)
    first = await attempts.begin(watched)
    return StreamingResponse(
        kept_alive(attempts.events(first), _KEEP_ALIVE_SECONDS),
        media_type="text/event-stream",
        headers=evidence(first),
    )


def _result(decoded: Decoded, steered: Applied, text: str) -> dict[str, Any]:
    return {"output": text, "text": text, "method_used": decoded.plan.method_used, **steered.told()}


@dataclass(slots=True)
class _Attempts:
    """One answer, or two where the first one drifts and is to be generated again."""

    serving: Serving
    request: Decodable
    raw: Request
    plan: Plan
    number: int = 0

    async def begin(self, watched: Sequence[Watched]) -> Decoded:
        self.number += 1
        return await self.serving.decode(self.request.model_copy(), self.raw, self.plan, watched=watched)

    async def events(self, decoded: Decoded) -> AsyncGenerator[str, None]:
        """`token` and `drift` as they come, `regenerating`, `complete`; or `error`, under HTTP 200."""
        before: Mapping[str, Drift] = {}
        try:
            while True:
                attempt = _Attempt(self.number, decoded)
                assert decoded.steered is not None
                decoded.steered.before = before
                async with aclosing(attempt.events()) as events:
                    async for event in events:
                        yield event
                if attempt.failed:
                    return
                again = corrected(decoded.steered.drifts)
                if again is None:
                    break
                before = {each.watched.id: each for each in decoded.steered.drifts}
                pairs = zip(again, decoded.steered.watched, strict=True)
                names = [new.name for new, old in pairs if new != old]
                yield sse({"status": "regenerating", "attempt": self.number, "behaviors": names})
                decoded = await self.begin(again)
        except SteersmanError as error:
            yield sse({"status": "error", "message": error.message})
            return
        result = _result(decoded, decoded.steered, attempt.streamed.text)
        yield sse({"status": "complete", "result": {**result, "attempts": self.number}})


class _Attempt:
    """One stream of OpenAI's chunks as Axionic's events."""

    def __init__(self, number: int, decoded: Decoded) -> None:
        assert decoded.stream is not None
        assert decoded.steered is not None
        self._number, self._stream, self._steered = number, decoded.stream, decoded.steered
        self._looked, self._told = 0.0, 0
        self.streamed = Streamed()
        self.failed = False

    async def events(self) -> AsyncGenerator[str, None]:
        async with aclosing(self._stream):
            async for event in self._stream:
                if not event.startswith("data: {"):
                    if event.startswith(":"):
                        yield event
                    continue
                chunk = json.loads(event[6:])
                if "error" in chunk:
                    self.failed = True
                    yield sse({"status": "error", "message": chunk["error"]["message"]})
                    return
                said = len(self.streamed.text)
                self.streamed.take(chunk)
                if piece := self.streamed.text[said:]:
                    yield sse({"status": "token", "token": piece, "attempt": self._number})
                if time.monotonic() - self._looked >= LOOK_SECONDS and self._steered.counted is None:
                    found = drifts(self._steered.watched, await self._steered.scores())
                    self._looked = time.monotonic()
                    if told := self._new(found):
                        yield told
                    if corrected(found) is not None:
                        await self._steered.count()  # before the request is aborted, and forgotten
                        break
        if told := self._new(self._steered.drifts):
            yield told

    def _new(self, found: Sequence[Drift]) -> str:
        """The event that tells the scores which are not told yet, or nothing."""
        told = self._told
        known = min((len(each.scores[0].values) for each in found if each.scores), default=0)
        if known <= told:
            return ""
        self._told = known
        behaviors = [
            {
                "name": each.watched.name,
                "scores": [round(float(score), 4) for score in each.scores[0].values[told:known]],
                "drift": [round(float(level), 4) for level in each.levels[0][told:known]],
                "threshold": round(each.watched.threshold, 4),
            }
            for each in found
        ]
        head = {"status": "drift", "attempt": self._number, "first_token": told}
        return sse({**head, "behaviors": behaviors})
