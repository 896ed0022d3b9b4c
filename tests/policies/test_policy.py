"""Which policies are admitted: what takes effect, and the neutral value of what does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from policies.policy import RuntimePolicy

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
    ("steering.enabled", True),
    ("steering.preset", "brevity"),
    ("steering.vector_id", "sv_1"),
    ("steering.vector", {"3": [0.1]}),
    ("steering.file_url", "http://elsewhere/v"),
    ("steering.layer_scope", ["3"]),
    ("steering.token_start", 0),
    ("steering.token_end", 5),
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
