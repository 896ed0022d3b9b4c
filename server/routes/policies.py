"""POST /policies/run: one prompt under an inline policy."""

import functools
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from policies.policy import RuntimePolicy, SamplingControls
from policies.run import Answer, Outcome, Trial, judge_here, run
from policies.sampling import Asked
from server.candidates import text_of
from server.errors import InvalidRequest, NotSupported
from server.routes.body import JsonRoute
from server.vllm_serving import Serving, guarded
from server.wire import MaxTokens, NativeSampling, Strict

router = APIRouter(route_class=JsonRoute, tags=["Axionic"])


# What planning calls a field → where it stands in the request.
_NAMES = {
    **{field: f"policy.sampling.{field}" for field in SamplingControls.model_fields},
    "sampling_method": "policy.sampling.method",
    "n": "policy.optimization.best_of_n",
    "best_of": "policy.optimization.best_of_n",
}


class PolicyRunRequest(Strict):
    prompt: Annotated[str, Field(min_length=1)]
    policy: RuntimePolicy | None = None
    policy_id: str | None = None
    model: str | None = None
    max_new_tokens: MaxTokens = 128
    include_trace: bool = True


@router.post("/policies/run")
@guarded
async def run_policy(request: PolicyRunRequest, raw_request: Request) -> Response:
    if request.policy_id is not None:
        raise NotSupported("stored policies are not served by this version; send `policy`", param="policy_id")
    if request.policy is None:
        raise InvalidRequest("send a `policy`", param="policy")
    policy = request.policy.expanded()
    constraints = policy.constraints
    own = constraints.json_schema is not None or constraints.regex_pattern is not None
    outcome = await run(
        policy,
        functools.partial(_generate, request, policy, raw_request),
        raw_request.app.state.steersman.judge if own else judge_here,
    )
    body = _response(outcome)
    if request.include_trace:
        body["trace"] = _trace(policy, outcome)
    return JSONResponse(body)


async def _generate(
    request: PolicyRunRequest, policy: RuntimePolicy, raw: Request, asked: Asked
) -> Sequence[Answer]:
    serving: Serving = raw.app.state.steersman.serving
    sampling, constraints = policy.sampling, policy.constraints
    fields = NativeSampling(
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        stop=constraints.stop_sequences or None,
    )
    model = request.model if request.model not in (None, "default") else policy.model.model
    sent = serving.prompted(
        request.prompt, model, request.max_new_tokens, fields, n=asked.n, **_constraint(policy)
    )
    entry = policy.steering.entry
    steering = {"policy.steering": entry} if entry else {}
    decoded = await serving.decode(sent, raw, serving.plan(asked, _NAMES), steering=steering)
    applied = decoded.steered.described() if decoded.steered else None
    choices = decoded.response.choices
    tokens = decoded.response.usage.completion_tokens // len(choices)
    return [
        Answer(text_of(choice), tokens, decoded.plan.method_used, choice.finish_reason, applied)
        for choice in choices
    ]


def _constraint(policy: RuntimePolicy) -> dict[str, Any]:
    """The one constraint that decoding enforces, as fields of a request."""
    constraints = policy.constraints
    given: dict[str, Any] = {
        name: value
        for name in ("json_schema", "regex_pattern", "grammar")
        if (value := getattr(constraints, name)) is not None
    }
    if constraints.json_mode and not given:
        return {"response_format": {"type": "json_object"}}
    return given


def _response(outcome: Outcome) -> dict[str, Any]:
    winner = outcome.winner
    steering = {"steering": winner.answer.steering} if winner.answer.steering else {}
    return {
        **steering,
        "output": winner.answer.text,
        "accepted": winner.verdict.accepted,
        "policy_id": None,
        "score": winner.verdict.score,
        "latency_ms": outcome.latency_ms,
        "tokens": winner.answer.tokens,
        "constraints_ok": winner.verdict.constraints_ok,
        "verifier_ok": winner.verdict.verifier_ok,
    }


def _trace(policy: RuntimePolicy, outcome: Outcome) -> dict[str, Any]:
    return {
        "policy_name": policy.name,
        "candidates": [_candidate(trial) for trial in outcome.trials],
        "selection": _candidate(outcome.winner),
    }


def _candidate(trial: Trial) -> dict[str, Any]:
    return {
        "output": trial.answer.text,
        "accepted": trial.verdict.accepted,
        "score": trial.verdict.score,
        "latency_ms": trial.latency_ms,
        "tokens": trial.answer.tokens,
        "constraints_ok": trial.verdict.constraints_ok,
        "verifier_ok": trial.verdict.verifier_ok,
        "reason": trial.verdict.reason,
        "sampling_method": trial.answer.method_used,
        "finish_reason": trial.answer.finish_reason,
        "round": trial.round,
        "slot": trial.slot,
    }
