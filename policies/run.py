"""Run a policy: rounds of candidates, each judged, until one is accepted."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from policies.policy import RuntimePolicy
from policies.sampling import Asked, Method, own_fields, resolve
from policies.verdict import Verdict, judge


@dataclass(frozen=True, slots=True)
class Answer:
    """One generated text, its tokens, and the method that produced it."""

    text: str
    tokens: int
    method_used: str
    finish_reason: str | None
    steering: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    answer: Answer
    verdict: Verdict
    latency_ms: int
    round: int
    slot: int


@dataclass(frozen=True, slots=True)
class Outcome:
    winner: Trial
    trials: tuple[Trial, ...]

    @property
    def latency_ms(self) -> int:
        """Rounds follow one another, candidates of a round run side by side."""
        return sum({trial.round: trial.latency_ms for trial in self.trials}.values())


Generate = Callable[[Asked], Awaitable[Sequence[Answer]]]
Judge = Callable[[Sequence[str], RuntimePolicy], Awaitable[Sequence[Verdict]]]


async def judge_here(texts: Sequence[str], policy: RuntimePolicy) -> Sequence[Verdict]:
    """For policies that may be trusted: a client's regex or schema can take for ever."""
    return [judge(text, policy) for text in texts]


async def run(policy: RuntimePolicy, generate: Generate, judge_round: Judge = judge_here) -> Outcome:
    """At most 1 + retry_on_failure rounds; the winner over all of them: accepted, then score, then speed.

    `generate` gives at least one answer; what it and `judge_round` raise passes through.
    """
    trials: list[Trial] = []
    for number in range(policy.optimization.retry_on_failure + 1):
        started = time.perf_counter()
        answers = await generate(asked(policy, number))
        latency = round((time.perf_counter() - started) * 1000)
        verdicts = await judge_round([answer.text for answer in answers], policy)
        trials += [
            Trial(answer, verdict, latency, number, slot)
            for slot, (answer, verdict) in enumerate(zip(answers, verdicts, strict=True))
        ]
        winner = max(trials, key=lambda t: (t.verdict.accepted, t.verdict.score, -t.latency_ms))
        if winner.verdict.accepted:
            break
    return Outcome(winner, tuple(trials))


def asked(policy: RuntimePolicy, retry: int) -> Asked:
    """The sampling of round `retry`; each retry is a little cooler than the one before, down to a floor.

    A first round below the floor is retried at the floor, lest every round be the same.
    """
    sampling, constraints = policy.sampling, policy.constraints
    count = max(policy.optimization.best_of_n, sampling.num_candidates)
    method = resolve(sampling.method)
    ensemble, beam = method is Method.ENSEMBLE, method is Method.BEAM
    cooled = retry * (retry + 1) / 2  # the steps 1, 2, … add up
    return own_fields(
        Asked(
            method=sampling.method,
            temperature=sampling.temperature
            if retry == 0
            else max(0.05, sampling.temperature - 0.08 * cooled),
            top_p=sampling.top_p if retry == 0 else max(0.2, sampling.top_p - 0.04 * cooled),
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            typical_p=sampling.typical_p,
            ads_subset_size=sampling.ads_subset_size,
            ads_beta=sampling.ads_beta,
            beam_width=max(sampling.beam_width, count) if beam else None,
            n=1 if ensemble else count,
            best_of=count if ensemble and count > 1 else None,
            ensemble_models=tuple(sampling.ensemble_models),
            draft_model=sampling.draft_model,
            constrained=constraints.json_mode
            or any(
                given is not None
                for given in (constraints.json_schema, constraints.regex_pattern, constraints.grammar)
            ),
        )
    )
