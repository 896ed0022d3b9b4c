"""Where our runner differs from Axionic's on purpose, as `test_against_axionic` lists it."""

import pytest
from pydantic import ValidationError

from policies.policy import RuntimePolicy
from policies.run import Answer, Runner
from policies.verdict import judge
from tests.policies.axionic import Script, both, finished, mechanex, ours, theirs

UNREPAIRED = {"repair_on_failure": False}
JSON = {"json_mode": True}


def test_repairs_are_ours_alone():
    """Theirs goes straight to the next round; ours asks for the rejected winner again first."""
    policy = {"constraints": JSON, "optimization": {"retry_on_failure": 0}}
    result, outcome = both(policy, "no")
    assert len(result["trace"]["candidates"]) == 1
    assert [trial.kind for trial in outcome.trials] == ["candidate", "repair"]


def test_retries_by_default():
    """None in theirs, one in ours, as the contract's table has it."""
    result, outcome = both({"constraints": JSON, "verifiers": UNREPAIRED}, "no")
    assert (len(result["trace"]["candidates"]), len(outcome.trials)) == (1, 2)
    assert (result["trace"]["retry_events"], len(outcome.retries)) == ([], 1)


def test_confidence_reads_likelihoods():
    """An accepted answer of score 1 satisfies theirs; ours asks again where its tokens were unlikely."""
    policy = {
        "verifiers": UNREPAIRED,
        "optimization": {"confidence_triggered_regeneration": True, "retry_on_failure": 0},
    }
    result, outcome = both(policy, "yes", logprob=-3.0)
    assert result["trace"]["retry_events"] == []
    assert [each.trigger for each in outcome.retries] == ["confidence"]


def test_presets_bring_constraints():
    """json_compliance rejects text in ours; theirs keeps its steering alone."""
    policy = {"steering": {"preset": "json_compliance"}, "verifiers": UNREPAIRED}
    result, outcome = both(policy, "no")
    assert result["accepted"] is True
    assert not outcome.winner.verdict.accepted
    assert outcome.winner.verdict.reason == "constraint: invalid json | syntax_verifier: invalid json"


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ({"verifiers": {"enabled": ["tool_args"]}}, "tool_args_verifier"),
        ({"constraints": {"tool_schema": {}}}, "constraint: the tool call"),
        ({"constraints": {"json_schema": {}}}, "constraint: invalid json"),
        ({"constraints": {"forbidden_terms": ["straße"]}}, "constraint: forbidden term"),
    ],
)
def test_what_theirs_does_not_check(policy, reason):
    """Accepted there, rejected here with a reason."""
    verifiers = {**policy.get("verifiers", {}), **UNREPAIRED}
    result, outcome = both({**policy, "verifiers": verifiers}, "STRASSE")
    assert result["accepted"] is True
    assert outcome.winner.verdict.reason.startswith(reason)


def test_a_grammar_that_masks():
    """Theirs wants both alternatives of `"yes" | "no"` in order; ours leaves that to the mask."""
    policy = {"constraints": {"grammar": 'root ::= "yes" | "no"'}, "verifiers": UNREPAIRED}
    result, _ = both(policy, "yes")
    assert result["trace"]["selection"]["reason"] == "constraint: grammar mismatch"
    given_ = RuntimePolicy.model_validate(policy)

    async def generate(ask):
        assert ask.constraint.grammar == policy["constraints"]["grammar"]
        return [Answer("yes", 1, "top-k", "stop")]

    async def verify(texts):
        return [judge(text, given_) for text in texts]

    assert finished(Runner(given_, generate, verify, 16).run()).winner.verdict.accepted


def test_an_objective_to_be_minimised():
    """Among answers rejected alike theirs takes the highest score whatever the policy says."""
    policy = {
        "constraints": {"json_mode": True, "regex_pattern": "x"},
        "objective": {"maximize": False},
        "verifiers": {"enabled": ["regex", "syntax"], **UNREPAIRED},
        "sampling": {"num_candidates": 2},
        "optimization": {"retry_on_failure": 0},
    }
    result, outcome = both(policy, "no", '{"b": 1}')
    assert result["output"] == '{"b": 1}'
    assert outcome.winner.answer.text == "no"
    result, outcome = both({**policy, "objective": {}}, "no", '{"b": 1}')
    assert result["output"] == outcome.winner.answer.text == '{"b": 1}'


