"""Policies at work: /policies/run, /policies/{id}/run, compare, evaluate, autotune."""

import asyncio
import functools
import json
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from policies.policy import RuntimePolicy
from policies.run import Outcome
from policies.trials import BASE, Grid, Score, SearchError, Variant, best, grid
from server.addressing import addressed
from server.errors import InvalidRequest, SteersmanError
from server.policies import plain, require_size
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
from server.vllm_errors import reported
from server.vllm_serving import guarded, kept_alive

_PROMPTS_AT_ONCE = 8
_STREAMS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}

_BASE_PATH = "base_policy"  # where errors of a search stand that are on no axis


@dataclass(frozen=True, slots=True)
class Failed:
    """A run that has no outcome: what its client is told, and what was raised."""

    error: SteersmanError
    cause: Exception

    def described(self) -> dict[str, Any]:
        return {"error": self.error.message, "param": self.error.param}


Run = Outcome | Failed

router = APIRouter(route_class=JsonRoute, tags=["Axionic"])


@router.post("/policies/run")
@guarded
async def run_policy(request: PolicyRunRequest, raw_request: Request) -> Response:
    policy = await _policy(request.policy, request.policy_id, raw_request)
    return await _one(request, policy, raw_request)


@router.post("/policies/compare")
@guarded
async def compare(request: CompareRequest, raw_request: Request) -> Response:
    """One run for each policy, in order; one that fails leaves the others theirs."""
    results, runs = [], list[Run]()
    for index, given in enumerate(request.policies):
        policy = given.expanded()
        (run,) = await _over(policy, [request.prompt], request, raw_request, f"policies.{index}")
        runs.append(run)
        results.append(_told(policy, run, trace=request.include_trace))
    _require_any(_failed(runs), len(runs))
    return JSONResponse({"results": results})


@router.post("/policies/evaluate")
@guarded
async def evaluate(request: EvaluateRequest, raw_request: Request) -> Response:
    """One run for each prompt, in order; one that fails counts as not passed."""
    policy = await _policy(request.policy, request.policy_id, raw_request)
    runs = await _over(policy, request.prompts, request, raw_request)
    _require_any(_failed(runs), len(runs))
    score = asdict(_score(runs))
    outputs = [_told(policy, run, trace=request.include_trace) for run in runs]
    return JSONResponse({"num_prompts": len(runs), **score, "outputs": outputs})


@router.post("/policies/autotune", responses=_STREAMS)
@guarded
async def autotune(request: AutotuneRequest, raw_request: Request) -> Response:
    """Every point of the grid over dotted paths, up to `max_trials`, on all prompts.

    Points where a value has no effect beside the others are `skipped`, each with the reason. A trial names
    the prompts on which it failed.
    """
    base: Mapping[str, Any] = BASE
    if request.base_policy is not None:
        base = plain(request.base_policy)
        require_size(base, "base_policy", "a base policy")  # every trial holds and returns it
    elif request.base_policy_id is not None:
        base = plain(await _stored(request.base_policy_id, raw_request))
    try:
        # In a thread: a large base and grid take longer than other requests should wait.
        found = await asyncio.to_thread(grid, base, request.search_space, request.max_trials)
    except SearchError as error:
        raise InvalidRequest(str(error), param=error.field) from error
    trials = _trials(found.tried, request, raw_request)
    if request.stream or "text/event-stream" in raw_request.headers.get("accept", ""):
        interval = raw_request.app.state.steersman.serving.long_keep_alive
        events = kept_alive(_progress(found, trials), interval)
        return StreamingResponse(events, media_type="text/event-stream")
    return JSONResponse(_best(found, [trial async for trial in trials]))


@dataclass(frozen=True, slots=True)
class _Trial:
    """One point of a grid: its score over the prompts, and what failed by the prompt's index.

    Not the outcomes themselves, of which a search has thousands.
    """

    variant: Variant
    score: Score
    failed: Mapping[int, Failed]

    @classmethod
    def of(cls, variant: Variant, runs: Sequence[Run]) -> "_Trial":
        failed = {index: run for index, run in enumerate(runs) if isinstance(run, Failed)}
        return cls(variant, _score(runs), failed)

    def described(self) -> dict[str, Any]:
        described = {"policy": self.variant.plain, **asdict(self.score)}
        if self.failed:
            described["errors"] = [{"prompt": at, **run.described()} for at, run in self.failed.items()]
        return described


