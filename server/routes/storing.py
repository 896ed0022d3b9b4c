"""Chat completions on their way to the interaction log, streamed or not."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from server.interaction_log import InteractionLog
from server.observation import observed
from server.transcript import Transcript
from server.vllm_wire import ChatRequest

Answer = Callable[[ChatRequest, Request], Awaitable[Response]]


async def stored(
    request: ChatRequest, raw: Request, answer: Answer, body: Mapping[str, Any] | None = None
) -> Response:
    """What `answer` answers, kept in the log where the request or the server asks for it. What fails, or is
    left by its client before its end, is not kept. `body`: in place of the one that was sent."""
    log: InteractionLog = raw.app.state.steersman.interaction_log
    labels = request.all_labels
    request.of_account(raw.state.principal.account_id)
    if not await log.admit(request.store, unasked=request.stored_unasked):
        return await answer(request, raw)
    transcript = Transcript(
        account_id=raw.state.principal.account_id,
        request=await raw.json() if body is None else body,
        labels=labels,
        session_id=request.session_id,
        observation=observed(),
        size=len(await raw.body()),
        known_as=request.known_as if request.answers_as else None,
    )
    if request.assignment is not None:
        transcript.campaign_id = request.assignment.campaign_id
        transcript.variant = request.assignment.model
    response = await answer(request, raw)
    if isinstance(response, StreamingResponse):
        if method := response.headers.get("x-steersman-method"):  # a policy's is told at its end alone
            transcript.told = {"method_used": method}
        response.body_iterator = _heard(response.body_iterator, transcript, log)
    else:
        transcript.ends(bytes(response.body))
        log.add(transcript)
    return response


async def _heard(events: Any, transcript: Transcript, log: InteractionLog) -> AsyncIterator[str]:
    """`events`; at their end, which the client is told after that, the log has the answer."""
    failed = False
    async with aclosing(events):
        async for event in events:
            transcript.hears(event)
            failed = failed or event.startswith('data: {"error"')
            if event.startswith("data: [DONE]") and not failed:
                transcript.ends()
                log.add(transcript)
            yield event
