"""The run loop: which calls are made, which answer wins, when it stops."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.policy import RuntimePolicy
from policies.run import CRITIQUE_REQUEST, CRITIQUE_TOKENS, Answer, Kind, MethodUnavailableError, Runner
from policies.sampling import EngineFacts, UnavailableError, plan
from policies.verdict import Verdict, judge

GOOD, BAD, WORSE = '{"ok": true}', "[]", "no json"
JSON = {"json_mode": True}
UNREPAIRED = {"repair_on_failure": False}


def policy(**groups) -> RuntimePolicy:
    return RuntimePolicy.model_validate(groups)


def unrepaired(**groups) -> RuntimePolicy:
    return policy(verifiers=UNREPAIRED, **groups)


class Engine:
    """Answers call by call from a script, and remembers what it was asked.

    A call's script is its texts; each may be an Answer, or text alone. `seconds` is how long each call takes,
    `missing` are methods that the engine does not have.
    """

    def __init__(self, *script, seconds=(), missing=(), tokens=3, logprob=None):
        self.script, self.asks, self.now = list(script), [], 100.0
        self.seconds, self.missing, self.tokens, self.logprob = list(seconds), set(missing), tokens, logprob

    def clock(self):
        return self.now

    async def __call__(self, ask):
        plan(ask.round.asked, EngineFacts())
        if ask.round.method in self.missing:
            raise MethodUnavailableError(LookupError(f"no {ask.round.method} here"))
        index = len(self.asks)
        self.asks.append(ask)
        self.now += self.seconds[min(index, len(self.seconds) - 1)] if self.seconds else 0
        texts = self.script[min(index, len(self.script) - 1)]
        return [
            text
            if isinstance(text, Answer)
            else Answer(text, self.tokens, ask.round.method, "stop", mean_logprob=self.logprob)
            for text in texts
        ]


async def run(given, engine, verify=None, max_tokens=64, **more):
    async def by_text(texts):
        return [judge(text, given) for text in texts]

    runner = Runner(given, engine, verify or by_text, max_tokens, clock=engine.clock, **more)
    return await runner.run()


def scoring(**scores):
    """A verifier that finds each text's failures in a table; what is not there is sound."""

    async def verify(texts):
        return [scores.get(text.text, Verdict()) for text in texts]

    return verify


def failing(*names, broken=None):
    return Verdict(broken, dict.fromkeys(names, "no"))


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
    given = unrepaired(objective={"maximize": maximize}, optimization={"best_of_n": 2, "retry_on_failure": 0})
    outcome = await run(given, Engine(list(answers)), scoring(**answers))
    assert outcome.winner.answer.text == winner


async def test_speed_decides_among_equals():
    """Equal verdicts: the faster round wins; the whole run takes what its rounds took."""
    engine = Engine([WORSE, WORSE], [WORSE], seconds=[0.5, 0.2])
    outcome = await run(unrepaired(constraints=JSON), engine)
    assert [trial.latency_ms for trial in outcome.trials] == [500, 500, 200]
    assert outcome.winner.round == 1
    assert outcome.latency_ms == 700


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


async def test_likelihood_decides_among_equals_of_a_round():
    """Where log-probabilities are known and all else is equal, the likelier text wins."""
    texts = [
        Answer(text, 1, "top-k", "stop", mean_logprob=value) for text, value in (("a", -2.0), ("b", -1.0))
    ]
    assert (await run(policy(optimization={"best_of_n": 2}), Engine(texts))).winner.answer.text == "b"


async def test_errors_pass_through():
    """What generation or judging raises, the caller sees."""

    async def broken(_given):
        raise ConnectionError("engine gone")

    with pytest.raises(ConnectionError, match="engine gone"):
        await Runner(RuntimePolicy(), broken, broken, 8).run()
    with pytest.raises(ConnectionError, match="engine gone"):
        await run(RuntimePolicy(), Engine(["a"]), broken)


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


# Repairs


