"""The steering group of a policy: what it comes to, what it brings, and what of it would do nothing."""

import pytest
from pydantic import ValidationError

from policies.policy import RuntimePolicy, SteeringControls
from policies.steering import PRESET_FLOORS, SteeringEntry

SCHEMA = {"type": "object"}

IDLE_STEERING = [
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


@pytest.mark.parametrize(("steering", "message"), IDLE_STEERING)
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
                "verifiers": {"enabled": ["factuality", "syntax"]},
            },
            {
                "constraints": {"json_schema": SCHEMA, "json_mode": True},
                "verifiers": {"enabled": ["factuality", "syntax", "json_schema"]},
            },
        ),
        ({"steering": {"preset": "truthfulness"}}, {"verifiers": {"enabled": ["factuality"]}}),
        ({"steering": {"preset": "safety_style"}}, {"verifiers": {"enabled": ["factuality"]}}),
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
