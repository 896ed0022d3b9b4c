"""A rejected winner is asked for again, told why; an accepted one is criticised and revised."""

import pytest

from policies.run import CRITIQUE_REQUEST, CRITIQUE_TOKENS, Answer, Kind
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
    revising,
    run,
    scoring,
)

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
    given = policy(
        constraints=ANYTHING,
        verifiers={"max_retries": max_retries},
        optimization={"retry_on_failure": 0},
    )
    await run(given, engine, verify)
    assert [ask.turns[0].answer for ask in engine.asks[1:]] == repaired


async def test_reasons_are_told_in_part():
    """A schema's reason may quote the whole answer; a repair is told its first thousand characters."""
    engine = Engine(["a"], [GOOD])
    await run(policy(), engine, scoring(a=failing(broken="x" * 5000)))
    assert 900 < len(engine.asks[1].turns[0].reply) < 1300


# Revisions


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


def long(text, finish="stop", tokens=40):
    return Answer(text, tokens, "top-k", finish)


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [("stop", "stop", True), ("stop", "length", False), ("length", "length", True), ("length", "stop", True)],
)
async def test_a_revision_that_is_cut_replaces_no_complete_answer(before, after, kept):
    """As good by its verdict, it is kept only where the answer before was cut too."""
    engine = Engine([long("a", before)], ["hm"], [long("b", after)])
    outcome = await run(revising(), engine)
    assert (outcome.winner.answer.text, outcome.critiques[0].kept) == ("b" if kept else "a", kept)


@pytest.mark.parametrize(
    ("budget", "calls", "stopped"), [(95, 1, "token_budget"), (96, 3, None), (120, 3, None)]
)
async def test_a_revision_needs_room(budget, calls, stopped):
    """It begins only where it may be as long as the answer before it, with 16 tokens for the critique at
    least; the critique leaves it that."""
    engine = Engine([long("a")], [long("hm", tokens=16)], [long("b")])
    outcome = await run(revising(objective={"token_budget": budget}), engine)
    assert (len(engine.asks), outcome.stopped) == (calls, stopped)
    assert outcome.winner.answer.text == ("a" if calls == 1 else "b")
    if calls > 1:
        assert engine.asks[1].max_tokens == budget - 80
        assert engine.asks[2].max_tokens >= 40


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