async def test_a_rejected_winner_is_repaired():
    """It is asked for again with its text and the reasons, alone, under the same constraint; that is no
    round."""
    engine = Engine([WORSE, BAD], [GOOD])
    given = policy(constraints=JSON, optimization={"best_of_n": 2, "retry_on_failure": 2})
    outcome = await run(given, engine)
    assert (outcome.winner.kind, outcome.winner.answer.text) == (Kind.REPAIR, GOOD)
    assert (outcome.rounds, outcome.retries) == (1, ())
    first, repair = engine.asks
    (turn,) = repair.turns
    assert turn.answer == WORSE
    assert "constraint: invalid json | syntax_verifier: invalid json" in turn.reply
    assert (len(repair.round.slots), repair.round.asked.n, repair.number) == (1, 1, 0)
    assert repair.constraint == first.constraint
    assert first.turns == ()


async def test_a_repair_that_fails_is_followed_by_the_next_round():
    """And the retry's score is that of the best so far."""
    engine = Engine([WORSE], [BAD], [GOOD])
    outcome = await run(policy(constraints=JSON), engine)
    assert [trial.kind for trial in outcome.trials] == ["candidate", "repair", "candidate"]
    assert outcome.winner.round == 1


@pytest.mark.parametrize(
    ("retries", "max_retries", "kinds"),
    [(0, 0, "c"), (0, 1, "cr"), (2, 0, "ccc"), (2, 1, "crcc"), (2, 16, "crcc")],
)
async def test_repairs_are_bounded(retries, max_retries, kinds):
    """At most max_retries repairs in a run, and one for each rejected winner; of equals that is the first."""
    engine = Engine([WORSE])
    given = policy(
        constraints=JSON,
        verifiers={"max_retries": max_retries},
        optimization={"retry_on_failure": retries},
    )
    outcome = await run(given, engine)
    assert "".join(trial.kind[0] for trial in outcome.trials) == kinds


@pytest.mark.parametrize(("max_retries", "repaired"), [(1, ["a"]), (2, ["a", "b"]), (9, ["a", "b", "c"])])
async def test_a_better_repair_is_repaired_in_turn(max_retries, repaired):
    """A rejected repair that is better than what it repaired is a rejected winner itself."""
    verify = scoring(
        a=failing("syntax", "regex", broken="x"),
        b=failing("syntax", broken="x"),
        c=failing(broken="x"),
        d=failing("regex", broken="x"),
    )
    engine = Engine(["a"], ["b"], ["c"], ["d"])
    given = policy(verifiers={"max_retries": max_retries}, optimization={"retry_on_failure": 0})
    await run(given, engine, verify)
    assert [ask.turns[0].answer for ask in engine.asks[1:]] == repaired


async def test_reasons_are_told_in_part():
    """A schema's reason may quote the whole answer; a repair is told its first thousand characters."""
    engine = Engine(["a"], [GOOD])
    await run(policy(), engine, scoring(a=failing(broken="x" * 5000)))
    assert 900 < len(engine.asks[1].turns[0].reply) < 1300


# Revisions


def revising(loops=1, **groups):
    return policy(optimization={"self_revision_loops": loops, "retry_on_failure": 0}, **groups)


async def test_an_answer_is_criticised_and_revised():
    """The critique is free text on the answer, the revision follows both and is held to the constraint."""
    engine = Engine([GOOD], ["too short"], ['{"ok": 1}'])
    outcome = await run(revising(constraints=JSON), engine)
    first, critique, revision = engine.asks
    assert critique.constraint is None
    assert not critique.round.asked.constrained
    assert (critique.max_tokens, [turn.answer for turn in critique.turns]) == (64, [GOOD])
    assert revision.constraint == first.constraint
    assert [(turn.answer, turn.reply == CRITIQUE_REQUEST) for turn in revision.turns] == [
        (GOOD, True),
        ("too short", False),
    ]
    assert (outcome.winner.kind, outcome.winner.answer.text) == (Kind.REVISION, '{"ok": 1}')
    (told,) = outcome.critiques
    assert (told.text, told.tokens, told.kept) == ("too short", 3, True)
    assert (outcome.tokens, outcome.rounds) == (9, 1)


async def test_a_critique_is_short():
    """However long the answer may be."""
    engine = Engine(["a"])
    await run(revising(), engine, max_tokens=None)
    assert [ask.max_tokens for ask in engine.asks] == [None, CRITIQUE_TOKENS, None]


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        (Verdict(), Verdict(), True),
        (failing("regex"), Verdict(), True),
        (Verdict(), failing("regex"), False),
        (Verdict(), failing(broken="x"), False),
        (failing(broken="x"), failing(broken="x"), True),
        (failing(broken="x"), failing("regex"), True),
    ],
)
async def test_a_revision_has_to_be_as_good(before, after, kept):
    """It replaces the winner where it is accepted alike and scored no lower."""
    given = revising(verifiers=UNREPAIRED)
    outcome = await run(given, Engine(["a"], ["hm"], ["b"]), scoring(a=before, b=after))
    assert outcome.winner.answer.text == ("b" if kept else "a")
    assert [critique.kept for critique in outcome.critiques] == [kept]


