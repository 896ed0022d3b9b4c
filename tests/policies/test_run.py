"""The run loop: which calls are made, which answer wins, when it stops."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.policy import RuntimePolicy
from policies.run import Answer, Kind, Runner
from policies.verdict import Verdict
from tests.policies.scripted import (
    ANYTHING,
    BAD,
    GOOD,
    JSON,
    UNREPAIRED,
    WORSE,
    Engine,
    failing,
    policy,
    run,
    scoring,
    unrepaired,
)

# Rounds, retries and the winner


async def test_an_accepted_answer_ends_it():
    """Where a round has an accepted candidate, it wins and no further call is made."""
    engine = Engine([BAD, GOOD])
    given = policy(constraints=JSON, optimization={"retry_on_failure": 3, "best_of_n": 2})
    outcome = await run(given, engine)
    assert (outcome.winner.answer.text, outcome.winner.slot, len(engine.asks)) == (GOOD, 1, 1)
    assert [trial.slot for trial in outcome.trials] == [0, 1]
    assert (outcome.rounds, outcome.retries, outcome.tokens, outcome.stopped) == (1, (), 6, None)


async def test_a_rejected_round_is_retried():
    """A round without an accepted candidate is followed by another, whose winner may win over all."""
    engine = Engine([BAD, WORSE], [WORSE, GOOD], [GOOD, GOOD])
    outcome = await run(unrepaired(constraints=JSON, optimization={"retry_on_failure": 2}), engine)
    assert (outcome.winner.round, outcome.winner.slot) == (1, 1)
    assert [(trial.round, trial.slot) for trial in outcome.trials] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    (event,) = outcome.retries
    assert (event.round, event.trigger, event.winner_score) == (1, "accepted=false", pytest.approx(-0.7))


async def test_retries_are_cooler():
    """Each round is planned with its number, so that its candidates are cooler than the last one's."""
    engine = Engine([BAD])
    await run(unrepaired(constraints=JSON, optimization={"retry_on_failure": 2}), engine)
    assert [ask.number for ask in engine.asks] == [0, 1, 2]
    warmth = [ask.round.slots[0].temperature for ask in engine.asks]
    assert warmth == pytest.approx([0.7, 0.62, 0.46])


@pytest.mark.parametrize("retries", [0, 1, 4])
async def test_rounds_are_bounded(retries):
    """At most 1 + retry_on_failure rounds run; then the best rejected answer is the outcome."""
    engine = Engine([WORSE])
    outcome = await run(unrepaired(constraints=JSON, optimization={"retry_on_failure": retries}), engine)
    assert len(engine.asks) == len(outcome.trials) == outcome.rounds == retries + 1
    assert not outcome.winner.verdict.accepted
    assert [event.round for event in outcome.retries] == list(range(1, retries + 1))


async def test_nothing_to_judge_is_one_round():
    """Without constraints and verifiers nothing can be rejected, so the default retry costs nothing."""
    engine = Engine(["anything"])
    assert (await run(RuntimePolicy(), engine)).winner.verdict.accepted
    assert len(engine.asks) == 1


@pytest.mark.parametrize(
    ("answers", "maximize", "winner"),
    [
        ({"a": failing("regex"), "b": Verdict()}, True, "b"),
        ({"a": failing("regex"), "b": Verdict()}, False, "a"),
        ({"a": failing(broken="x"), "b": failing("regex")}, True, "b"),
        ({"a": failing(broken="x"), "b": failing("regex")}, False, "b"),
        ({"a": failing("syntax"), "b": failing(broken="x")}, True, "a"),
        ({"a": failing("syntax"), "b": failing(broken="x")}, False, "b"),
        ({"a": Verdict(), "b": Verdict()}, True, "a"),
        ({"a": Verdict(), "b": Verdict()}, False, "a"),
    ],
)
async def test_the_winner_of_a_round(answers, maximize, winner):
    """Accepted before rejected, then the higher score (the lower one where it is to be minimised), then the
    first."""
    given = unrepaired(
        constraints=ANYTHING,
        objective={"maximize": maximize},
        optimization={"best_of_n": 2, "retry_on_failure": 0},
    )
    outcome = await run(given, Engine(list(answers)), scoring(**answers))
    assert outcome.winner.answer.text == winner