async def _trials(
    tried: Sequence[Variant], request: AutotuneRequest, raw: Request
) -> AsyncGenerator[_Trial, None]:
    for variant in tried:
        runs = await _over(variant.policy.expanded(), request.prompts, request, raw, _BASE_PATH)
        trial = _Trial.of(variant, runs)
        for run in trial.failed.values():
            run.error.param = _searched(run.error.param, request.search_space)
        yield trial


def _searched(param: str | None, axes: Iterable[str]) -> str | None:
    """Where the request has the field of a variant: on an axis, else in the base."""
    field = (param or "").removeprefix(f"{_BASE_PATH}.")
    axis = next((axis for axis in axes if f"{field}.".startswith(f"{axis}.")), None)
    return param if axis is None else f"search_space.{axis}"


async def _progress(found: Grid, trials: AsyncGenerator[_Trial, None]) -> AsyncGenerator[str, None]:
    done = list[_Trial]()
    try:
        async with aclosing(trials):
            async for trial in trials:
                done.append(trial)
                progress = {"done": len(done), "of": len(found.tried), "trial": trial.described()}
                yield _event({"status": "processing", "progress": progress})
        last = {"status": "complete", "result": _best(found, done)}
    except Exception as error:  # noqa: BLE001  # the status is sent: the stream says that it failed
        last = {"status": "error", "message": reported(error).message}
    yield _event(last)


def _event(payload: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(payload, ensure_ascii=False)}\n\n"


def _best(found: Grid, done: Sequence[_Trial]) -> dict[str, Any]:
    """Raises what every run of every trial failed with."""
    failed = [run for trial in done for run in trial.failed.values()]
    _require_any(failed, sum(trial.score.pass_count + trial.score.fail_count for trial in done))
    trials = [trial.described() for trial in done]
    winner = trials[best([trial.score for trial in done])]
    skipped = [asdict(point) for point in found.skipped]
    return {"best_policy": winner["policy"], "best_trial": winner, "trials": trials, "skipped": skipped}


# After the routes above, whose names it would take for ids.
@router.post("/policies/{policy_id}/run")
@guarded
async def run_stored_policy(policy_id: str, request: PolicyRunById, raw_request: Request) -> Response:
    policy = (await _stored(policy_id, raw_request)).expanded()
    return await _one(request, policy, raw_request)


async def _one(request: PolicyRunById, policy: RuntimePolicy, raw: Request) -> Response:
    outcome = await _run(policy, request.prompt, request, raw, "policy")
    body = run_response(policy, outcome, trace=request.include_trace)
    return JSONResponse(body, headers=outcome_evidence(outcome))


async def _over(
    policy: RuntimePolicy, prompts: Sequence[str], request: Any, raw: Request, path: str = "policy"
) -> list[Run]:
    """One run for each prompt, some of them side by side, whatever becomes of the others."""

    async def kept(prompt: str) -> Run:
        try:
            return await _run(policy, prompt, request, raw, path)
        except Exception as error:  # noqa: BLE001  # told in place of this one's answer
            return Failed(reported(error), error.with_traceback(None))  # which would hold what it ran in

    return await together([functools.partial(kept, prompt) for prompt in prompts], at_once=_PROMPTS_AT_ONCE)


async def _run(policy: RuntimePolicy, prompt: str, request: Any, raw: Request, path: str) -> Outcome:
    state = raw.app.state.steersman
    # Of its own: the model that is named may stand in another project than the next run's.
    raw = Request({**raw.scope, "state": dict(raw.scope["state"])}, raw.receive)
    template = native_template(
        state.serving,
        prompt,
        policy,
        model=request.model,
        max_tokens=request.max_new_tokens,
        seed=request.seed,
    )
    template = await addressed(template, raw, binds=())
    outcome: Outcome = await state.policy_runs.run(policy, template, raw, path=path)
    return outcome


def _failed(runs: Sequence[Run]) -> list[Failed]:
    return [run for run in runs if isinstance(run, Failed)]


def _require_any(failed: Sequence[Failed], of: int) -> None:
    """Raises what all runs failed with, where that is one and the same: it is the request's own fault."""
    alike = {(run.error.status, run.error.message, run.error.param) for run in failed}
    if len(failed) == of and len(alike) == 1:
        raise failed[0].cause


def _score(runs: Sequence[Run]) -> Score:
    outcomes = [run for run in runs if not isinstance(run, Failed)]
    return Score.of(outcomes, errors=len(runs) - len(outcomes))


def _told(policy: RuntimePolicy, run: Run, *, trace: bool) -> dict[str, Any]:
    if isinstance(run, Failed):
        return {"accepted": False, "policy_id": policy.id, **run.described()}
    return run_response(policy, run, trace=trace)


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
