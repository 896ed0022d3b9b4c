"""Candidates of one round against each other: votes, pruning, beams."""

import pytest

from policies.run import Answer
from tests.policies.scripted import (
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
