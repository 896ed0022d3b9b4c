"""Request models of /policies/run, compare, evaluate and autotune, and what their answers say."""

from typing import Annotated, Any, Self

from pydantic import Field, JsonValue, model_validator

from policies.policy import RuntimePolicy
from policies.run import Outcome, Retry, Trial
from policies.trials import MAX_AXES, MAX_TRIALS, MAX_VALUES
from server.wire import MaxTokens, Seed, Strict

Prompt = Annotated[str, Field(min_length=1)]
Prompts = Annotated[list[Prompt], Field(min_length=1, max_length=512)]
Axis = Annotated[list[JsonValue], Field(min_length=1, max_length=MAX_VALUES)]


class PolicyChoice(Strict):
    """`policy` or the id of a stored one."""

    policy: RuntimePolicy | None = None
    policy_id: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.policy is None) == (self.policy_id is None):
            raise ValueError("give exactly one of policy and policy_id")
        return self


class PolicyRunById(Strict):
    """POST /policies/{policy_id}/run."""

    prompt: Prompt
    model: str | None = None
    max_new_tokens: MaxTokens = 128
    include_trace: bool = True
    seed: Seed | None = Field(default=None, description="the same candidates, round by round")


class PolicyRunRequest(PolicyRunById, PolicyChoice):
    """POST /policies/run."""


class CompareRequest(Strict):
    prompt: Prompt
    policies: Annotated[list[RuntimePolicy], Field(min_length=1, max_length=64)]
    model: str | None = None
    max_new_tokens: MaxTokens = 128
    include_trace: bool = True
    seed: Seed | None = None


class EvaluateRequest(PolicyChoice):
    prompts: Prompts
    model: str | None = None
    max_new_tokens: MaxTokens = 128
    include_trace: bool = False
    seed: Seed | None = None


class AutotuneRequest(Strict):
    """POST /policies/autotune; without a base policy, top-k at its defaults."""

    prompts: Prompts
    base_policy: RuntimePolicy | None = None
    base_policy_id: str | None = None
    search_space: Annotated[dict[str, Axis], Field(max_length=MAX_AXES)] = Field(
        default={}, description="dotted path → values"
    )
    max_trials: Annotated[int, Field(ge=1, le=MAX_TRIALS)] = 24
    model: str | None = None
    max_new_tokens: MaxTokens = 128
    seed: Seed | None = None
    stream: bool = Field(default=False, description="progress by SSE")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.base_policy is not None and self.base_policy_id is not None:
            raise ValueError("give at most one of base_policy and base_policy_id")
        return self


def run_response(policy: RuntimePolicy, outcome: Outcome, *, trace: bool) -> dict[str, Any]:
    """Axionic's PolicyRunResponse, and what was steered."""
    winner = outcome.winner
    body = {
        "output": winner.answer.text,
        "accepted": winner.verdict.accepted,
        "policy_id": policy.id,
        "score": winner.verdict.score,
        "latency_ms": outcome.latency_ms,
        "tokens": winner.answer.tokens,
        "constraints_ok": winner.verdict.constraints_ok,
        "verifier_ok": winner.verdict.verifier_ok,
        "total_tokens": outcome.tokens,
    }
    if winner.answer.steering:
        body["steering"] = dict(winner.answer.steering)
    if winner.answer.behaviors:
        body["behaviors"] = list(winner.answer.behaviors)
    if trace:
        body["trace"] = traced(policy, outcome)
    return body


def outcome_summary(
    policy: RuntimePolicy, outcome: Outcome, *, trace: bool, choices: int = 1
) -> dict[str, Any]:
    """`steersman.policy` of an OpenAI response with so many choices."""
    winner = outcome.winner
    summary: dict[str, Any] = {
        "id": policy.id,
        "name": policy.name,
        "accepted": winner.verdict.accepted,
        "score": winner.verdict.score,
        "rounds": outcome.rounds,
        "candidates": len(outcome.trials),
        "reasons": list(winner.verdict.reasons),
        "constraints_ok": winner.verdict.constraints_ok,
        "verifier_ok": winner.verdict.verifier_ok,
    }
    if choices > 1:
        summary["choices"] = [
            {"accepted": trial.verdict.accepted, "score": trial.verdict.score}
            for trial in outcome.ranked[:choices]
        ]
    if trace:
        summary["trace"] = traced(policy, outcome)
    return summary


def traced(policy: RuntimePolicy, outcome: Outcome) -> dict[str, Any]:
    """What was tried, with which settings, and why each answer was rejected."""
    objective = policy.objective
    return {
        "policy_name": policy.name,
        "candidates": [_candidate(trial) for trial in outcome.trials],
        "retry_events": [_retry(retry) for retry in outcome.retries],
        "selection": _candidate(outcome.winner),
        "rounds": outcome.rounds,
        "constraints": {
            "masked": list(outcome.constraint.masked),
            "checked": list(outcome.constraint.checked),
        },
        "critiques": [
            {"text": critique.text, "tokens": critique.tokens, "kept": critique.kept}
            for critique in outcome.critiques
        ],
        "errors": [
            {"round": failure.round, "kind": failure.kind, "message": failure.message}
            for failure in outcome.failures
        ],
        "unavailable_methods": list(outcome.unavailable),
        "budgets": {
            "latency_ms": outcome.latency_ms,
            "latency_budget_ms": objective.latency_budget_ms,
            "tokens": outcome.tokens,
            "token_budget": objective.token_budget,
            "stopped_by": outcome.stopped,
            "overrun": objective.latency_budget_ms is not None
            and outcome.latency_ms > objective.latency_budget_ms,
        },
    }


def _retry(retry: Retry) -> dict[str, Any]:
    event = {"round": retry.round, "trigger": retry.trigger, "winner_score": retry.winner_score}
    return event if retry.confidence is None else {**event, "confidence": retry.confidence}


def _candidate(trial: Trial) -> dict[str, Any]:
    answer, verdict = trial.answer, trial.verdict
    described: dict[str, Any] = {
        "output": answer.text,
        "accepted": verdict.accepted,
        "score": verdict.score,
        "latency_ms": trial.latency_ms,
        "tokens": answer.tokens,
        "constraints_ok": verdict.constraints_ok,
        "verifier_ok": verdict.verifier_ok,
        "reason": verdict.reason,
        "sampling_method": answer.method_used,
        "finish_reason": answer.finish_reason,
        "round": trial.round,
        "slot": trial.slot,
        "kind": trial.kind,
        "temperature": answer.temperature,
        "top_p": answer.top_p,
    }
    more = {
        "model": trial.model,
        "confidence": trial.confidence,
        "mean_logprob": answer.mean_logprob,
        "pruned_at": answer.pruned_at,
        "votes": trial.votes or None,
        "measured": dict(verdict.measured) or None,
        "steering": dict(answer.steering) if answer.steering else None,
        "behaviors": list(answer.behaviors) if answer.behaviors else None,
        "warning": answer.warning,
    }
    return described | {name: value for name, value in more.items() if value is not None}