async def test_each_loop_revises_what_the_last_one_kept():
    """A revision that was not kept is not built upon."""
    engine = Engine(["a"], ["hm"], ["b"], ["hm"], ["c"], ["hm"], ["d"])
    outcome = await run(revising(3), engine, scoring(c=failing("regex")))
    assert [ask.turns[0].answer for ask in engine.asks[1:]] == ["a", "a", "b", "b", "b", "b"]
    assert [critique.kept for critique in outcome.critiques] == [True, False, True]
    assert outcome.winner.answer.text == "d"


async def test_votes_do_not_hold_a_revision_back():
    """The text that won a vote may be revised like any other, though its revision has no votes."""
    engine = Engine(["a"] * 5, ["hm"], ["b"])
    outcome = await run(revising(sampling={"method": "ensemble-sampling"}), engine)
    assert (outcome.winner.answer.text, outcome.winner.votes) == ("b", 0)


@pytest.mark.parametrize(
    "sampling",
    [
        {"method": "ads", "ads_beta": 0.2, "num_candidates": 2},
        {"method": "constrained-beam-search", "num_candidates": 3, "beam_width": 2},
        {"method": "guided-generation"},
        {"method": "ensemble-sampling", "ensemble_models": ["m", "n"]},
        {"method": "ssd", "draft_model": "small"},
        {"method": "greedy"},
    ],
    ids=lambda sampling: sampling["method"],
)
async def test_every_method_is_repaired_and_revised(sampling):
    """Whatever the method, calls that follow a text are for one candidate and can be planned."""
    engine = Engine([BAD], [BAD], ["hm"], [BAD])
    outcome = await run(revising(sampling=sampling, constraints=JSON), engine)
    assert [len(ask.round.slots) for ask in engine.asks[1:]] == [1, 1, 1]
    assert [trial.kind for trial in outcome.trials] == ["candidate", "repair", "revision"]
    assert not any(ask.round.votes for ask in engine.asks[1:])


# Budgets


async def test_nothing_begins_after_the_latency_budget():
    """No round, repair or revision; what is there by then is the outcome, and the budget is named."""
    objective = {"latency_budget_ms": 1000}
    given = policy(
        objective=objective,
        constraints=JSON,
        optimization={"retry_on_failure": 9, "self_revision_loops": 2},
    )
    for seconds, calls in ((0.3, 4), (0.5, 2), (1.0, 1), (9.0, 1)):
        engine = Engine([WORSE], seconds=[seconds])
        outcome = await run(given, engine)
        assert (len(engine.asks), outcome.stopped) == (calls, "latency_budget_ms")


async def test_a_budget_that_was_enough_is_not_named():
    """An overrun by the last call, after which nothing was to come, stopped nothing."""
    engine = Engine([GOOD], seconds=[5.0])
    outcome = await run(policy(objective={"latency_budget_ms": 10, "token_budget": 2}), engine)
    assert outcome.stopped is None


