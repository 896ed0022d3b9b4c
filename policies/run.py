"""Run a policy: rounds of candidates, each judged, until one is accepted; then repairs and revisions.

Everything outside is behind two protocols: `Generate` (the engine) and `Verify` (judging).
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from policies.enforced import Enforced, enforced
from policies.policy import RuntimePolicy
from policies.rounds import Round, free, plan_round, single
from policies.sampling import PlanError
from policies.verdict import Text, Verdict
from policies.vote import normalise

CRITIQUE_TOKENS = 128
PRUNING_SHARES = (1 / 8, 1 / 4, 1 / 2)  # of a candidate's tokens: at each, the worse half ends
_USUAL_TOKENS = 256  # where a request sets no limit
_LEAST_TOKENS = 16  # of a candidate under a budget, unless the request has less


class Kind(StrEnum):
    CANDIDATE = "candidate"
    REPAIR = "repair"
    REVISION = "revision"


@dataclass(frozen=True, slots=True)
class Answer:
    """One generated text. `mean_logprob` is per token, in nats, where the request asked for it.

    `temperature` and `top_p` are those it was drawn with, None where the model's own stood. `source` is
    whatever the generator needs to make a response of this answer.
    """

    text: str
    tokens: int
    method_used: str
    finish_reason: str | None
    temperature: float | None = None
    top_p: float | None = None
    mean_logprob: float | None = None
    pruned_at: int | None = None
    steering: Mapping[str, Any] | None = None
    behaviors: Sequence[Mapping[str, Any]] | None = None
    warning: str | None = None
    source: Any = None

    @property
    def cut(self) -> bool:
        return self.finish_reason == "length" or self.pruned_at is not None


@dataclass(frozen=True, slots=True)
class Turn:
    """What follows the prompt: an answer, and what is said to it."""

    answer: str
    reply: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One call of the engine: `round.slots` candidates for the prompt and the turns after it.

    `constraint` None: free text, as for a critique. `checkpoints` are token counts at which the worse half
    of the candidates ends, by mean log-probability. `max_tokens` None: what the context has room for.
    """

    round: Round
    constraint: Enforced | None
    turns: tuple[Turn, ...] = ()
    max_tokens: int | None
    scored: bool = False
    checkpoints: tuple[int, ...] = ()
    number: int = 0

    @property
    def alone(self) -> str | None:
        """The model of the only candidate, where that is not the request's."""
        return self.round.slots[0].model if len(self.round.slots) == 1 else None


class MethodUnavailableError(Exception):
    """This engine cannot sample so; `reason` is what a client is told if nothing else can be tried."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Generate(Protocol):
    async def __call__(self, ask: Ask) -> Sequence[Answer]:
        """At least one answer. Raises MethodUnavailableError; whatever else it raises passes through."""
        ...


class Verify(Protocol):
    async def __call__(self, texts: Sequence[Text]) -> Sequence[Verdict]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One answer with its verdict. `votes` are those of its text among its round's, for an ensemble."""

    answer: Answer
    verdict: Verdict
    kind: Kind
    method: str
    round: int
    slot: int
    latency_ms: int
    model: str | None = None
    votes: int = 0

    @property
    def confidence(self) -> float | None:
        """How sure the model was and the verifiers are: the lesser of the geometric mean of the tokens'
        probabilities and the score. None where no log-probabilities were asked for."""
        if self.answer.mean_logprob is None:
            return None
        return min(self.verdict.score, math.exp(self.answer.mean_logprob))


