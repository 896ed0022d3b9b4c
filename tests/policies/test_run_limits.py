"""What ends a run before its rounds do, and by which method each round goes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.run import Answer, MethodUnavailableError
from policies.sampling import EngineFacts, UnavailableError, plan
from tests.policies.scripted import GOOD, JSON, WORSE, Engine, policy, revising, run, unrepaired

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


@settings(max_examples=200)
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
        constraints=JSON,
        sampling={"method": method, "ensemble_models": models if method == "ensemble-sampling" else []},
        optimization={
            "best_of_n": count,
            "retry_on_failure": min(retries, 1) if method == "beam-search" else retries,
            "self_revision_loops": loops,
        },
    )
    outcome = await run(given, engine, max_tokens=max_tokens)
    assert outcome.tokens <= budget
    assert outcome.stopped in {None, "token_budget"}
    spare = outcome.winner.answer.tokens + 16 if loops else 1  # what a revision would have needed
    assert (outcome.stopped is None) or budget - outcome.tokens < spare


async def test_the_budget_is_shared_by_the_candidates():
    """Each has an equal part of what is left, at most the request's own limit."""
    engine = Engine([WORSE] * 3, tokens=10)
    given = unrepaired(objective={"token_budget": 100}, constraints=JSON, optimization={"best_of_n": 3})
    await run(given, engine, max_tokens=30)
    assert [ask.max_tokens for ask in engine.asks] == [30, 23]


@pytest.mark.parametrize(
    ("budget", "max_tokens", "lengths"),
    [
        (100, 64, [16] * 6),
        (40, 64, [20] * 2),
        (20, 64, [20]),
        (7, 64, [7]),
        (12, 4, [4] * 3),
        (80, None, [16] * 5),
    ],
)
async def test_a_short_budget_means_fewer_candidates(budget, max_tokens, lengths):
    """Each has 16 tokens at least, or as many as the request allows, where one alone can have them."""
    engine = Engine([GOOD] * 8)
    given = unrepaired(objective={"token_budget": budget}, optimization={"best_of_n": 8})
    await run(given, engine, max_tokens=max_tokens)
    (ask,) = engine.asks
    assert [ask.max_tokens] * len(ask.round.slots) == lengths


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
    """What a schedule makes impossible in a later round ends the run, with the best so far."""

    class Fickle(Engine):
        async def __call__(self, ask):
            if ask.number:
                raise MethodUnavailableError(UnavailableError("sampling_method", "no more"))
            return await super().__call__(ask)

    for fallbacks in ((), ("top-p",)):
        outcome = await run(falling_back(*fallbacks), Fickle([WORSE]))
        assert (outcome.winner.answer.text, outcome.rounds, outcome.stopped) == (WORSE, 1, "error")
        assert [told.message for told in outcome.failures] == ["no more"]