async def test_a_critique_at_the_end_of_the_budget_is_told():
    """Its revision does not begin, so it was not kept."""
    engine = Engine(["a"], ["hm"], ["b"], seconds=[0.3])
    outcome = await run(revising(objective={"latency_budget_ms": 500}), engine)
    assert [(critique.text, critique.kept) for critique in outcome.critiques] == [("hm", False)]
    assert (outcome.winner.answer.text, outcome.stopped) == ("a", "latency_budget_ms")


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 200),
    st.none() | st.integers(1, 50),
    st.integers(1, 8),
    st.integers(0, 4),
    st.integers(0, 2),
    st.sampled_from(["top-k", "ads", "ensemble-sampling", "beam-search"]),
    st.sampled_from([[], ["m"], ["m", "n", "o"]]),
)
async def test_the_token_budget_holds(  # noqa: PLR0917  # one for each dial
    budget, max_tokens, count, retries, loops, method, models
):
    """Whatever is asked for, an engine that uses all it may never passes the budget, and no call is asked
    for less than one token a candidate."""

    class Eager(Engine):
        async def __call__(self, ask):
            self.asks.append(ask)
            told = plan(ask.round.asked, EngineFacts())
            size = len(ask.round.slots)
            assert ask.max_tokens is not None and 1 <= ask.max_tokens <= (max_tokens or budget)
            assert {told.candidates, ask.round.asked.n} <= {1, size}
            return [Answer(WORSE, ask.max_tokens, method, "length")] * size

    engine = Eager()
    given = policy(
        objective={"token_budget": budget},
        constraints={"forbidden_terms": ["json"]},
        sampling={"method": method, "ensemble_models": models if method == "ensemble-sampling" else []},
        optimization={"best_of_n": count, "retry_on_failure": retries, "self_revision_loops": loops},
    )
    outcome = await run(given, engine, max_tokens=max_tokens)
    assert outcome.tokens <= budget
    assert outcome.stopped in {None, "token_budget"}
    assert (outcome.stopped is None) or outcome.tokens == budget


async def test_the_budget_is_shared_by_the_candidates():
    """Each has an equal part of what is left, at most the request's own limit."""
    engine = Engine([WORSE] * 3, tokens=10)
    given = unrepaired(objective={"token_budget": 100}, constraints=JSON, optimization={"best_of_n": 3})
    await run(given, engine, max_tokens=30)
    assert [ask.max_tokens for ask in engine.asks] == [30, 23]


# Fallback methods


def falling_back(*methods, retries=3, **sampling):
    return unrepaired(
        sampling={"method": "ads", **sampling},
        constraints=JSON,
        optimization={"fallback_methods": list(methods), "retry_on_failure": retries},
    )


async def test_each_retry_takes_the_next_method():
    """The last one goes on where there are more rounds than methods."""
    engine = Engine([WORSE])
    outcome = await run(falling_back("top-p", "min-p", retries=4), engine)
    assert [ask.round.method for ask in engine.asks] == ["ads", "top-p", "min-p", "min-p", "min-p"]
    assert [trial.method for trial in outcome.trials] == [ask.round.method for ask in engine.asks]
    assert outcome.unavailable == ()


async def test_a_method_that_is_unavailable_makes_way():
    """The next one samples the same round, and the outcome tells which were passed over."""
    engine = Engine([WORSE], [GOOD], missing=["ads", "typical"])
    outcome = await run(falling_back("typical", "top-p", "min-p"), engine)
    assert [(ask.round.method, ask.number) for ask in engine.asks] == [("top-p", 0), ("min-p", 1)]
    assert outcome.unavailable == ("ads", "typical")
    assert outcome.rounds == 2


@pytest.mark.parametrize("fallbacks", [(), ("typical",), ("typical", "min-p")])
async def test_where_no_method_is_available(fallbacks):
    """The reason of the last one is raised."""
    last = fallbacks[-1] if fallbacks else "ads"
    engine = Engine([GOOD], missing=["ads", "typical", "min-p"])
    with pytest.raises(LookupError, match=f"no {last} here"):
        await run(falling_back(*fallbacks), engine)


async def test_a_fallback_that_is_unavailable_costs_no_answer():
    """After a method has sampled, it goes on where those behind it are missing; each is tried once."""
    engine = Engine([WORSE], [WORSE], [GOOD], missing=["typical", "min-p"])
    outcome = await run(falling_back("typical", "min-p"), engine)
    assert [ask.round.method for ask in engine.asks] == ["ads", "ads", "ads"]
    assert outcome.unavailable == ("typical", "min-p")
    assert outcome.winner.round == 2


async def test_an_unknown_method_falls_back():
    """A first method that is none is passed over like one that is missing."""
    engine = Engine([GOOD])
    outcome = await run(falling_back("top-p", method="warp"), engine)
    assert [ask.round.method for ask in engine.asks] == ["top-p"]
    assert outcome.unavailable == ("warp",)


async def test_a_method_that_becomes_unavailable():
    """What a schedule makes impossible in a later round is an error, not an endless loop."""

    class Fickle(Engine):
        async def __call__(self, ask):
            if ask.number:
                raise MethodUnavailableError(UnavailableError("sampling_method", "no more"))
            return await super().__call__(ask)

    with pytest.raises(UnavailableError, match="no more"):
        await run(falling_back(), Fickle([WORSE]))
    with pytest.raises(UnavailableError, match="no more"):
        await run(falling_back("top-p"), Fickle([WORSE]))


