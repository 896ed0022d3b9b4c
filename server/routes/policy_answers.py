"""OpenAI requests that carry a policy: judged first, then answered or streamed; straight on where there is
nothing to judge."""

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from policies.policy import RuntimePolicy
from policies.run import Outcome
from server import streams
from server.errors import InvalidRequest, SteersmanError
from server.policy_requests import merged
from server.policy_wire import outcome_summary
from server.vllm_serving import Decodable, kept_alive


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
        return JSONResponse(_body(policy, outcome, request))
    events = _judged(policy, template, request, raw) if policy.judged else None
    if events is None:
        direct = await state.policy_runs.stream(policy, template, raw)
        accepted = {"id": policy.id, "name": policy.name, "accepted": True, "score": 1.0, "rounds": 1}
        events = streams.ending_with(direct, {"policy": accepted})
    alive = kept_alive(events, state.serving.keep_alive)
    return StreamingResponse(alive, media_type="text/event-stream")


async def _judged(
    policy: RuntimePolicy, template: Decodable, request: Decodable, raw: Request
) -> AsyncGenerator[str, None]:
    """The winner as a stream, once there is one."""
    try:
        outcome = await raw.app.state.steersman.policy_runs.run(policy, template, raw)
    except SteersmanError as error:
        yield streams.failed(error)
        yield "data: [DONE]\n\n"
        return
    answer = _answer(outcome, request)
    whole = streams.as_stream(answer, include_usage=request.include_usage)
    async for event in streams.ending_with(whole, _told(policy, outcome, request)):
        yield event


def _answer(outcome: Outcome, request: Decodable) -> Any:
    """The winner's response of vLLM's, with the tokens of all candidates as its usage."""
    response, choice = outcome.winner.answer.source
    dropped: dict[str, Any] = {"index": 0}
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
    changes: dict[str, Any] = {"choices": [choice.model_copy(update=dropped)], "usage": usage}
    if not request.return_token_ids and hasattr(response, "prompt_token_ids"):
        changes["prompt_token_ids"] = None
    return response.model_copy(update=changes)


def _told(policy: RuntimePolicy, outcome: Outcome, request: Decodable) -> dict[str, Any]:
    winner = outcome.winner.answer
    told: dict[str, Any] = {
        "method_used": winner.method_used,
        "policy": outcome_summary(policy, outcome, trace=request.include_trace),
    }
    if winner.warning:
        told["warning"] = winner.warning
    if winner.steering:
        told["steering"] = dict(winner.steering)
    return told


def _body(policy: RuntimePolicy, outcome: Outcome, request: Decodable) -> dict[str, Any]:
    body: dict[str, Any] = _answer(outcome, request).model_dump()
    return {**body, "steersman": _told(policy, outcome, request)}