async def test_speed_decides_among_equals():
    """Equal verdicts: the faster round wins; the whole run takes what its rounds took."""
    engine = Engine([WORSE, WORSE], [WORSE], seconds=[0.5, 0.2])
    outcome = await run(unrepaired(constraints=JSON), engine)
    assert [trial.latency_ms for trial in outcome.trials] == [500, 500, 200]
    assert outcome.winner.round == 1
    assert outcome.latency_ms == 700


async def test_time_decides_nothing_under_a_seed():
    """Then the earlier round wins among equals, and in a round the likelier one, then the first."""
    texts = [Answer(WORSE, 1, "top-k", "stop", mean_logprob=value) for value in (-2.0, -1.0, -1.0)]
    engine = Engine(texts, [WORSE], [WORSE] * 3, seconds=[0.5, 0.1, 0.2])
    given = policy(constraints=JSON, optimization={"best_of_n": 3})
    outcome = await run(given, engine, seeded=True)
    found = [(trial.kind, trial.round, trial.slot) for trial in outcome.ranked]
    assert found[:3] == [("candidate", 0, 1), ("candidate", 0, 2), ("candidate", 0, 0)]
    assert found[3] == ("repair", 0, 0)


async def test_all_that_could_win_are_ranked():
    """The winner first, then the others by the same order, over all rounds; what was pruned is left out."""
    verify = scoring(a=failing(broken="x"), b=failing("regex", broken="x"), c=failing("syntax", broken="x"))
    pruned = Answer("p", 1, "top-k", None, pruned_at=1)
    engine = Engine(["b", "c", pruned], ["c", "a", "b"], ["b", "d", "b"])
    given = unrepaired(constraints=ANYTHING, optimization={"best_of_n": 3, "retry_on_failure": 2})
    outcome = await run(given, engine, verify)
    assert [trial.answer.text for trial in outcome.ranked] == ["d", "a", "b", "b", "b", "b", "c", "c"]
    assert outcome.ranked[0] is outcome.winner


async def test_without_rerank_the_first_accepted_wins():
    """Candidates count in their order, not by their score; where none is accepted the score decides again."""
    verify = scoring(a=failing(broken="x"), b=failing("regex"), c=failing("syntax"))
    given = policy(
        verifiers={"rerank": False, **UNREPAIRED}, optimization={"best_of_n": 3, "retry_on_failure": 0}
    )
    assert (await run(given, Engine(["a", "b", "d"]), verify)).winner.answer.text == "b"
    assert (await run(given, Engine(["a", "c"]), verify)).winner.answer.text == "c"
    reranked = given.model_copy(update={"verifiers": given.verifiers.model_copy(update={"rerank": True})})
    assert (await run(reranked, Engine(["a", "b", "d"]), verify)).winner.answer.text == "d"
    ranked = (await run(given, Engine(["a", "b", "d"]), verify)).ranked
    assert [trial.answer.text for trial in ranked] == ["b", "d", "a"]


async def test_likelihood_decides_among_equals_of_a_round():
    """Where log-probabilities are known and all else is equal, the likelier text wins."""
    texts = [
        Answer(text, 1, "top-k", "stop", mean_logprob=value) for text, value in (("a", -2.0), ("b", -1.0))
    ]
    assert (await run(policy(optimization={"best_of_n": 2}), Engine(texts))).winner.answer.text == "b"


@pytest.mark.parametrize(
    ("method", "count", "scored"),
    [
        ("top-k", 1, False),
        ("top-k", 2, True),
        ("ads", 3, True),
        ("ensemble-sampling", 1, True),
        ("beam-search", 3, False),
    ],
)
async def test_likelihood_is_asked_for_where_it_can_decide(method, count, scored):
    """Several candidates that are drawn come with their log-probabilities; one alone, or beams, which have
    that order, without."""
    engine = Engine([GOOD] * 5)
    await run(policy(sampling={"method": method, "num_candidates": count}), engine)
    assert engine.asks[0].scored is scored


async def test_errors_of_the_first_round_pass_through():
    """What generation or judging raises before there is an answer, the caller sees."""

    async def broken(_given):
        raise ConnectionError("engine gone")

    with pytest.raises(ConnectionError, match="engine gone"):
        await Runner(RuntimePolicy(), broken, broken, 8).run()
    with pytest.raises(ConnectionError, match="engine gone"):
        await run(RuntimePolicy(), Engine(["a"]), broken)


