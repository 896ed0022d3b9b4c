"""What metrics, traces and the log of calls say of a policy's run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from policies.policy import RuntimePolicy
from policies.run import Outcome
from server.metrics import POLICY_DECISIONS, POLICY_ERRORS, POLICY_SECONDS
from server.observation import observed
from server.tracing import Attributes, note

_CANDIDATES: Final = 32  # that are kept of a run


def counted(outcome: Outcome) -> Outcome:
    decision = "accepted" if outcome.winner.verdict.accepted else "rejected"
    POLICY_DECISIONS.labels(decision).inc()
    POLICY_SECONDS.observe(outcome.latency_ms / 1000)
    for failure in outcome.failures:
        POLICY_ERRORS.labels(failure.kind).inc()
    note(
        {
            "steersman.policy.outcome": decision,
            "steersman.policy.rounds": outcome.rounds,
            "steersman.policy.candidates": len(outcome.trials),
            "steersman.policy.method": outcome.winner.method,
            "steersman.policy.stopped": outcome.stopped or "",
        }
    )
    observed().judges(_evidence(outcome, decision))
    return outcome


def _evidence(outcome: Outcome, decision: str) -> dict[str, Any]:
    """Names and numbers: what verifiers say may quote the answer."""
    return {
        "outcome": decision,
        "stopped": outcome.stopped,
        "rounds": outcome.rounds,
        "candidates": [
            {
                "round": trial.round,
                "kind": trial.kind,
                "method": trial.method,
                "score": round(trial.verdict.score, 4),
                "broken": trial.verdict.broken is not None,
                "failed": sorted(trial.verdict.failed),
                "chosen": trial is outcome.winner,
            }
            for trial in outcome.trials[:_CANDIDATES]
        ],
        "tokens": outcome.tokens,
        "latency_ms": outcome.latency_ms,
    }


def told_of(policy: RuntimePolicy) -> Attributes:
    return {"steersman.policy.verifiers": policy.verifiers.enabled}


@contextmanager
def counting_errors() -> Iterator[None]:
    """A run that ends without an answer."""
    try:
        yield
    except Exception:  # whatever it was, it is counted and goes on
        POLICY_ERRORS.labels("run").inc()
        raise
