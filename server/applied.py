"""How one request is steered and watched, and what its answer says of that."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from server.metrics import STEERING_REQUESTS, STEERING_TOKENS
from server.monitor import Drift, Scores, Watched, drifts
from server.residency import Lease
from steering.spec import Gate, GateKind, SteeringSpec, Term


@dataclass(frozen=True, slots=True)
class Counted:
    """Input tokens that the worker steered, by phase, and the scores of what it watched (see `drifts`)."""

    prompt_tokens: int
    generated_tokens: int
    scores: tuple[Scores, ...] = ()


class Engine(Protocol):
    async def evidence(self, trace: str) -> Counted: ...
    async def watched(self, trace: str) -> tuple[Scores, ...]: ...
    def forget(self, trace: str) -> None: ...


@dataclass(frozen=True, slots=True)
class AppliedVector:
    """One entry of a request as it took effect; `doses` are |s| ‖v‖ / ‖h‖ by layer."""

    id: str | None
    name: str | None
    term: Term
    doses: Mapping[int, float]

    def described(self) -> dict[str, Any]:
        tokens = self.term.tokens
        described = {
            "id": self.id,
            "name": self.name,
            "digest": self.term.vector,
            "operation": self.term.operation.value,
            "strength": self.term.strength,
            "layers": list(self.term.layers),
            "tokens": tokens.phase.value,
            "token_start": tokens.start,
            "token_end": tokens.end,
            "low": self.term.low if np.isfinite(self.term.low) else None,
            "high": self.term.high if np.isfinite(self.term.high) else None,
            "gate": _gate(self.term.gate),
            "relative_dose": {str(layer): round(dose, 4) for layer, dose in self.doses.items()},
        }
        return {name: value for name, value in described.items() if value is not None}


@dataclass(slots=True)
class Applied:
    """How one request is steered, until `release`. `dose` is the largest of the residual stream's shifts:
    at each layer the sum of all that was added up to there, against the state's own length.
    """

    spec: SteeringSpec
    vectors: tuple[AppliedVector, ...]
    dose: float
    warning: str | None
    engine: Engine
    watched: tuple[Watched, ...] = ()
    before: Mapping[str, Drift] = field(default_factory=dict)  # of an answer that was dropped, by behaviour
    lease: Lease | None = None
    counted: Counted | None = None
    asked: bool = False

    async def count(self) -> None:
        """Have the worker say what it did. Raises Unavailable where it did nothing."""
        if self.spec.idle:
            return
        self.asked = True
        self.counted = counted = await self.engine.evidence(self.spec.trace)
        STEERING_TOKENS.labels("prompt").inc(counted.prompt_tokens)
        STEERING_TOKENS.labels("generated").inc(counted.generated_tokens)
        for vector in self.vectors:
            STEERING_REQUESTS.labels(vector.term.operation.value).inc()
        for each in self.drifts:
            each.observe()

    async def scores(self) -> tuple[Scores, ...]:
        """Of what was generated until now."""
        return await self.engine.watched(self.spec.trace)

    @property
    def drifts(self) -> tuple[Drift, ...]:
        """Once it is counted."""
        return drifts(self.watched, self.counted.scores if self.counted else (), self.before)

    def release(self) -> None:
        if not self.spec.idle and not self.asked:  # the client left: nobody wants to know what was done
            self.asked = True
            self.engine.forget(self.spec.trace)
        if self.lease is not None:
            self.lease.release()

    def headers(self) -> dict[str, str]:
        """What is known before the first token."""
        headers = {"x-steersman-steering": self.spec.fingerprint()} if self._steers else {}
        return headers | ({"x-steersman-warning": self.warning} if self.warning else {})

    @property
    def _steers(self) -> bool:
        """A request that is only watched says nothing of steering."""
        return self.spec.acts or not self.watched

    def told(self) -> dict[str, Any]:
        """What an answer says under `steersman`."""
        told: dict[str, Any] = {"steering": self.described()} if self._steers else {}
        if self.watched:
            told["behaviors"] = [each.described() for each in self.drifts]
        return told

    def described(self) -> dict[str, Any]:
        counted = self.counted or Counted(0, 0)
        described: dict[str, Any] = {
            "fingerprint": self.spec.fingerprint(),
            "vectors": [vector.described() for vector in self.vectors],
            "dose": round(self.dose, 4),
            "prompt_tokens": counted.prompt_tokens,
            "generated_tokens": counted.generated_tokens,
        }
        if self.warning:
            described["warning"] = self.warning
        return described


def _gate(gate: Gate | None) -> dict[str, Any] | None:
    """A gate as evidence: what opens it, and how far."""
    if gate is None:
        return None
    described: dict[str, Any] = {
        "kind": gate.kind.value,
        "digest": gate.vector,
        "inverted": gate.inverted,
    }
    if gate.kind is not GateKind.PROBE:
        described["threshold"] = gate.threshold
    if gate.kind is GateKind.RAMP:
        described["slope"] = gate.slope
    return described