@dataclass(frozen=True, slots=True)
class Retry:
    """Round `round` follows, because of `trigger`. `confidence` is the winner's, where it is known."""

    round: int
    trigger: str
    winner_score: float
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Critique:
    text: str
    tokens: int
    kept: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """A call of round `round` that came to nothing once there was an answer, which stands."""

    round: int
    kind: Kind
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`ranked` are the trials that could win, the winner first; `stopped` is the budget that ended it, or
    "error"; `unavailable` the methods that this engine does not have."""

    winner: Trial
    trials: tuple[Trial, ...]
    ranked: tuple[Trial, ...]
    retries: tuple[Retry, ...] = ()
    critiques: tuple[Critique, ...] = ()
    failures: tuple[Failure, ...] = ()
    unavailable: tuple[str, ...] = ()
    constraint: Enforced
    stopped: str | None = None
    latency_ms: int
    tokens: int
    rounds: int


@dataclass(slots=True)
class Runner:
    """One run of `policy`. `clock` is in seconds; `say` is what a client may be told of an error; `explicit`
    is as in `plan_round`. `seeded`: another run is to end alike."""

    policy: RuntimePolicy
    generate: Generate
    verify: Verify
    max_tokens: int | None
    grammar_compiles: bool = True
    explicit: Collection[str] = ()
    seeded: bool = False
    clock: Callable[[], float] = time.perf_counter
    say: Callable[[Exception], str] = str
    _constraint: Enforced = field(init=False)
    _trials: list[Trial] = field(default_factory=list)
    _retries: list[Retry] = field(default_factory=list)
    _critiques: list[Critique] = field(default_factory=list)
    _failures: list[Failure] = field(default_factory=list)
    _unavailable: list[str] = field(default_factory=list)
    _mended: list[Trial] = field(default_factory=list)
    _line: list[str] = field(default_factory=list)
    _revised: Trial | None = None
    _stopped: str | None = None
    _tokens: int = 0
    _started: float = 0.0

    def __post_init__(self) -> None:
        self._constraint = enforced(self.policy, grammar_compiles=self.grammar_compiles)

    async def run(self) -> Outcome:
        """At most 1 + retry_on_failure rounds, the winner over all of them.

        What the protocols raise before there is an answer passes through, but for a method that is
        unavailable while another is in line. Later it is noted, and the best so far is the outcome.
        """
        self._started = self.clock()
        self._line = list(self.policy.methods)
        optimization = self.policy.optimization
        confident = optimization.confidence_triggered_regeneration
        rounds = 1 + max(optimization.retry_on_failure, 1 if confident else 0)
        number = 0
        while True:
            planned: Round | None = None
            with self._surviving(number, Kind.CANDIDATE):
                planned = await self._round(number)
            if planned is None:
                break
            await self._repair(planned, number)
            number += 1
            if self._content() or number == rounds or not self._may_go_on():
                break
            trigger = "confidence" if self._unsure() else "accepted=false"
            winner = self.winner
            self._retries.append(Retry(number, trigger, winner.verdict.score, winner.confidence))
        for _ in range(optimization.self_revision_loops):
            if not self._may_go_on():
                break
            await self._revise(number - 1)
        winner = self.winner
        others = (trial for trial in self._ranked() if trial is not winner)
        return Outcome(
            winner=winner,
            trials=tuple(self._trials),
            ranked=(winner, *others),
            retries=tuple(self._retries),
            critiques=tuple(self._critiques),
            failures=tuple(self._failures),
            unavailable=tuple(self._unavailable),
            constraint=self._constraint,
            stopped=self._stopped,
            latency_ms=round(1000 * (self.clock() - self._started)),
            tokens=self._tokens,
            rounds=number,
        )

    @property
    def winner(self) -> Trial:
        return self._revised or self._ranked()[0]

    def _ranked(self) -> list[Trial]:
        return ranked(self._trials, self.policy, seeded=self.seeded)

    def _content(self) -> bool:
        return self.winner.verdict.accepted and not self._unsure()

    def _unsure(self) -> bool:
        optimization, confidence = self.policy.optimization, self.winner.confidence
        if not optimization.confidence_triggered_regeneration:
            return False
        return confidence is None or confidence < optimization.confidence_threshold

    def _may_go_on(self) -> bool:
        """Whether the budgets leave room for another call; the first that does not is noted."""
        objective = self.policy.objective
        budget, elapsed = objective.latency_budget_ms, 1000 * (self.clock() - self._started)
        if budget is not None and elapsed >= budget:
            self._stopped = self._stopped or "latency_budget_ms"
        elif objective.token_budget is not None and self._tokens >= objective.token_budget:
            self._stopped = self._stopped or "token_budget"
        return self._stopped is None

    def _left(self, count: int, most: int | None = None) -> int | None:
        """Tokens that each of `count` candidates may have; None: no end but the context's."""
        budget = self.policy.objective.token_budget
        left = None if budget is None else max(1, (budget - self._tokens) // count)
        return min((each for each in (self.max_tokens, left, most) if each is not None), default=None)

    @contextmanager
    def _surviving(self, number: int, kind: Kind) -> Iterator[None]:
        """An error within costs no answer that is on record. A repair's may be followed by a round, others
        by nothing."""
        try:
            yield
        except Exception as error:  # whatever it is: an answer that is there outweighs it
            if not self._trials:
                raise
            cause = error.reason if isinstance(error, MethodUnavailableError) else error
            self._failures.append(Failure(number, kind, self.say(cause)))
            if kind is not Kind.REPAIR:
                self._stopped = "error"

    async def _round(self, number: int) -> Round:
        """By the next method in line; one that this engine does not have makes way for the one after it, or
        at the end of the line for the one that sampled last."""
        while True:
            method = self._line.pop(0) if self._line else self._trials[-1].method
            known = method in {trial.method for trial in self._trials}
            try:
                return await self._sample(number, method)
            except (MethodUnavailableError, PlanError) as error:
                if not self._line and (known or not self._trials):
                    raise (error.reason if isinstance(error, MethodUnavailableError) else error) from None
                self._unavailable.append(method)

    def direct(self) -> Ask:
        """The one call of a policy with nothing to judge, to be streamed as it is decoded."""
        self._started = self.clock()
        return self._ask(0, self.policy.sampling.method)

    def directly(self, answer: Answer) -> Outcome:
        """What `direct` came to."""
        latency = round(1000 * (self.clock() - self._started))
        trial = Trial(
            answer=answer,
            verdict=Verdict(),
            kind=Kind.CANDIDATE,
            method=self.policy.sampling.method,
            round=0,
            slot=0,
            latency_ms=latency,
        )
        return Outcome(
            winner=trial,
            trials=(trial,),
            ranked=(trial,),
            constraint=self._constraint,
            latency_ms=latency,
            tokens=answer.tokens,
            rounds=1,
        )

    async def _sample(self, number: int, method: str) -> Round:
        ask = self._ask(number, method)
        await self._try(ask, Kind.CANDIDATE)
        return ask.round

    def _ask(self, number: int, method: str) -> Ask:
        optimization = self.policy.optimization
        constraint = self._constraint
        planned = plan_round(self.policy, constraint, number, method, self.explicit)
        budget = self.policy.objective.token_budget
        if budget is not None:
            planned = planned.first(affordable(budget - self._tokens, self.max_tokens))
        length = self._left(len(planned.slots))
        checkpoints: tuple[int, ...] = ()
        if optimization.branch_and_prune and planned.drawn and len(planned.slots) > 1:
            shares = {max(1, round((length or _USUAL_TOKENS) * share)) for share in PRUNING_SHARES}
            checkpoints = tuple(sorted(shares))
        return Ask(
            round=planned,
            constraint=constraint,
            max_tokens=length,
            # Beams come in the order of their likelihood already.
            scored=optimization.confidence_triggered_regeneration
            or (planned.drawn and len(planned.slots) > 1),
            checkpoints=checkpoints,
            number=number,
        )

    async def _try(self, ask: Ask, kind: Kind) -> Sequence[Trial]:
        """Generate and judge; what it came to is on record."""
        started = self.clock()
        answers = await self.generate(ask)
        latency = round(1000 * (self.clock() - started))
        self._tokens += sum(answer.tokens for answer in answers)
        verdicts = await self.verify([Text(answer.text, answer.cut) for answer in answers])
        ballots = Counter(normalise(answer.text) for answer in answers)
        slots = ask.round.slots
        made = [
            Trial(
                answer=answer,
                verdict=verdict,
                kind=kind,
                method=ask.round.method,
                round=ask.number,
                slot=slot,
                latency_ms=latency,
                model=slots[min(slot, len(slots) - 1)].model,
                votes=ballots[normalise(answer.text)] if ask.round.votes else 0,
            )
            for slot, (answer, verdict) in enumerate(zip(answers, verdicts, strict=True))
        ]
        self._trials += made
        return made

    async def _repair(self, planned: Round, number: int) -> None:
        """Have a rejected winner written again, told why: each one once, while repairs are left. A rejected
        repair that is better than all others is such a winner too."""
        verifiers = self.policy.verifiers
        while verifiers.repair_on_failure and len(self._mended) < verifiers.max_retries:
            rejected = self.winner
            if rejected.verdict.accepted or any(rejected is each for each in self._mended):
                return
            if not self._may_go_on():
                return
            self._mended.append(rejected)
            turn = Turn(rejected.answer.text, repair_request(rejected))
            with self._surviving(number, Kind.REPAIR):
                await self._again(planned, number, Kind.REPAIR, turn)

    async def _again(self, planned: Round, number: int, kind: Kind, *turns: Turn) -> Trial:
        ask = Ask(
            round=single(planned),
            constraint=self._constraint,
            turns=turns,
            max_tokens=self._left(1),
            scored=self.policy.optimization.confidence_triggered_regeneration,
            number=number,
        )
        (trial,) = await self._try(ask, kind)
        return trial

    async def _revise(self, number: int) -> None:
        """One pass of critique and revision over the winner; the revision has to be as good to be kept, and
        as complete. None begins where it could not be as long."""
        before = self.winner
        budget, most = self.policy.objective.token_budget, CRITIQUE_TOKENS
        if budget is not None:
            most = min(most, budget - self._tokens - before.answer.tokens)
        if most < _LEAST_TOKENS:
            self._stopped = "token_budget"
            return
        planned = plan_round(self.policy, self._constraint, number, before.method, self.explicit)
        asking = Ask(
            round=free(planned),
            constraint=None,
            turns=(Turn(before.answer.text, CRITIQUE_REQUEST),),
            max_tokens=self._left(1, most),
            number=number,
        )
        critique: Answer | None = None
        with self._surviving(number, Kind.REVISION):
            (critique, *_) = await self.generate(asking)
        if critique is None:
            return
        self._tokens += critique.tokens
        kept = False
        if self._may_go_on():
            turns = (Turn(before.answer.text, CRITIQUE_REQUEST), Turn(critique.text, REVISION_REQUEST))
            with self._surviving(number, Kind.REVISION):
                revised = await self._again(planned, number, Kind.REVISION, *turns)
                complete = before.answer.cut or not revised.answer.cut
                kept = complete and _merit(revised, self.policy) >= _merit(before, self.policy)
                self._revised = revised if kept else self._revised
        self._critiques.append(Critique(critique.text, critique.tokens, kept))


CRITIQUE_REQUEST = (
    "Look at your answer again. Name in a few words what is wrong, missing or unclear in it. If nothing is,"
    " say so."
)
REVISION_REQUEST = "Write the whole answer again with that mended. Give the answer alone."
_REASON_CHARACTERS = 1000


def affordable(tokens: int, max_tokens: int | None) -> int:
    """Candidates that so many tokens are enough for: a few with room rather than many cut at once."""
    return max(1, tokens // min(max_tokens or _LEAST_TOKENS, _LEAST_TOKENS))


def ranked(trials: Sequence[Trial], policy: RuntimePolicy, *, seeded: bool = False) -> list[Trial]:
    """Accepted ones first, then the most votes, the highest score, the greatest speed; the likeliest of a
    round, the first of equals. Under a seed the earlier round counts as the faster, lest time decide.

    Without `rerank` the accepted ones in their order. What was pruned cannot win: a heat leaves one at least.
    """
    trials = [trial for trial in trials if trial.answer.pruned_at is None]
    best = sorted(
        trials,
        key=lambda trial: (
            *_worth(trial, policy),
            -trial.round if seeded else -trial.latency_ms,
            _likely(trial),
        ),
        reverse=True,
    )
    if policy.verifiers.rerank:
        return best
    accepted = [trial for trial in trials if trial.verdict.accepted]
    return accepted + [trial for trial in best if not trial.verdict.accepted]


def _worth(trial: Trial, policy: RuntimePolicy) -> tuple[bool, int, float]:
    accepted, score = _merit(trial, policy)
    return accepted, trial.votes, score


def _merit(trial: Trial, policy: RuntimePolicy) -> tuple[bool, float]:
    """What an answer is worth by itself, without the votes of others."""
    sign = 1 if policy.objective.maximize else -1
    return trial.verdict.accepted, sign * trial.verdict.score


def _likely(trial: Trial) -> float:
    """What parts candidates of one round that are equal otherwise; one of unknown likelihood comes last."""
    logprob = trial.answer.mean_logprob
    return -math.inf if logprob is None else logprob


def repair_request(rejected: Trial) -> str:
    reason = rejected.verdict.reason[:_REASON_CHARACTERS]
    return (
        f"This answer was rejected: {reason}.\nWrite the whole answer again so that it passes."
        " Give the answer alone."
    )
