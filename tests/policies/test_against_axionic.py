"""Our runner against the one in Axionic's SDK: the same policies, on the same script of answers.

`mechanex.policy.PolicyModule._run_local_policy` is the reference of what a policy means. Generated policies
stay where both mean the same, which is nearly all of constraints, verifiers, rounds, retries, confidence,
schedules and diversity. Where they differ on purpose, they do not go; other tests show that they differ
exactly so:

- `repair_on_failure`, `self_revision_loops`, `branch_and_prune`, `fallback_methods`, both budgets,
  `objective.maximize`, `rerank`: the reference reads none of them; the contract (3.10) defines what they do.
- `retry_on_failure` absent: 1, as the contract's table says; the reference has 0.
- `sampling.top_p` absent: retries narrow its default too; the reference narrows only one that was given.
- Confidence also takes the likelihood of the tokens into account, which the reference does not know; where
  the mean log-probability is 0 both agree.
- A steering preset's constraints and verifiers apply (D4); the reference drops all but its steering.
- `tool_args`, `tool_schema`, `factuality`: the reference names them and checks nothing.
- A grammar that masks the decoding holds by itself; the reference reads every grammar as literals in order,
  or after `regex:` as a pattern. Guidance without literals never fails in the reference; it is refused here.
- `json_schema: {}` is a constraint, any object; to the reference it is none.
- An ensemble has several votes for a single candidate, and the most votes win before the higher score; the
  reference samples one model once.
- ADS is refused by the reference, and served.
- Candidates that could not differ, at temperature 0, are one; greedy with several is refused by name.
- Forbidden terms are found by case folding too ("STRASSE" has "straße").
- A field without effect is refused by name (D14): a verifier without its constraint (`syntax` without
  `json_mode`), an unknown method, a schedule without its flag, forbidden terms beside beams, more than one
  retry where nothing can be rejected or drawn, required fields that a closed schema lacks. The reference
  ignores it.
- Reasons of schemas and regexes are worded as the contract has them; the reference quotes the schema.
- Latency is that of a batch, the same for its candidates; the reference times each alone. Scripts are timed
  by the round.
- The reference counts words as tokens.
"""

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from policies.trials import Score, best, grid
from tests.policies.axionic import (
    TEXTS,
    Script,
    checks,
    counted,
    local_module,
    optional,
    ours,
    policies,
    shares,
    tenths,
    theirs,
    told,
)


@settings(max_examples=600, suppress_health_check=list(HealthCheck))
@given(policies(), st.lists(st.sampled_from(TEXTS), min_size=1, max_size=9))
def test_the_same_outcome(policy, texts):
    """Winner, candidates with their scores and verdicts, and retry events are those of the SDK's runner, and
    so are the checks that its reasons name."""
    script = Script(texts)
    (result, sampled), (outcome, slots) = theirs(policy, script), ours(policy, script)
    assert counted(outcome) == told(result)
    assert [checks(trial.verdict.reason) for trial in outcome.trials] == [
        checks(each["reason"]) for each in result["trace"]["candidates"]
    ]
    assert len(sampled) == len(slots)
    method = policy["sampling"]["method"].lower().replace("_", "-")
    if method not in {"greedy", "constrained-beam-search"}:  # ours tell what acts, which is no temperature
        assert [slot.temperature for slot in slots] == pytest.approx(
            [each["temperature"] for each in sampled]
        )
    if method in {"top-p", "guided-generation"}:  # to others the reference passes none, or it is not theirs
        asked = [each.get("top_p") for each in sampled]
        if policy["sampling"]["method"] == method:  # the reference knows a method by its one spelling
            assert [slot.top_p for slot in slots] == pytest.approx(asked)
    event(f"rounds: {outcome.rounds}")
    event(f"accepted: {outcome.winner.verdict.accepted}")
    event(f"winner of a later round: {outcome.winner.round > 0}")


@settings(max_examples=100)
@given(
    optional(
        **{
            "sampling.method": st.lists(st.sampled_from(["top-k", "top-p", "ssd"]), min_size=1, max_size=3),
            "sampling.temperature": st.lists(tenths, min_size=1, max_size=3),
            "sampling.top_p": st.lists(shares, min_size=1, max_size=2),
            "optimization.best_of_n": st.lists(st.integers(1, 3), min_size=1, max_size=2),
        }
    ),
    st.lists(st.sampled_from(TEXTS), min_size=1, max_size=9),
    st.integers(1, 30),
)
def test_the_same_search(space, texts, most):
    """Autotune tries the same points in the same order, scores each alike and prefers the same one."""
    base = {
        "constraints": {"json_mode": True, "regex_pattern": r"\d"},
        "verifiers": {"enabled": ["regex"], "repair_on_failure": False},
        "optimization": {"retry_on_failure": 1},
    }
    prompts, script = ["one", "other"], Script(texts, seconds=0)
    module, _ = local_module(script)
    module._use_local = lambda: True
    result = module.auto_tune(prompts, base_policy=base, search_space=space, max_trials=most)
    tried = grid(base, dict(reversed(space.items())), most).tried
    scores = [Score.of([ours(each.plain, script, prompt=prompt)[0] for prompt in prompts]) for each in tried]
    names = ("success_rate", "avg_score", "avg_latency_ms", "pass_count", "fail_count")
    assert [tuple(getattr(score, name) for name in names) for score in scores] == [
        (
            *(trial[name] for name in names[:1]),
            pytest.approx(trial["avg_score"]),
            *(trial[n] for n in names[2:]),
        )
        for trial in result["trials"]
    ]
    points = [
        (sampling.method, sampling.temperature, sampling.top_p, each.policy.optimization.best_of_n)
        for each in tried
        for sampling in (each.policy.sampling,)
    ]
    assert points == [
        (*(trial["policy"]["sampling"][name] for name in ("method", "temperature", "top_p")), count)
        for trial in result["trials"]
        for count in (trial["policy"]["optimization"]["best_of_n"],)
    ]
    found = best(scores)
    assert scores[found].rank[0] == result["best_trial"]["success_rate"]
    assert result["trials"].index(result["best_trial"]) == found