@pytest.mark.parametrize(
    ("lost", "made", "failed", "stopped"),
    [
        (1, ["candidate", "candidate"], (0, "repair"), None),
        (2, ["candidate", "repair"], (1, "candidate"), "error"),
        (3, ["candidate", "repair", "candidate"], (1, "revision"), "error"),
        (4, ["candidate", "repair", "candidate"], (1, "revision"), "error"),
    ],
)
async def test_a_later_error_costs_no_answer(lost, made, failed, stopped):
    """Where a repair, a round, a critique or a revision fails, the best so far is the outcome, which tells
    the error; a failed repair is followed by the next round, all else by nothing."""

    class Failing(Engine):
        async def __call__(self, ask):
            if self.calls == lost:
                self.calls += 1
                raise ConnectionError("engine gone")
            self.calls += 1
            return await super().__call__(ask)

    engine = Failing([WORSE])
    engine.calls = 0
    given = policy(
        constraints=JSON, optimization={"retry_on_failure": 1, "self_revision_loops": 1 if lost > 2 else 0}
    )
    outcome = await run(given, engine)
    assert [trial.kind for trial in outcome.trials] == made
    assert (outcome.winner, outcome.stopped) == (outcome.trials[0], stopped)
    (told,) = outcome.failures
    assert (told.round, told.kind, told.message) == (*failed, "engine gone")
    assert len(outcome.critiques) == (lost == 4)


async def test_a_later_error_of_judging_costs_no_answer():
    """A repair that cannot be judged is left out, its tokens are counted."""

    async def verify(texts):
        if texts[0].text == GOOD:
            raise ConnectionError("no judge")
        return [failing("syntax") for _ in texts]

    outcome = await run(policy(optimization={"retry_on_failure": 0}), Engine([WORSE], [GOOD]), verify)
    assert ([trial.answer.text for trial in outcome.trials], outcome.tokens) == ([WORSE], 6)
    assert [told.message for told in outcome.failures] == ["no judge"]


async def test_a_cut_text_is_told_to_the_judge():
    """A text that its length ended, or that was pruned, is judged as incomplete."""
    seen = []

    async def verify(texts):
        seen.extend(texts)
        return [Verdict() for _ in texts]

    answers = [
        Answer("a", 1, "m", "stop"),
        Answer("b", 1, "m", "length"),
        Answer("c", 1, "m", None, pruned_at=1),
    ]
    await run(policy(), Engine(answers), verify)
    assert [(text.text, text.cut) for text in seen] == [("a", False), ("b", True), ("c", True)]


async def test_the_constraint_goes_with_every_call_for_an_answer():
    """Rounds and repairs are held to the same constraint, and the outcome says to which."""
    engine = Engine([WORSE])
    given = policy(constraints={"regex_pattern": "x", "grammar": "'a' 'b'"})
    outcome = await run(given, engine, grammar_compiles=False)
    assert len(engine.asks) == 3
    assert {ask.constraint.regex_pattern for ask in engine.asks} == {"x"}
    assert outcome.constraint == engine.asks[0].constraint
    assert outcome.constraint.checked == ("grammar",)


# Confidence

SURE = {"confidence_triggered_regeneration": True}


@pytest.mark.parametrize(
    ("logprob", "failed", "confidence"),
    [
        (0.0, (), 1.0),
        (math.log(0.25), (), 0.25),
        (math.log(0.75), ("regex",), 0.6),
        (math.log(0.5), ("regex",), 0.5),
        (0.0, ("syntax", "regex"), -0.1),
        (-math.inf, (), 0.0),
        (None, (), None),
    ],
)
async def test_confidence_is_the_lesser_of_likelihood_and_score(logprob, failed, confidence):
    """The geometric mean of the tokens' probabilities or the score, whichever is less."""
    engine = Engine(["a"], logprob=logprob)
    outcome = await run(policy(verifiers=UNREPAIRED), engine, scoring(a=failing(*failed)))
    found = outcome.trials[0].confidence
    assert found == (None if confidence is None else pytest.approx(confidence))


