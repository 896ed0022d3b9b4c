"""Which policies are admitted: what takes effect, and the neutral value of what does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from policies.policy import RuntimePolicy
from policies.sampling import Method

# What Axionic's client writes when nothing is set: every group in full, numbers as floats.
DEFAULTS = {
    "id": None,
    "name": None,
    "description": None,
    "metadata": {},
    "model": {"model": "default", "base_url": None},
    "task_profile": {"name": "general", "category": None, "description": None},
    "objective": {"name": "quality", "maximize": True, "latency_budget_ms": None, "token_budget": None},
    "sampling": {
        "method": "top-k",
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 50,
        "min_p": None,
        "typical_p": None,
        "repetition_penalty": None,
        "presence_penalty": None,
        "frequency_penalty": None,
        "num_candidates": 1,
        "diversity_strength": 0.0,
        "beam_width": 4,
        "speculative_steps": 4,
        "draft_model": None,
        "ensemble_models": [],
        "voting": "majority",
        "ads_subset_size": None,
        "ads_beta": None,
        "adaptive_temperature": False,
        "adaptive_temperature_schedule": [],
        "adaptive_top_p": False,
        "adaptive_top_p_schedule": [],
    },
    "steering": {
        "enabled": False,
        "method": "caa",
        "strength": 1.0,
        "preset": None,
        "vector_id": None,
        "vector": None,
        "file_url": None,
        "layer_scope": [],
        "token_start": None,
        "token_end": None,
    },
    "constraints": {
        "json_mode": False,
        "json_schema": None,
        "required_fields": [],
        "regex_pattern": None,
        "grammar": None,
        "forbidden_terms": [],
        "stop_sequences": [],
        "tool_schema": None,
    },
    "verifiers": {
        "enabled": [],
        "repair_on_failure": True,
        "max_retries": 1,
        "rerank": True,
        "code_language": "python",
        "code_unit_tests": [],
        "unit_test_timeout_ms": 1500,
    },
    "optimization": {
        "best_of_n": 1,
        "retry_on_failure": 1,
        "fallback_methods": [],
        "confidence_triggered_regeneration": False,
        "confidence_threshold": 0.5,
        "self_revision_loops": 0,
        "branch_and_prune": False,
    },
}

ONE = {"sampling": {"method": "greedy"}}
SCHEMA = {"type": "object"}
CLOSED = {"properties": {"a": {}}, "additionalProperties": False}

# Policies of which a field has no effect, beside the others or at all; the path that the refusal names.
INEFFECTIVE = [
    ({"model": {"base_url": "http://elsewhere/v1"}}, "model.base_url"),
    ({"steering": {"file_url": "http://elsewhere/v"}}, "steering.file_url"),
    ({"sampling": {"voting": "score"}}, "sampling.voting"),
    ({"sampling": {"adaptive_temperature_schedule": [0.5]}}, "sampling.adaptive_temperature_schedule"),
    ({"sampling": {"adaptive_top_p_schedule": [0.5]}}, "sampling.adaptive_top_p_schedule"),
    ({"sampling": {"method": "greedy", "adaptive_temperature": True}}, "sampling.adaptive_temperature"),
    ({"sampling": {"method": "beam-search", "adaptive_top_p": True}}, "sampling.adaptive_top_p"),
    ({"sampling": {"diversity_strength": 0.7}}, "sampling.diversity_strength"),
    (
        {"sampling": {"method": "beam-search", "diversity_strength": 0.7, "num_candidates": 2}},
        "sampling.diversity_strength",
    ),
    ({"sampling": {"method": "greedy", "min_p": 0.1}}, "sampling.min_p"),
    ({"sampling": {"method": "beam-search", "min_p": 0.1}}, "sampling.min_p"),
    ({"sampling": {"method": "greedy", "typical_p": 0.9}}, "sampling.typical_p"),
    ({"sampling": {"method": "beam-search", "presence_penalty": 0.1}}, "sampling.presence_penalty"),
    ({"sampling": {"method": "beam-search", "frequency_penalty": -1}}, "sampling.frequency_penalty"),
    ({"sampling": {"method": "beam-search", "repetition_penalty": 1.1}}, "sampling.repetition_penalty"),
    (
        {"sampling": {"method": "beam-search"}, "constraints": {"forbidden_terms": ["x"]}},
        "constraints.forbidden_terms",
    ),
    (
        {
            "optimization": {"fallback_methods": ["top-p", "beam-search"]},
            "constraints": {"forbidden_terms": ["x"]},
        },
        "constraints.forbidden_terms",
    ),
    ({"sampling": {"ads_subset_size": 4}}, "sampling.ads_subset_size"),
    ({"sampling": {"ads_beta": 0.4}}, "sampling.ads_beta"),
    ({"sampling": {"beam_width": 8}}, "sampling.beam_width"),
    ({"sampling": {"draft_model": "small"}}, "sampling.draft_model"),
    ({"sampling": {"speculative_steps": 6}}, "sampling.speculative_steps"),
    ({"sampling": {"ensemble_models": ["a", "b"]}}, "sampling.ensemble_models"),
    ({"sampling": {"method": "greedy", "num_candidates": 3}}, "sampling.num_candidates"),
    (ONE | {"optimization": {"best_of_n": 3}}, "optimization.best_of_n"),
    (
        {"sampling": {"method": "beam-search"}, "optimization": {"best_of_n": 17}},
        "optimization.best_of_n",
    ),
    (
        {
            "sampling": {"num_candidates": 60},
            "optimization": {"fallback_methods": ["top-p", "constrained-beam-search"]},
        },
        "sampling.num_candidates",
    ),
    (
        {
            "sampling": {"method": "ensemble-sampling", "ensemble_models": ["a", "b", "c"]},
            "optimization": {"best_of_n": 43},
        },
        "optimization.best_of_n",
    ),
    ({"optimization": {"branch_and_prune": True}}, "optimization.branch_and_prune"),
    (
        {
            "sampling": {"method": "constrained-beam-search"},
            "optimization": {"best_of_n": 4, "branch_and_prune": True},
        },
        "optimization.branch_and_prune",
    ),
    ({"optimization": {"confidence_threshold": 0.8}}, "optimization.confidence_threshold"),
    ({"optimization": {"fallback_methods": ["guided-generation"]}}, "optimization.fallback_methods"),
    ({"verifiers": {"enabled": ["syntax"]}}, "verifiers.enabled"),
    ({"verifiers": {"enabled": ["syntax"]}, "constraints": {"json_schema": SCHEMA}}, "verifiers.enabled"),
    ({"verifiers": {"enabled": ["syntax"]}, "constraints": {"required_fields": ["a"]}}, "verifiers.enabled"),
    (
        {"constraints": {"required_fields": ["a", "b"], "json_schema": CLOSED}},
        "constraints.required_fields",
    ),
    ({"optimization": {"retry_on_failure": 2}}, "optimization.retry_on_failure"),
    (
        {
            "sampling": {"method": "greedy"},
            "constraints": {"json_mode": True},
            "optimization": {"retry_on_failure": 2},
        },
        "optimization.retry_on_failure",
    ),
    (
        {
            "sampling": {"method": "beam-search"},
            "constraints": {"json_mode": True},
            "optimization": {"retry_on_failure": 2, "fallback_methods": ["constrained-beam-search"]},
        },
        "optimization.retry_on_failure",
    ),
    ({"verifiers": {"max_retries": 2}}, "verifiers.max_retries"),
    ({"verifiers": {"rerank": False}, "constraints": {"json_mode": True}}, "verifiers.rerank"),
    ({"objective": {"maximize": False}, "optimization": {"best_of_n": 2}}, "objective.maximize"),
    ({"verifiers": {"enabled": ["json_schema"]}, "constraints": {"json_mode": True}}, "verifiers.enabled"),
    ({"verifiers": {"enabled": ["regex"]}, "constraints": {"grammar": "'a'"}}, "verifiers.enabled"),
    ({"verifiers": {"enabled": ["regex"]}, "steering": {"preset": "json_compliance"}}, "verifiers.enabled"),
    ({"verifiers": {"enabled": ["unit_tests"]}}, "verifiers.code_unit_tests"),
    ({"verifiers": {"code_unit_tests": ["assert True"]}}, "verifiers.code_unit_tests"),
    ({"verifiers": {"unit_test_timeout_ms": 500}}, "verifiers.unit_test_timeout_ms"),
    ({"verifiers": {"code_language": "rust"}}, "verifiers.code_language"),
    ({"verifiers": {"max_retries": 2, "repair_on_failure": False}}, "verifiers.max_retries"),
    ({"constraints": {"tool_schema": SCHEMA, "json_schema": SCHEMA}}, "constraints.tool_schema"),
    ({"constraints": {"json_mode": True, "grammar": 'root ::= "a"'}}, "constraints.grammar"),
    ({"constraints": {"required_fields": ["a"], "grammar": "regex: 'a'"}}, "constraints.grammar"),
    ({"constraints": {"json_schema": SCHEMA, "grammar": "be brief"}}, "constraints.grammar"),
    ({"constraints": {"tool_schema": SCHEMA, "grammar": "start: WORD"}}, "constraints.grammar"),
    ({"constraints": {"grammar": "x"}, "verifiers": {"enabled": ["tool_args"]}}, "constraints.grammar"),
    ({"constraints": {"grammar": "x"}, "steering": {"preset": "json_compliance"}}, "constraints.grammar"),
]
UNSOUND = [
    ("sampling.temperature", float("nan")),
    ("sampling.temperature", 2.1),
    ("sampling.top_p", 0),
    ("sampling.top_k", -2),
    ("sampling.ads_subset_size", 33),
    ("sampling.ads_beta", 0.95),
    ("sampling.beam_width", 17),
    ("sampling.num_candidates", 129),
    ("optimization.best_of_n", 0),
    ("optimization.retry_on_failure", 17),
    ("optimization.fallback_methods.1", ["top-k", "warp"]),
    ("optimization.confidence_threshold", 1.5),
    ("optimization.self_revision_loops", 9),
    ("objective.latency_budget_ms", 0),
    ("objective.token_budget", 0),
    ("sampling.diversity_strength", -1),
    ("sampling.diversity_strength", float("nan")),
    ("sampling.adaptive_temperature_schedule.0", [2.5]),
    ("sampling.adaptive_top_p_schedule.1", [0.5, 0]),
    ("sampling.speculative_steps", 0),
    ("sampling.ensemble_models", ["m"] * 17),
    ("verifiers.enabled.0", ["vibes"]),
    ("verifiers.max_retries", 17),
    ("verifiers.unit_test_timeout_ms", 99),
    ("constraints.required_fields.0", [""]),
    ("constraints.forbidden_terms.0", [""]),
    ("constraints.forbidden_terms", ["x"] * 65),
    ("constraints.tool_schema", {"maxLength": 2**40}),
    ("steering.method", "dpo"),
    ("steering.strength", float("inf")),
    ("steering.preset", "irony"),
    ("steering.vector", {}),
    ("steering.vector.3.0", {"3": [float("nan")]}),
    ("steering.layer_scope.0", ["mlp"]),
    ("steering.layer_scope.1", ["3", "layers.3.mlp.2"]),
    ("steering.layer_scope.0", ["blocks.3.hook_resid_pre"]),
    ("steering.layer_scope", ["1"] * 513),
    ("constraints.regex_pattern", "("),
    ("constraints.regex_pattern", "(" * 5000),
    ("constraints.regex_pattern", "a{99999999999}"),
    ("constraints.json_schema", {"maxLength": 2**40}),
    ("constraints.json_schema", {"$schema": 5}),
    ("constraints.stop_sequences.0", [""]),
    ("constraints.stop_sequences", ["x"] * 65),
]


def nested(path: str, value: object) -> dict[str, object]:
    group, field = path.split(".")[:2]
    fitting = {"method": "ads"} if field.startswith("ads_") else {}
    return {group: {**fitting, field: value}}


def fields_of(group: dict[str, object]) -> list[str]:
    return [f"{name}.{field}" for name, part in group.items() if isinstance(part, dict) for field in part]


def test_defaults():
    """A policy with everything at its documented default is the empty policy."""
    assert RuntimePolicy.model_validate(DEFAULTS) == RuntimePolicy()
    assert RuntimePolicy().model_dump() == DEFAULTS


@pytest.mark.parametrize(("plain", "path"), INEFFECTIVE)
def test_what_would_have_no_effect(plain, path):
    """A field that would take no effect is refused, and the refusal names it by its group and name."""
    with pytest.raises(ValidationError) as refused:
        RuntimePolicy.model_validate(plain)
    (error,) = refused.value.errors()
    named = ".".join(map(str, error["loc"]))
    group, field = path.split(".")
    assert path in {named, named.rsplit(".", 1)[0]} or (named in {"", group} and field in error["msg"])


@pytest.mark.parametrize(
    "plain",
    [
        {"optimization": {"retry_on_failure": 0}},
        {"verifiers": {"max_retries": 0}},
        {"optimization": {"retry_on_failure": 2}, "constraints": {"forbidden_terms": ["x"]}},
        {"optimization": {"retry_on_failure": 2}, "steering": {"preset": "truthfulness"}},
        {"optimization": {"retry_on_failure": 2, "confidence_triggered_regeneration": True}},
        {
            "sampling": {"method": "greedy"},
            "constraints": {"json_mode": True},
            "optimization": {"retry_on_failure": 2, "fallback_methods": ["top-p"]},
        },
        {"verifiers": {"max_retries": 2}, "steering": {"preset": "json_compliance"}},
        {"verifiers": {"rerank": False}, "sampling": {"method": "ensemble-sampling"}},
        {"verifiers": {"rerank": False}, "optimization": {"best_of_n": 2}},
        {"objective": {"maximize": False}, "verifiers": {"enabled": ["factuality"]}},
        {"constraints": {"required_fields": ["a"], "json_schema": CLOSED}},
        {
            "constraints": {
                "required_fields": ["b"],
                "json_schema": {**CLOSED, "patternProperties": {"^b": {}}},
            }
        },
    ],
)
def test_what_can_matter(plain):
    """Where something can be rejected or chosen, what to do then is admitted; so is doing less than the
    default."""
    assert RuntimePolicy.model_validate(plain)


def test_penalties_that_do_nothing():
    """A penalty at its neutral value is none, with beams too."""
    neutral = {"presence_penalty": 0, "frequency_penalty": 0, "repetition_penalty": 1}
    assert RuntimePolicy.model_validate({"sampling": {"method": "beam-search", **neutral}})


EFFECTIVE_BY_A_FALLBACK = [
    {"ads_subset_size": 4, "ads_beta": 0.4},
    {"beam_width": 8},
    {"draft_model": "small", "speculative_steps": 6},
    {"ensemble_models": ["a"]},
    {"method": "greedy", "min_p": 0.1},
    {"method": "greedy", "typical_p": 0.9},
    {"method": "beam-search", "diversity_strength": 0.5, "num_candidates": 3},
    {"method": "greedy", "num_candidates": 3},
    {"method": "greedy", "adaptive_temperature": True, "adaptive_temperature_schedule": [0.5]},
]
FALLBACKS = ["ads", "beam-search", "ssd", "ensemble-sampling", "min-p", "typical"]


@pytest.mark.parametrize("sampling", EFFECTIVE_BY_A_FALLBACK)
def test_what_takes_effect_in_a_fallback(sampling):
    """What the sampling method does not read is admitted where a method that may follow it does."""
    with pytest.raises(ValidationError, match="has no effect"):
        RuntimePolicy.model_validate({"sampling": sampling})
    policy = {"sampling": sampling, "optimization": {"fallback_methods": FALLBACKS}}
    assert RuntimePolicy.model_validate(policy).methods[1:] == tuple(FALLBACKS)


@pytest.mark.parametrize("method", ["warp", "steering-perceptrons"])
def test_an_unknown_method_needs_a_fallback(method):
    """It is refused by name, with a pointer where it is one of steering; a known fallback admits it."""
    with pytest.raises(ValidationError, match=f"sampling.method.*'{method}'") as refused:
        RuntimePolicy.model_validate({"sampling": {"method": method}})
    assert ("steering.method" in str(refused.value)) == (method != "warp")
    policy = RuntimePolicy.model_validate(
        {"sampling": {"method": method}, "optimization": {"fallback_methods": ["top-p"]}}
    )
    assert policy.kinds == (Method.TOP_P,)
    assert policy.judged


def test_faults_of_a_policy_with_an_unknown_method():
    """Fallbacks excuse the method, nothing else."""
    with pytest.raises(ValidationError, match="regex has no effect"):
        RuntimePolicy.model_validate(
            {
                "sampling": {"method": "warp"},
                "optimization": {"fallback_methods": ["top-p"]},
                "verifiers": {"enabled": ["regex"]},
            }
        )


@pytest.mark.parametrize(
    ("plain", "judged"),
    [
        ({}, False),
        ({"sampling": {"method": "ads"}, "optimization": {"retry_on_failure": 1}}, False),
        ({"constraints": {"stop_sequences": ["x"]}}, False),
        ({"steering": {"preset": "tone_control"}}, False),
        ({"constraints": {"json_mode": True}}, True),
        ({"constraints": {"required_fields": ["a"]}}, True),
        ({"constraints": {"json_schema": {}}}, True),
        ({"constraints": {"regex_pattern": ""}}, True),
        ({"constraints": {"grammar": "'a'"}}, True),
        ({"constraints": {"tool_schema": {}}}, True),
        ({"constraints": {"forbidden_terms": ["a"]}}, True),
        ({"verifiers": {"enabled": ["factuality"]}}, True),
        ({"optimization": {"best_of_n": 2}}, True),
        ({"sampling": {"num_candidates": 2}}, True),
        ({"sampling": {"method": "ensemble-sampling"}}, True),
        ({"sampling": {"method": "beam-search"}}, True),
        ({"optimization": {"fallback_methods": ["top-p"]}}, True),
        ({"optimization": {"confidence_triggered_regeneration": True}}, True),
        ({"optimization": {"self_revision_loops": 1}}, True),
    ],
)
def test_what_must_be_judged_before_it_is_told(plain, judged):
    """A policy that can reject, choose or change an answer is not streamed as it is decoded."""
    assert RuntimePolicy.model_validate(plain).judged is judged


@pytest.mark.parametrize(("path", "value"), UNSOUND)
def test_what_cannot_mean_anything(path, value):
    """A value outside its range, or that does not compile, is refused by its own path."""
    with pytest.raises(ValidationError) as refused:
        RuntimePolicy.model_validate(nested(path, value))
    assert [".".join(map(str, error["loc"])) for error in refused.value.errors()] == [path]


@given(st.sampled_from([*DEFAULTS, *fields_of(DEFAULTS)]), st.text("abcxyz_", min_size=1))
def test_unknown_keys(path, suffix):
    """A misspelt key is refused, wherever it stands."""
    name = f"{path.rpartition('.')[2]}{suffix}_"
    group = path.rpartition(".")[0]
    with pytest.raises(ValidationError) as refused:
        RuntimePolicy.model_validate({group: {name: None}} if group else {name: None})
    assert refused.value.errors()[0]["type"] == "extra_forbidden"
    assert refused.value.errors()[0]["loc"][-1] == name


def test_metadata_is_free():
    """`metadata` takes any JSON; it is the one place for keys of one's own."""
    metadata = {"team": "a", "nested": {"x": [1, None, 0.5]}}
    assert RuntimePolicy.model_validate({"metadata": metadata}).metadata == metadata


def test_labels_are_free():
    """Names and labels change nothing and may be anything."""
    given = {
        "name": "n",
        "task_profile": {"name": "custom runtime generation"},
        "objective": {"name": "speed"},
    }
    assert RuntimePolicy.model_validate(given).task_profile.name == "custom runtime generation"


def test_forbidden_terms_are_bounded_together():
    """Each term adds states to the automaton that bans it, so all of them together have a limit."""
    terms = ["x" * 200] * 20
    assert RuntimePolicy.model_validate({"constraints": {"forbidden_terms": terms}})
    with pytest.raises(ValidationError, match="4000 characters together"):
        RuntimePolicy.model_validate({"constraints": {"forbidden_terms": [*terms, "x"]}})


def test_a_verifier_named_twice_counts_once():
    """Verifiers keep the order in which they are first named; a list without end is refused."""
    named = {"enabled": ["factuality", "code_compile", "factuality", "code_compile"]}
    policy = RuntimePolicy.model_validate({"verifiers": named})
    assert policy.verifiers.enabled == ["factuality", "code_compile"]
    with pytest.raises(ValidationError, match="at most 32"):
        RuntimePolicy.model_validate({"verifiers": {"enabled": ["factuality"] * 33}})