# Ensembles, pruning, beams


async def test_an_ensemble_votes():
    """Most votes by normalised text win among those accepted alike, whatever their score or place."""
    texts = ["Nile", "rhine", "The Nile", "Rhine.", " RHINE"]
    given = unrepaired(sampling={"method": "ensemble-sampling"})
    outcome = await run(given, Engine(texts), scoring(rhine=failing("regex")))
    assert [trial.votes for trial in outcome.trials] == [1, 3, 1, 3, 3]
    assert outcome.winner.answer.text == "Rhine."


async def test_a_vote_cannot_accept_what_is_rejected():
    """Accepted comes first."""
    texts = ["no", "no", "no", GOOD, "no"]
    given = unrepaired(sampling={"method": "ensemble-sampling"}, constraints=JSON)
    assert (await run(given, Engine(texts))).winner.answer.text == GOOD


async def test_json_votes_by_value():
    """Two spellings of one object are one answer; ties go to the higher score, then to the first."""
    texts = ['{"a": 1, "b": 2}', '{"a": 2}', '{"b":2,"a":1.0}', '{"a":2}', "{}"]
    outcome = await run(unrepaired(sampling={"method": "ensemble-sampling"}), Engine(texts))
    assert [trial.votes for trial in outcome.trials] == [2, 2, 2, 2, 1]
    assert outcome.winner.slot == 0


async def test_an_ensemble_of_models():
    """Each trial says which model it came from, and log-probabilities are asked for."""
    engine = Engine(["a", "b", "a"])
    models = ["m", "n", "o"]
    outcome = await run(policy(sampling={"method": "ensemble-sampling", "ensemble_models": models}), engine)
    assert [trial.model for trial in outcome.trials] == models
    assert engine.asks[0].scored
    assert outcome.winner.answer.text == "a"


@pytest.mark.parametrize(
    ("max_tokens", "checkpoints"), [(64, (8, 16, 32)), (None, (32, 64, 128)), (4, (1, 2)), (1, (1,))]
)
async def test_branches_are_pruned_at_checkpoints(max_tokens, checkpoints):
    """At an eighth, a quarter and half of a candidate's tokens, each at least one."""
    engine = Engine(["a", "b", "c"])
    given = policy(optimization={"best_of_n": 3, "branch_and_prune": True})
    await run(given, engine, max_tokens=max_tokens)
    assert engine.asks[0].checkpoints == checkpoints


async def test_what_draws_nothing_is_not_pruned():
    """A beam or greedy fallback, a repair and a single candidate have no checkpoints."""
    engine = Engine([WORSE])
    given = policy(
        sampling={"num_candidates": 3},
        constraints=JSON,
        optimization={
            "branch_and_prune": True,
            "retry_on_failure": 2,
            "fallback_methods": ["beam-search", "greedy"],
        },
    )
    await run(given, engine)
    assert [bool(ask.checkpoints) for ask in engine.asks] == [True, False, False, False]


async def test_what_was_pruned_cannot_win():
    """Even where it alone would be accepted, or rerank would take the first."""
    pruned = Answer(GOOD, 1, "top-k", None, mean_logprob=0.0, pruned_at=1)
    for rerank in (True, False):
        given = policy(
            constraints=JSON,
            verifiers={"rerank": rerank, **UNREPAIRED},
            optimization={"best_of_n": 2, "branch_and_prune": True, "retry_on_failure": 0},
        )
        outcome = await run(given, Engine([pruned, WORSE]))
        assert outcome.winner.answer.text == WORSE
        assert len(outcome.trials) == 2


async def test_a_beam_gives_several_candidates():
    """Its results are judged one by one, and the best accepted one wins."""
    engine = Engine([WORSE, GOOD, GOOD])
    given = policy(sampling={"method": "beam-search", "num_candidates": 3}, constraints=JSON)
    assert (await run(given, engine)).winner.slot == 1
    assert (engine.asks[0].round.asked.n, engine.asks[0].round.asked.beam_width) == (3, 4)


# All together

actions = st.lists(st.sampled_from([GOOD, BAD, WORSE]), min_size=1, max_size=30)


@settings(max_examples=300, deadline=None)
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
