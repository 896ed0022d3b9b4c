"""OpenAI requests that carry a policy: judged first, then answered or streamed; straight on where there is
nothing to judge."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from policies.policy import RuntimePolicy
from policies.run import Outcome
from server import streams
from server.errors import InvalidRequest
from server.policy_requests import merged
from server.policy_runs import Direct
from server.policy_wire import outcome_summary
from server.routes.evidence import evidence, outcome_evidence
from server.vllm_errors import reported
from server.vllm_serving import Decodable, kept_alive

_PATIENCE_SECONDS = 1.0


async def respond(request: Decodable, raw: Request) -> Response:
    state = raw.app.state.steersman
    if request.policy is not None and request.policy_id is not None:
        raise InvalidRequest("give one of policy and policy_id", param="policy_id")
    given = request.policy
    if given is None:
        assert request.policy_id is not None
        given = (await state.policies.get(raw.state.principal.account_id, request.policy_id)).policy
    policy, template = merged(request, given.expanded())
    if not request.stream:
        outcome = await state.policy_runs.run(policy, template, raw)
        return JSONResponse(_body(policy, outcome, request), headers=outcome_evidence(outcome))
    headers: dict[str, str] = {}
    interval = state.serving.keep_alive
    if policy.judged:
        running = asyncio.create_task(state.policy_runs.run(policy, template, raw))
        try:
            # What fails soon is an answer with a status of its own; later there is only the stream to say so.
            await asyncio.wait([running], timeout=_PATIENCE_SECONDS)
        except asyncio.CancelledError:
            running.cancel()
            raise
        if running.done():
            running.result()
        events, interval = _judged(policy, running, request), state.serving.long_keep_alive
    else:
        direct = await state.policy_runs.stream(policy, template, raw)
        headers = evidence(direct.decoded)
        events = _told_at_the_end(direct, policy, request)
    alive = kept_alive(request.as_events(events), interval)
    return StreamingResponse(alive, media_type="text/event-stream", headers=headers)


def _told_at_the_end(direct: Direct, policy: RuntimePolicy, request: Decodable) -> AsyncGenerator[str, None]:
    assert direct.decoded.stream is not None
    return streams.concluded(
        direct.decoded.stream,
        lambda streamed: _told(policy, direct.outcome(streamed), request),
        include_usage=request.include_usage,
    )


async def _judged(
    policy: RuntimePolicy, running: "asyncio.Task[Outcome]", request: Decodable
) -> AsyncGenerator[str, None]:
    """The winner as a stream, once there is one. Closing it ends the run."""
    try:
        outcome = await running
    except Exception as error:  # noqa: BLE001  # the status is sent: the stream says that it failed
        yield streams.failed(reported(error))
        yield "data: [DONE]\n\n"
        return
    finally:
        running.cancel()
    answer = _answer(outcome, request)
    whole = streams.as_stream(answer, include_usage=request.include_usage)
    async for event in streams.ending_with(whole, _told(policy, outcome, request)):
        yield event


def _answer(outcome: Outcome, request: Decodable) -> Any:
    """The winner's response of vLLM's, with as many of the best as were asked for, and the tokens of all
    candidates as its usage."""
    response, _ = outcome.winner.answer.source
    dropped: dict[str, Any] = {}
    if not request.return_token_ids:
        dropped["token_ids"] = None
    if not request.wants_logprobs:
        dropped["logprobs"] = None
    usage = response.usage.model_copy(
        update={
            "completion_tokens": outcome.tokens,
            "total_tokens": response.usage.prompt_tokens + outcome.tokens,
        }
    )
    best = [trial.answer.source[1] for trial in outcome.ranked[: request.n]]
    choices = [choice.model_copy(update={**dropped, "index": index}) for index, choice in enumerate(best)]
    changes: dict[str, Any] = {"choices": choices, "usage": usage}
    if not request.return_token_ids and hasattr(response, "prompt_token_ids"):
        changes["prompt_token_ids"] = None
    return response.model_copy(update=changes)


def _told(policy: RuntimePolicy, outcome: Outcome, request: Decodable) -> dict[str, Any]:
    winner = outcome.winner.answer
    told: dict[str, Any] = {
        "method_used": winner.method_used,
        "policy": outcome_summary(policy, outcome, trace=request.include_trace, choices=request.n),
    }
    if winner.warning:
        told["warning"] = winner.warning
    if winner.steering:
        told["steering"] = dict(winner.steering)
    if winner.behaviors:
        told["behaviors"] = list(winner.behaviors)
    return told


def _body(policy: RuntimePolicy, outcome: Outcome, request: Decodable) -> dict[str, Any]:
    body = request.as_body(_answer(outcome, request))
    return {**body, "steersman": _told(policy, outcome, request)}