@pytest.mark.parametrize(
    ("likely", "threshold", "rounds"),
    [(0.9, 0.5, 1), (0.5, 0.5, 1), (0.4, 0.5, 2), (1.0, 1.0, 1), (0.9, 1.0, 2)],
)
async def test_low_confidence_is_regenerated(likely, threshold, rounds):
    """Below its threshold an accepted winner is followed by one more round, even without retries."""
    engine = Engine(["a"], logprob=math.log(likely))
    given = policy(optimization={**SURE, "confidence_threshold": threshold, "retry_on_failure": 0})
    outcome = await run(given, engine)
    assert outcome.rounds == rounds
    assert [event.trigger for event in outcome.retries] == ["confidence"] * (rounds - 1)
    assert [event.confidence for event in outcome.retries] == [pytest.approx(likely)] * (rounds - 1)
    assert all(ask.scored for ask in engine.asks)


async def test_without_log_probabilities_there_is_no_confidence():
    """A winner whose likelihood is unknown does not pass for a sure one."""
    assert (await run(policy(optimization=SURE), Engine(["a"]))).rounds == 2


@pytest.mark.parametrize(
    ("failed", "broken", "threshold", "trigger"),
    [
        (("syntax",), None, 0.5, "confidence"),
        ((), "x", 0.5, "confidence"),
        ((), "x", 0.0, "accepted=false"),
        (("syntax",), "x", 0.0, "confidence"),
    ],
)
async def test_what_triggers_a_retry(failed, broken, threshold, trigger):
    """A rejected winner below the threshold is retried for its confidence, as in Axionic's runner."""
    given = unrepaired(optimization={**SURE, "confidence_threshold": threshold})
    outcome = await run(given, Engine(["a"], logprob=0.0), scoring(a=failing(*failed, broken=broken)))
    assert [event.trigger for event in outcome.retries] == [trigger]


async def test_a_repair_that_is_accepted_but_unsure_is_followed_by_a_round():
    """Repairs come first, then confidence is looked at."""
    engine = Engine([BAD], [GOOD], [GOOD], logprob=-2.0)
    outcome = await run(policy(constraints=JSON, optimization=SURE), engine)
    assert [trial.kind for trial in outcome.trials] == ["candidate", "repair", "candidate"]
    assert [(event.round, event.trigger) for event in outcome.retries] == [(1, "confidence")]


# All together

actions = st.lists(st.sampled_from([GOOD, BAD, WORSE]), min_size=1, max_size=30)


@settings(max_examples=300)
@given(
    actions,
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 2),
    st.booleans(),
    st.booleans(),
)
async def test_calls_are_bounded_and_the_winner_is_one_of_them(  # noqa: PLR0917  # one for each dial
    texts, count, retries, repairs, loops, confident, maximize
):
    """Never more rounds, repairs or revisions than the policy says; the winner is a trial that nothing beats
    but what was revised; all tokens are counted."""

    class Varied(Engine):
        async def __call__(self, ask):
            size = len(ask.round.slots)
            offset = len(self.asks)
            self.script = [[texts[(offset + slot) % len(texts)] for slot in range(size)]]
            return await super().__call__(ask)

    engine = Varied(logprob=-1.0)
    given = policy(
        constraints=JSON,
        objective={"maximize": maximize},
        verifiers={"max_retries": repairs},
        optimization={
            "best_of_n": count,
            "retry_on_failure": retries,
            "self_revision_loops": loops,
            "confidence_triggered_regeneration": confident,
        },
    )
    outcome = await run(given, engine)
    kinds = Counter(trial.kind for trial in outcome.trials)
    rounds = 1 + max(retries, confident)
    assert outcome.rounds <= rounds
    assert kinds[Kind.CANDIDATE] == outcome.rounds * count
    assert kinds[Kind.REPAIR] <= min(repairs, outcome.rounds + repairs)
    assert kinds[Kind.REVISION] == len(outcome.critiques) == loops
    assert outcome.winner in outcome.trials
    assert outcome.winner.verdict.accepted == any(trial.verdict.accepted for trial in outcome.trials)
    assert len(outcome.retries) == outcome.rounds - 1
    assert outcome.tokens == 3 * (len(outcome.trials) + loops)
