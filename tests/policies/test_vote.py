"""Majority votes over texts."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.vote import Candidate, majority, normalise

candidates = st.lists(
    st.builds(
        Candidate,
        text=st.sampled_from(["yes", "Yes.", "no", '{"a": 1}', '{"a":1.0}', "", "[1]"]) | st.text(max_size=3),
        mean_logprob=st.sampled_from([-1.0, -2.0, float("-inf")]) | st.floats(-20, 0),
    ),
    min_size=1,
    max_size=9,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(candidates)
def test_the_winner_has_most_votes(cast):
    """No answer has more votes than the winner's; among equals none has a more probable voter; and of the
    winner's own voters the most probable one stands for it, the first among equals."""
    won = majority(cast)
    ballots = [normalise(candidate.text) for candidate in cast]
    votes = Counter(ballots)
    best = {b: max(c.mean_logprob for c, x in zip(cast, ballots, strict=True) if x == b) for b in votes}
    assert votes[ballots[won]] == max(votes.values())
    assert best[ballots[won]] == max(best[b] for b in votes if votes[b] == max(votes.values()))
    assert cast[won].mean_logprob == best[ballots[won]]
    assert not any(
        votes[ballots[i]] == votes[ballots[won]] and cast[i].mean_logprob == cast[won].mean_logprob
        for i in range(won)
    )


@given(candidates, st.randoms())
def test_order_decides_only_ties(cast, random):
    """Shuffled candidates elect an answer that is as good: same votes, same log-probability."""
    shuffled = random.sample(cast, len(cast))
    first, second = cast[majority(cast)], shuffled[majority(shuffled)]
    votes = Counter(normalise(candidate.text) for candidate in cast)
    assert votes[normalise(first.text)] == votes[normalise(second.text)]
    assert first.mean_logprob == second.mean_logprob


@given(st.lists(json_values, max_size=3) | st.dictionaries(st.text(), json_values, max_size=3))
def test_json_compares_by_value(value):
    """Key order, white space and escapes do not matter to JSON; a changed value does."""

    def backwards(node):
        if isinstance(node, dict):
            return {key: backwards(node[key]) for key in reversed(node)}
        return [backwards(child) for child in node] if isinstance(node, list) else node

    plain = normalise(json.dumps(value))
    assert normalise(json.dumps(backwards(value), indent=2, ensure_ascii=False)) == plain
    assert normalise(json.dumps([value, 0])) != normalise(json.dumps([value, 1]))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Paris", " paris.\n", True),
        ("Paris", '"Paris"', True),
        ("the  answer\tis 4", "The answer is 4!", True),
        ("STRASSE", "straße", True),
        ("4", "5", False),
        ("4.5", "45", False),
        ("-4", "4", False),
        ('{"a": 1, "b": [2]}', '{"b":[2.0],"a":1.0}', True),
        ('{"a": "X"}', '{"a": "x"}', False),
        ("[1, 2]", "[2, 1]", False),
        ('{"a": 1}', 'Here: {"a": 1}', False),
        ("", "...", True),
    ],
)
def test_same_answers(one, other, same):
    """Texts that differ in form alone are one answer."""
    assert (normalise(one) == normalise(other)) is same


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 10_000, "[1e999]", "[NaN]"])
def test_any_text_can_be_counted(text):
    """Hostile or broken JSON is a text like any other."""
    assert majority([Candidate("x", -1.0), Candidate(text, -2.0), Candidate(text, -3.0)]) == 1


def test_an_empty_vote():
    """A vote of nobody is a mistake of the caller."""
    with pytest.raises(ValueError, match="at least one"):
        majority([])
