"""What Axionic's SDK writes is admitted and can be planned; what is refused of it would do nothing there."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from policies.enforced import enforced
from policies.policy import RuntimePolicy
from policies.rounds import free, plan_round, single
from policies.sampling import EngineFacts, UnavailableError, plan
from policies.steering import PRESET_FLOORS

mechanex = pytest.importorskip("mechanex.policy", reason="pip install mechanex")
generation = pytest.importorskip("mechanex.generation", reason="pip install mechanex")

SDK = mechanex.PolicyModule
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
METHODS = [
    "greedy",
    "top-k",
    "top-p",
    "min-p",
    "typical",
    "ads",
    "adaptive-determinantal-sampling",
    "guided-generation",
    "constrained-beam-search",
    "speculative-decoding",
    "ssd",
    "ensemble-sampling",
]
FACTORIES = {
    "strict_json_extraction": SDK.strict_json_extraction(SCHEMA),
    "fast_tool_router": SDK.fast_tool_router(),
    "diverse_chatbot": SDK.diverse_chatbot(),
    "ensemble_vote": SDK.ensemble_vote(["a", "b", "c"]),
    "ensemble_vote of one": SDK.ensemble_vote(["a"]),
    "ensemble_vote of none": SDK.ensemble_vote([]),
    **{f"steering_preset {name}": SDK.steering_preset(name) for name in PRESET_FLOORS},
    **{
        f"steering_preset by {method}": SDK.steering_preset("brevity", sampling_method=method)
        for method in METHODS
        if method != "guided-generation"
    },
}
# What generate() sends on the policy path when nothing else is given.
ALWAYS = {
    "sampling_method": "top-k",
    "temperature": 0.7,
    "top_k": 50,
    "top_p": 0.9,
    "min_p": None,
    "typical_p": None,
    "ads_subset_size": None,
    "ads_beta": None,
    "regex_pattern": None,
    "grammar": None,
    "json_schema": None,
    "draft_model": None,
    "ensemble_models": None,
    "steering_vector": None,
    "steering_strength": 0,
    "best_of_n": 1,
}


def inline(**arguments):
    module = object.__new__(generation.GenerationModule)
    return module._build_inline_policy(**{**ALWAYS, **arguments})


def assert_plannable(policy):
    """Each method in line, each round, with the repairs, critiques and revisions that may follow it; a
    speculative engine may lack a method, which is no error of the policy."""
    constraint = enforced(policy)
    for number, method in enumerate(policy.methods):
        planned = plan_round(policy, constraint, number, method)
        for each in (planned, planned.first(2), planned.first(1), single(planned), free(planned)):
            plan(each.asked, EngineFacts())
            with suppress(UnavailableError):
                plan(each.asked, EngineFacts(speculative=True, processors=False))


@pytest.mark.parametrize("name", FACTORIES)
def test_factories(name):
    """Every factory's policy is admitted as it is, keeps what it says, and can be planned."""
    sent = FACTORIES[name]
    policy = RuntimePolicy.model_validate(sent)
    dumped = policy.model_dump(exclude_unset=True)
    assert dumped == sent
    assert_plannable(policy.expanded())


alone = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 0.3, 2.0]),
        "top_k": st.sampled_from([-1, 0, 40]),
        "top_p": st.sampled_from([0.1, 1.0]),
        "min_p": st.sampled_from([0.0, 0.1]),
        "typical_p": st.sampled_from([0.9, 1.0]),
        "ads_subset_size": st.integers(1, 32),
        "ads_beta": st.sampled_from([0.0, 0.35]),
        "regex_pattern": st.sampled_from(["[a-z]+", r"\d"]),
        "grammar": st.sampled_from(['root ::= "a"', "'a' then 'b'", "regex:a+"]),
        "json_schema": st.just(SCHEMA),
        "draft_model": st.just("small"),
        "ensemble_models": st.sampled_from([["a"], ["a", "b"]]),
        "steering_vector": st.sampled_from(["sv_1", {"3": [0.5]}]),
        "steering_strength": st.sampled_from([0, 0.5]),
        "best_of_n": st.integers(0, 4),
        "adaptive_temperature": st.booleans(),
        "adaptive_temperature_schedule": st.sampled_from([[], [0.0, 0.9]]),
        "adaptive_top_p": st.booleans(),
        "adaptive_top_p_schedule": st.sampled_from([[], [0.5]]),
        "steering_preset": st.sampled_from([*PRESET_FLOORS, "Brevity"]),
        "confidence_triggered_regeneration": st.booleans(),
        "confidence_threshold": st.sampled_from([0.5, 0.8]),
        "code_unit_tests": st.sampled_from([[], ["assert True"]]),
    },
)


def reasons(given_):
    """What of these arguments would do nothing: a part of the refusal for each."""
    arguments = {**ALWAYS, **given_}
    method = "ensemble-sampling" if arguments["ensemble_models"] else arguments["sampling_method"]
    undrawn = method in {"greedy", "constrained-beam-search"}
    preset, vector = arguments.get("steering_preset"), arguments["steering_vector"]
    schedules = [f"adaptive_{name}" for name in ("temperature", "top_p")]
    json_like = arguments["json_schema"] is not None or preset == "json_compliance"
    found = {
        "ads_subset_size": arguments["ads_subset_size"] is not None
        and method not in {"ads", "adaptive-determinantal-sampling"},
        "ads_beta": arguments["ads_beta"] is not None
        and method not in {"ads", "adaptive-determinantal-sampling"},
        "draft_model": arguments["draft_model"] is not None and method not in {"ssd", "speculative-decoding"},
        "min_p": bool(arguments["min_p"]) and undrawn,
        "typical_p": arguments["typical_p"] is not None and undrawn,
        "best_of_n": arguments["best_of_n"] > 1 and method == "greedy",
        "constraints.grammar": json_like and arguments["grammar"] in {'root ::= "a"', "regex:a+"},
        "nothing to steer by": arguments["steering_strength"] != 0 and not vector and not preset,
        "beside the preset": vector is not None and preset not in {None, "domain_specific"},
        "confidence_threshold": arguments.get("confidence_threshold", 0.5) != 0.5
        and not arguments.get("confidence_triggered_regeneration"),
    }
    for name in schedules:
        found[name] = undrawn and (arguments.get(name, False) or bool(arguments.get(f"{name}_schedule")))
    return [part for part, holds in found.items() if holds]


@settings(max_examples=300)
@given(st.sampled_from(METHODS), alone)
def test_inline_policies(method, arguments):
    """What generate() makes of its arguments is admitted and can be planned, unless one of them would do
    nothing; then the refusal names it."""
    arguments = {**arguments, "sampling_method": method}
    sent, idle = inline(**arguments), reasons(arguments)
    if idle:
        with pytest.raises(ValidationError) as refused:
            RuntimePolicy.model_validate(sent)
        assert any(part in str(refused.value) for part in idle)
        return
    policy = RuntimePolicy.model_validate(sent).expanded()
    if policy.sampling.method == "guided-generation" and not enforced(policy).constrained:
        return  # a constraint may still come with the request; planning refuses it otherwise
    assert_plannable(policy)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_alone(method):
    """Every method that generate() names is served as the SDK sends it, several candidates too."""
    count = 1 if method == "greedy" else 3
    policy = RuntimePolicy.model_validate(inline(sampling_method=method, regex_pattern="a+", best_of_n=count))
    assert policy.candidates == count
    assert_plannable(policy)
