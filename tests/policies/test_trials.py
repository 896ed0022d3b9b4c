"""Which variants of a policy are tried, how they are scored, and which one is best."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.enforced import Enforced
from policies.policy import RuntimePolicy
from policies.run import Answer, Kind, Outcome, Trial
from policies.trials import BASE, MAX_TRIALS, Score, SearchError, best, grid
from policies.verdict import Verdict


def outcome(accepted=True, failed=(), latency=10, tokens=5):
    verdict = Verdict(None if accepted else "no", dict.fromkeys(failed, "no"))
    winner = Trial(
        answer=Answer("text", tokens, "top-k", "stop"),
        verdict=verdict,
        kind=Kind.CANDIDATE,
        method="top-k",
        round=0,
        slot=0,
        latency_ms=1,
    )
    return Outcome(
        winner=winner,
        trials=(winner,),
        ranked=(winner,),
        retries=(),
        critiques=(),
        unavailable=(),
        constraint=Enforced(),
        stopped=None,
        latency_ms=latency,
        tokens=99,
        rounds=1,
    )


def test_a_score_is_over_all_prompts():
    """Shares and averages over winners; latency is that of whole runs, tokens those of what is answered."""
    scored = Score.of([outcome(), outcome(accepted=False, failed=["regex"], latency=30, tokens=8)])
    assert (scored.success_rate, scored.pass_count, scored.fail_count) == (0.5, 1, 1)
    assert scored.avg_score == pytest.approx((1 + (1 - 0.4 - 1)) / 2)
    assert (scored.avg_latency_ms, scored.avg_tokens) == (20, 6.5)


def test_runs_that_failed_are_not_averaged():
    """They count as not passed, and the averages are those of the runs that ended; of none they are 0."""
    scored = Score.of([outcome(), outcome(latency=30)], errors=2)
    assert (scored.success_rate, scored.pass_count, scored.fail_count, scored.error_count) == (0.5, 2, 2, 2)
    assert (scored.avg_score, scored.avg_latency_ms) == (1, 20)
    assert Score.of([], errors=1) == Score(0, 0, 0, 0, 0, 1, 1)


def score(success=0.5, mean=0.5, latency=10.0):
    return Score(success, mean, latency, 1, 1, 1)


@pytest.mark.parametrize(
    ("scores", "index"),
    [
        ([score()], 0),
        ([score(0.5, 1.0, 1), score(0.6, 0.0, 99)], 1),
        ([score(mean=0.5), score(mean=0.6, latency=99)], 1),
        ([score(latency=10), score(latency=9)], 1),
        ([score(), score(), score()], 0),
        ([Score.of([], errors=2), Score.of([outcome(accepted=False, failed=["regex", "syntax"])])], 1),
    ],
)
def test_the_best(scores, index):
    """Most passed, then the higher score, then the faster, then the first."""
    assert best(scores) == index


def points(base, space, most=MAX_TRIALS):
    return [variant.plain for variant in grid(base, space, most).tried]


def test_the_grid_in_its_order():
    """method, temperature, top_p, best_of_n, then other paths in the order given; the last axis fastest."""
    space = {
        "verifiers.rerank": [True, False],
        "optimization.best_of_n": [2, 3],
        "sampling.temperature": [0.1, 0.9],
        "sampling.method": ["top-p", "min-p"],
        "sampling.top_p": [0.5],
        "sampling.top_k": [3, 4],
    }
    expected = itertools.product(["top-p", "min-p"], [0.1, 0.9], [0.5], [2, 3], [True, False], [3, 4])
    found = grid({"name": "base"}, space, MAX_TRIALS).tried
    assert [
        (
            each.policy.sampling.method,
            each.policy.sampling.temperature,
            each.policy.sampling.top_p,
            each.policy.optimization.best_of_n,
            each.policy.verifiers.rerank,
            each.policy.sampling.top_k,
        )
        for each in found
    ] == list(expected)
    assert {each.policy.name for each in found} == {"base"}
    assert all(RuntimePolicy.model_validate(each.plain) == each.policy for each in found)


@given(st.integers(1, 40))
def test_the_first_trials_are_tried(most):
    """A larger grid is cut, not sampled; a smaller one is tried in full."""
    space = {"sampling.temperature": [0.1, 0.2, 0.3], "sampling.top_k": [1, 2, 3, 4, 5]}
    assert points({}, space, most) == points({}, space)[:most]
    assert len(points({}, space, most)) == min(most, 15)


def test_a_huge_grid_costs_what_is_tried():
    """Sixteen axes of sixty-four values are not spelled out."""
    space = {f"metadata.a{axis}": list(range(64)) for axis in range(16)}
    found = points({}, space, 3)
    assert [each["metadata"]["a15"] for each in found] == [0, 1, 2]


def test_without_axes_the_base_itself_is_tried():
    """And without a base, top-k at its defaults."""
    assert points(BASE, {}) == [BASE]
    policy = grid(BASE, {}, 5).tried[0].policy
    assert (policy.sampling.method, policy.sampling.temperature, policy.sampling.top_p) == ("top-k", 0.7, 0.9)


def test_the_base_stays_as_it_is():
    """Variants have their own of every group on the path of an axis; what no axis reaches they share."""
    base = {"sampling": {"method": "top-p"}, "constraints": {"forbidden_terms": ["a"]}}
    first, second = points(base, {"sampling.temperature": [0.1, 0.2]})
    first["sampling"]["top_p"] = 0.1
    assert base == {"sampling": {"method": "top-p"}, "constraints": {"forbidden_terms": ["a"]}}
    assert second == {**base, "sampling": {"method": "top-p", "temperature": 0.2}}
    assert first["constraints"] is second["constraints"] is base["constraints"]


def test_an_axis_within_a_value_of_another():
    """A value that is a group is changed in its variant alone: the search space stays as it was sent."""
    space = {"objective": [{"name": "speed"}], "objective.token_budget": [1, 2]}
    objectives = [each["objective"] for each in points({}, space)]
    assert objectives == [{"name": "speed", "token_budget": most} for most in (1, 2)]
    assert space["objective"] == [{"name": "speed"}]


def test_a_large_base_is_validated_once():
    """A search over sampling does not look at a long vector again for every point, though each has it."""
    base = {"steering": {"enabled": True, "vector": {"1": [0.5] * 30_000}}}
    found = grid(base, {"sampling.top_k": list(range(1, 65)), "sampling.temperature": [0.1, 0.2]}, MAX_TRIALS)
    assert len({id(each.policy.steering) for each in found.tried}) == 1
    assert all(each.plain["steering"] is base["steering"] for each in found.tried)


@pytest.mark.parametrize(
    ("space", "field", "message"),
    [
        ({"sampling.heat": [1]}, "search_space.sampling.heat", "sampling.heat"),
        ({"sampling.temperature": [0.5, 9]}, "search_space.sampling.temperature", "less than or equal to 2"),
        ({"sampling.temperature": []}, "search_space.sampling.temperature", "at least one value"),
        ({"heat": [1]}, "search_space.heat", "heat"),
        ({"name.first": ["x"]}, "search_space.name.first", "no group"),
        ({"sampling.": [1]}, "search_space.sampling.", "a path"),
        ({"": [1]}, "search_space.", "a path"),
        ({"sampling.method": ["warp"]}, "search_space.sampling.method", "unknown sampling method"),
        (
            {"constraints.forbidden_terms": [["a", ""]]},
            "search_space.constraints.forbidden_terms",
            "at least 1",
        ),
        (
            {"optimization.branch_and_prune": [True]},
            "search_space.optimization.branch_and_prune",
            "branch_and_prune has no effect",
        ),
        (
            {"sampling.method": ["greedy"], "optimization.best_of_n": [1, 4]},
            "search_space.optimization.best_of_n",
            "best_of_n has no effect",
        ),
        (
            {
                "sampling.method": ["greedy", "top-k"],
                "sampling.diversity_strength": [0.5],
                "name": ["a", "b"],
            },
            "search_space",
            "diversity_strength has no effect",
        ),
    ],
)
def test_what_makes_no_policy(space, field, message):
    """A path that no policy has, or a value that makes none, is refused by the axis that it is on."""
    with pytest.raises(SearchError, match=message) as refused:
        grid({"name": "n"}, space, 5)
    assert refused.value.field == field


def test_a_point_that_does_nothing_is_skipped():
    """Greedy candidates are all the same: that point is left out with its reason, the others are tried."""
    space = {"sampling.method": ["greedy", "top-p"], "optimization.best_of_n": [1, 4]}
    found = grid({}, space, MAX_TRIALS)
    tried = [(each.policy.sampling.method, each.policy.optimization.best_of_n) for each in found.tried]
    assert tried == [("greedy", 1), ("top-p", 1), ("top-p", 4)]
    (skipped,) = found.skipped
    assert skipped.point == {"sampling.method": "greedy", "optimization.best_of_n": 4}
    assert "best_of_n has no effect with greedy" in skipped.reason
    cut = grid({}, space, 1)  # that four candidates are useful is seen further on
    assert (len(cut.tried), cut.skipped) == (1, [])
    assert [each.policy.sampling.method for each in grid({}, space, 2).tried] == ["greedy", "top-p"]


def test_a_base_that_does_nothing_is_refused():
    """Without axes there is nothing to skip to."""
    with pytest.raises(SearchError, match="branch_and_prune has no effect") as refused:
        grid({"optimization": {"branch_and_prune": True}}, {}, 5)
    assert refused.value.field == "search_space"


@pytest.mark.parametrize("path", ["a.b", "sampling.heat", "sampling.temperature.x"])
def test_an_unknown_axis_is_named(path):
    """The error names the axis as the request wrote it, wherever on its way the policy ends."""
    with pytest.raises(SearchError) as refused:
        grid(BASE, {path: [1]}, 4)
    assert refused.value.field == f"search_space.{path}"
