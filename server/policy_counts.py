"""What metrics and traces say of a policy's run."""

from collections.abc import Iterator
from contextlib import contextmanager

from policies.policy import RuntimePolicy
from policies.run import Outcome
from server.metrics import POLICY_DECISIONS, POLICY_ERRORS, POLICY_SECONDS
from server.tracing import Attributes, note


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
    return outcome


def told_of(policy: RuntimePolicy) -> Attributes:
    return {"steersman.policy.verifiers": policy.verifiers.enabled}


@contextmanager
def counting_errors() -> Iterator[None]:
    """A run that ends without an answer."""
    try:
        yield
    except Exception:
        POLICY_ERRORS.labels("run").inc()
        raise