def test_rerank():
    """Without it ours takes the first accepted; theirs agrees, as what text alone decides scores accepted
    answers alike (`test_run` has others)."""
    policy = {
        "constraints": {"forbidden_terms": ["z"]},
        "verifiers": {"enabled": ["code_compile"], "rerank": False, **UNREPAIRED},
        "sampling": {"num_candidates": 3},
    }
    result, outcome = both(policy, "def (", "a = 1", "b = 2")
    assert result["output"] == outcome.winner.answer.text == "a = 1"


def test_an_ensemble():
    """Theirs samples once; ours votes among five, and the most votes win."""
    policy = {"sampling": {"method": "ensemble-sampling"}, "verifiers": UNREPAIRED}
    result, outcome = both(policy, "a", "b", "B.", "c", "d")
    assert (len(result["trace"]["candidates"]), len(outcome.trials)) == (1, 5)
    assert (result["output"], outcome.winner.answer.text) == ("a", "b")


def test_ads_is_served():
    """Theirs refuses it in local mode."""
    policy = {"sampling": {"method": "ads"}}
    with pytest.raises(mechanex.MechanexError, match="ADS is not supported"):
        both(policy, "a")
    assert ours(policy, Script(["a"]))[0].winner.answer.text == "a"


def test_cold_candidates_are_one():
    """At temperature 0 theirs samples the same text three times; ours once, and three in a warmer retry."""
    policy = {
        "sampling": {"temperature": 0, "num_candidates": 3},
        "constraints": JSON,
        "verifiers": UNREPAIRED,
        "optimization": {"retry_on_failure": 1},
    }
    result, outcome = both(policy, "no")
    assert len(result["trace"]["candidates"]) == 6
    assert [trial.round for trial in outcome.trials] == [0, 1, 1, 1]


def test_a_default_top_p_narrows():
    """Where a policy gives no top_p, retries narrow the default in ours alone."""
    policy = {
        "sampling": {"method": "top-p"},
        "constraints": JSON,
        "verifiers": UNREPAIRED,
        "optimization": {"retry_on_failure": 1},
    }
    (_, sampled), (_, slots) = theirs(policy, Script(["no"])), ours(policy, Script(["no"]))
    assert [each["top_p"] for each in sampled] == [0.9, 0.9]
    assert [slot.top_p for slot in slots] == pytest.approx([0.9, 0.86])


@pytest.mark.parametrize(
    "policy",
    [
        {"verifiers": {"enabled": ["regex"]}},
        {"verifiers": {"enabled": ["json_schema"]}},
        {"verifiers": {"enabled": ["syntax"]}},
        {"verifiers": {"code_unit_tests": ["assert True"]}},
        {"sampling": {"method": "warp"}},
        {"sampling": {"adaptive_temperature_schedule": [0.5]}},
        {"sampling": {"diversity_strength": 1}},
        {"sampling": {"method": "greedy", "num_candidates": 2}},
        {"sampling": {"ads_beta": 0.2}},
        {"optimization": {"confidence_threshold": 0.9}},
        {"constraints": {"json_mode": True, "grammar": "be brief"}},
        {"sampling": {"method": "constrained-beam-search"}, "constraints": {"forbidden_terms": ["x"]}},
        {"optimization": {"retry_on_failure": 2}},
        {"sampling": {"method": "greedy"}, "constraints": JSON, "optimization": {"retry_on_failure": 2}},
        {"constraints": {"required_fields": ["a"]}, "verifiers": {"enabled": ["syntax"]}},
    ],
)
def test_what_would_do_nothing_is_refused(policy):
    """The reference runs such a policy and ignores the field; ours names it."""
    assert theirs(policy, Script(['{"a": 1}']))[0]["accepted"] is True
    with pytest.raises(ValidationError):
        RuntimePolicy.model_validate(policy)


def test_tokens_are_the_engines():
    """Words there, tokens here."""
    result, outcome = both({"verifiers": UNREPAIRED}, "three small words")
    assert (result["tokens"], outcome.winner.answer.tokens) == (3, 1)
