"""Which policies are admitted: what takes effect, and the neutral value of what does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from policies.policy import RuntimePolicy, SteeringControls
from policies.steering import PRESET_FLOORS, SteeringEntry

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

UNSERVED = [
    ("model.base_url", "http://elsewhere/v1"),
    ("objective.maximize", False),
    ("objective.latency_budget_ms", 1200),
    ("objective.token_budget", 100),
    ("sampling.diversity_strength", 0.7),
    ("sampling.voting", "score"),
    ("sampling.adaptive_temperature", True),
    ("sampling.adaptive_temperature_schedule", [0.5]),
    ("sampling.adaptive_top_p", True),
    ("sampling.adaptive_top_p_schedule", [0.5]),
    ("steering.file_url", "http://elsewhere/v"),
    ("constraints.required_fields", ["a"]),
    ("constraints.forbidden_terms", ["a"]),
    ("constraints.tool_schema", {}),
    ("verifiers.enabled.0", ["factuality"]),
    ("verifiers.enabled.0", ["tool_args"]),
    ("verifiers.enabled.1", ["syntax", "code_compile"]),
    ("verifiers.max_retries", 2),
    ("verifiers.rerank", False),
    ("verifiers.code_language", "rust"),
    ("verifiers.code_unit_tests", ["assert True"]),
    ("optimization.fallback_methods", ["top-k"]),
    ("optimization.confidence_triggered_regeneration", True),
    ("optimization.self_revision_loops", 1),
    ("optimization.branch_and_prune", True),
]
UNSOUND = [
    ("sampling.method", "best"),
    ("sampling.method", "steering-perceptrons"),
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
    return {group: {field: value}}


def fields_of(group: dict[str, object]) -> list[str]:
    return [f"{name}.{field}" for name, part in group.items() if isinstance(part, dict) for field in part]


def test_defaults():
    """A policy with everything at its documented default is the empty policy."""
    assert RuntimePolicy.model_validate(DEFAULTS) == RuntimePolicy()
    assert RuntimePolicy().model_dump() == DEFAULTS


@pytest.mark.parametrize(("path", "value"), UNSERVED)
def test_what_is_not_served(path, value):
    """A field that would take no effect is refused by its own path, not ignored."""
    with pytest.raises(ValidationError) as refused:
        RuntimePolicy.model_validate(nested(path, value))
    assert {".".join(map(str, error["loc"])) for error in refused.value.errors()} == {path}


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


INEFFECTIVE = [
    ({"enabled": True}, "nothing to steer by"),
    ({"enabled": True, "strength": 0.5}, "nothing to steer by"),
    ({"vector_id": "v"}, "vector_id has no effect while enabled is false"),
    ({"vector": {"3": [0.1]}}, "vector has no effect while enabled is false"),
    ({"enabled": True, "vector_id": "v", "vector": {"3": [0.1]}}, "vector_id has no effect beside vector"),
    ({"preset": "brevity", "vector_id": "v"}, "vector_id has no effect beside the preset brevity"),
    ({"preset": "json_compliance", "vector": {"3": [0.1]}}, "vector has no effect beside the preset"),
    ({"layer_scope": ["3"]}, "layer_scope has no effect while no vector acts"),
    ({"token_start": 0}, "token_start has no effect while no vector acts"),
    ({"token_end": 5}, "token_end has no effect while no vector acts"),
    ({"preset": "json_compliance", "layer_scope": ["3"]}, "layer_scope has no effect while no vector acts"),
    ({"preset": "brevity", "token_start": 7, "token_end": 7}, "leaves no token"),
    ({"preset": "brevity", "strength": -1}, "the strength of brevity is at least 0.35"),
    ({"preset": "domain_specific", "vector_id": "v", "strength": -1}, "the strength of domain_specific is"),
]


@pytest.mark.parametrize(("steering", "message"), INEFFECTIVE)
def test_steering_that_would_do_nothing(steering, message):
    """Whatever of the steering group would take no effect is refused, and the message names it."""
    with pytest.raises(ValidationError, match=message) as refused:
        RuntimePolicy.model_validate({"steering": steering})
    assert [error["loc"] for error in refused.value.errors()] == [("steering",)]


@pytest.mark.parametrize(
    ("steering", "entry"),
    [
        ({}, None),
        ({"strength": 0, "method": "asas"}, None),
        ({"preset": "json_compliance"}, None),
        ({"preset": "json_compliance", "enabled": True, "strength": 2}, None),
        ({"enabled": True, "vector_id": "v"}, {"vector_id": "v", "strength": 1}),
        ({"enabled": True, "vector_id": "v", "strength": 0}, {"vector_id": "v", "strength": 0}),
        ({"enabled": True, "vector": {"3": [0.5]}}, {"vector": {"3": [0.5]}, "strength": 1}),
        ({"preset": "Brevity"}, {"preset": "brevity", "strength": 1}),
        ({"preset": "brevity", "strength": 0}, {"preset": "brevity", "strength": 0.35}),
        ({"preset": "domain_specific"}, {"preset": "domain_specific", "strength": 1}),
        (
            {"preset": "domain_specific", "vector_id": "v", "strength": 0.1},
            {"vector_id": "v", "strength": 0.4},
        ),
        (
            {
                "enabled": True,
                "vector_id": "v",
                "layer_scope": ["11", "layers.3", "model.layers.12", "blocks.4.hook_resid_post"],
                "token_start": -1,
                "token_end": 9,
            },
            {
                "vector_id": "v",
                "strength": 1,
                "layers": [11, 3, 12, 4],
                "token_start": -1,
                "token_end": 9,
            },
        ),
    ],
)
def test_what_a_policy_steers_by(steering, entry):
    """The steering group comes to one entry, or to none where nothing is to be applied."""
    expected = None if entry is None else SteeringEntry.model_validate(entry)
    assert RuntimePolicy.model_validate({"steering": steering}).steering.entry == expected


@pytest.mark.parametrize("preset", PRESET_FLOORS)
def test_a_preset_needs_no_enabling(preset):
    """A preset counts as enabled, and each has its floor."""
    controls = SteeringControls(preset=preset, strength=0)
    floor = PRESET_FLOORS[preset]
    assert (controls.entry.strength if controls.entry else None) == floor


SCHEMA = {"type": "object"}


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ({}, {}),
        ({"steering": {"preset": "tone_control"}}, {}),
        (
            {"steering": {"preset": "json_compliance"}},
            {"constraints": {"json_mode": True}, "verifiers": {"enabled": ["syntax"]}},
        ),
        (
            {
                "steering": {"preset": "json_compliance"},
                "constraints": {"json_schema": SCHEMA},
                "verifiers": {"enabled": ["regex", "syntax"]},
            },
            {
                "constraints": {"json_schema": SCHEMA, "json_mode": True},
                "verifiers": {"enabled": ["regex", "syntax", "json_schema"]},
            },
        ),
        ({"steering": {"preset": "format_rigidity"}}, {}),
        (
            {"steering": {"preset": "format_rigidity"}, "constraints": {"regex_pattern": "a+"}},
            {"verifiers": {"enabled": ["regex"]}},
        ),
        (
            {"steering": {"preset": "brevity"}, "objective": {"name": "speed"}},
            {"objective": {"name": "concise response quality"}},
        ),
        ({"steering": {"preset": "brevity"}, "objective": {"name": "very Concise"}}, {}),
    ],
)
def test_what_a_preset_brings_beside_its_vector(given, changed):
    """Constraints and verifiers of a preset join those of the policy; nothing is repeated."""
    policy = RuntimePolicy.model_validate(given)
    assert policy.expanded() == RuntimePolicy.model_validate({**given, **changed})
    assert policy == RuntimePolicy.model_validate(given)
    assert policy.expanded().expanded() == policy.expanded()


def test_what_axionics_client_sends_for_steering():
    """The client's inline policy: a strength always, `enabled` with whatever there is to steer by."""
    unsteered = {"enabled": False, "strength": 0}
    assert RuntimePolicy.model_validate({"steering": unsteered}).steering.entry is None
    by_id = {"enabled": True, "strength": 0.8, "vector_id": "sv_1"}
    assert RuntimePolicy.model_validate({"steering": by_id}).steering.entry.strength == 0.8
    by_preset = {"enabled": True, "strength": 0, "preset": "brevity"}
    assert RuntimePolicy.model_validate({"steering": by_preset}).steering.entry.strength == 0.35
