"""Policies at work: /policies/run, /policies/{id}/run, compare, evaluate, autotune."""

import functools
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from policies.policy import RuntimePolicy
from policies.run import Outcome
from policies.trials import BASE, Grid, Score, SearchError, Variant, best, grid
from server.errors import InvalidRequest, SteersmanError
from server.policies import plain
from server.policy_requests import native_template
from server.policy_wire import (
    AutotuneRequest,
    CompareRequest,
    EvaluateRequest,
    PolicyRunById,
    PolicyRunRequest,
    run_response,
)
from server.routes.body import JsonRoute
from server.routes.evidence import outcome_evidence
from server.together import together
from server.vllm_serving import guarded, kept_alive

_PROMPTS_AT_ONCE = 8
_KEEP_ALIVE_SECONDS = 15.0
_STREAMS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}

router = APIRouter(route_class=JsonRoute, tags=["Axionic"])


@router.post("/policies/run")
@guarded
async def run_policy(request: PolicyRunRequest, raw_request: Request) -> Response:
    policy = await _policy(request.policy, request.policy_id, raw_request)
    return await _one(request, policy, raw_request)


@router.post("/policies/compare")
@guarded
async def compare(request: CompareRequest, raw_request: Request) -> Response:
    """One run for each policy, in order."""
    results = []
    for index, given in enumerate(request.policies):
        policy = given.expanded()
        (outcome,) = await _over(policy, [request.prompt], request, raw_request, f"policies.{index}")
        results.append(run_response(policy, outcome, trace=request.include_trace))
    return JSONResponse({"results": results})


@router.post("/policies/evaluate")
@guarded
async def evaluate(request: EvaluateRequest, raw_request: Request) -> Response:
    policy = await _policy(request.policy, request.policy_id, raw_request)
    outcomes = await _over(policy, request.prompts, request, raw_request)
    score = Score.of(outcomes)
    return JSONResponse(
        {
            "num_prompts": len(outcomes),
            "success_rate": score.success_rate,
            "avg_score": score.avg_score,
            "avg_latency_ms": score.avg_latency_ms,
            "avg_tokens": score.avg_tokens,
            "pass_count": score.pass_count,
            "fail_count": score.fail_count,
            "outputs": [run_response(policy, outcome, trace=request.include_trace) for outcome in outcomes],
        }
    )


@router.post("/policies/autotune", responses=_STREAMS)
@guarded
async def autotune(request: AutotuneRequest, raw_request: Request) -> Response:
    """Every point of the grid over dotted paths, up to `max_trials`, on all prompts.

    Points where a value has no effect beside the others are `skipped`, each with the reason.
    """
    base: Mapping[str, Any] = BASE
    if request.base_policy is not None:
        base = plain(request.base_policy)
    elif request.base_policy_id is not None:
        base = plain(await _stored(request.base_policy_id, raw_request))
    try:
        found = grid(base, request.search_space, request.max_trials)
    except SearchError as error:
        raise InvalidRequest(str(error), param=error.field) from error
    trials = _trials(found.tried, request, raw_request)
    if request.stream or "text/event-stream" in raw_request.headers.get("accept", ""):
        events = kept_alive(_progress(found, trials), _KEEP_ALIVE_SECONDS)
        return StreamingResponse(events, media_type="text/event-stream")
    return JSONResponse(_best(found, [score async for score in trials]))


async def _trials(
    tried: Sequence[Variant], request: AutotuneRequest, raw: Request
) -> AsyncGenerator[Score, None]:
    for variant in tried:
        policy = variant.policy.expanded()
        yield Score.of(await _over(policy, request.prompts, request, raw, "search_space"))


async def _progress(found: Grid, trials: AsyncGenerator[Score, None]) -> AsyncGenerator[str, None]:
    tried, scores = found.tried, list[Score]()
    try:
        async for score in trials:
            scores.append(score)
            done = {"done": len(scores), "of": len(tried), "trial": _trial(tried[len(scores) - 1], score)}
            yield _event({"status": "processing", "progress": done})
    except SteersmanError as error:
        yield _event({"status": "error", "message": error.message})
        return
    yield _event({"status": "complete", "result": _best(found, scores)})


def _event(payload: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(payload, ensure_ascii=False)}\n\n"


def _best(found: Grid, scores: Sequence[Score]) -> dict[str, Any]:
    trials = [_trial(variant, score) for variant, score in zip(found.tried, scores, strict=True)]
    winner = trials[best(scores)]
    skipped = [asdict(point) for point in found.skipped]
    return {"best_policy": winner["policy"], "best_trial": winner, "trials": trials, "skipped": skipped}


def _trial(variant: Variant, score: Score) -> dict[str, Any]:
    return {"policy": variant.plain, **asdict(score)}


# After the routes above, whose names it would take for ids.
@router.post("/policies/{policy_id}/run")
@guarded
async def run_stored_policy(policy_id: str, request: PolicyRunById, raw_request: Request) -> Response:
    policy = (await _stored(policy_id, raw_request)).expanded()
    return await _one(request, policy, raw_request)


async def _one(request: PolicyRunById, policy: RuntimePolicy, raw: Request) -> Response:
    (outcome,) = await _over(policy, [request.prompt], request, raw)
    body = run_response(policy, outcome, trace=request.include_trace)
    return JSONResponse(body, headers=outcome_evidence(outcome))


async def _over(
    policy: RuntimePolicy, prompts: Sequence[str], request: Any, raw: Request, path: str = "policy"
) -> list[Outcome]:
    """One run for each prompt, some of them side by side."""
    state = raw.app.state.steersman
    runs: list[Callable[[], Awaitable[Outcome]]] = []
    for prompt in prompts:
        template = native_template(
            state.serving,
            prompt,
            policy,
            model=request.model,
            max_tokens=request.max_new_tokens,
            seed=request.seed,
        )
        runs.append(functools.partial(state.policy_runs.run, policy, template, raw, path=path))
    return await together(runs, at_once=_PROMPTS_AT_ONCE)


async def _policy(policy: RuntimePolicy | None, policy_id: str | None, raw: Request) -> RuntimePolicy:
    if policy is None:
        assert policy_id is not None  # one of both is given
        policy = await _stored(policy_id, raw)
    return policy.expanded()


async def _stored(policy_id: str, raw: Request) -> RuntimePolicy:
    state = raw.app.state.steersman
    record = await state.policies.get(raw.state.principal.account_id, policy_id)
    policy: RuntimePolicy = record.policy
    return policy
