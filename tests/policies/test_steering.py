"""What a request may say about one vector, and the term it comes to."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from policies.steering import (
    PRESET_FLOORS,
    GateEntry,
    Material,
    SteeringEntry,
    known_preset,
    known_training,
    require_tokens,
    term,
)
from steering.spec import Gate, GateKind, Operation, Phase, SpecError, Tokens

PLAIN = Material("d", (3, 5))
PROBED = Material("p", (3, 5), probes=True)
SPARSE = Material("a", (3,), probes=True, latents=True)


def entry(**fields: object) -> SteeringEntry:
    return SteeringEntry.model_validate({"vector_id": "v", **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "exactly one"),
        ({"vector_id": "v", "preset": "brevity"}, "exactly one"),
        ({"vector_id": "v", "vector": {"3": [1]}}, "exactly one"),
        ({"preset": "sarcasm"}, "unknown preset 'sarcasm'; known: brevity"),
        ({"vector_id": "v", "low": 0}, "low has no effect on operation add"),
        ({"vector_id": "v", "operation": "add", "value": 0}, "value has no effect on operation add"),
        ({"vector_id": "v", "operation": "clamp", "value": 0, "low": 0}, "value has no effect"),
        ({"vector_id": "v", "operation": "replace", "high": 0, "value": 0}, "high has no effect"),
        ({"vector_id": "v", "operation": "project-out", "low": 0}, "low has no effect"),
        ({"vector_id": "v", "operation": "clamp"}, "clamp needs low or high"),
        ({"vector_id": "v", "operation": "replace"}, "replace needs value"),
        ({"vector_id": "v", "operation": "clamp", "low": 2, "high": 1}, "low must not exceed high"),
        ({"vector_id": "v", "gate": {"kind": "probe", "threshold": 0.5}}, "threshold has no effect"),
        ({"vector_id": "v", "token_end": 0}, "no token"),
    ],
)
def test_what_cannot_mean_anything(fields, message):
    """An entry is refused when it names no vector or several, or holds a field that would do nothing."""
    with pytest.raises(ValidationError, match=message):
        SteeringEntry.model_validate(fields)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("strength", math.nan),
        ("strength", math.inf),
        ("strength", 1000.5),
        ("strength", "much"),
        ("operation", "rotate"),
        ("layers", []),
        ("layers", [-1]),
        ("layers", list(range(513))),
        ("tokens", "some"),
        ("gate", {"kind": "ramp"}),
        ("gate", {"threshold": 1.5}),
        ("vector", {"3": [math.nan]}),
        ("vector", {}),
        ("vector", {"3": "x"}),
        ("colour", "red"),
    ],
)
def test_values_out_of_range(field, value):
    """NaN, infinity, unknown names and unknown fields are refused at the field that holds them."""
    source = {} if field == "vector" else {"vector_id": "v"}
    with pytest.raises(ValidationError) as refused:
        SteeringEntry.model_validate({**source, field: value})
    assert {error["loc"][0] for error in refused.value.errors()} == {field}


@given(
    st.sampled_from(["all", "prompt", "generated"]),
    st.none() | st.integers(-6, 6),
    st.none() | st.integers(-6, 6),
)
def test_a_range_is_refused_where_no_prompt_would_do(phase, start, end):
    """A token range is refused exactly when it is empty for prompts of every length."""
    tokens = Tokens(Phase(phase), start, end)
    reached = False
    for length in range(1, 30):
        low, high = tokens.interval(length)
        reached = reached or low < high
    try:
        require_tokens(start, end, phase)
        refused = False
    except ValueError:
        refused = True
    assert refused == (not reached)


@pytest.mark.parametrize("preset", PRESET_FLOORS)
def test_a_preset_goes_by_its_name_in_any_case(preset):
    """Presets are found whatever the case of their letters."""
    assert known_preset(preset.upper()) == preset


def test_unknown_names_list_the_known_ones():
    """Who asks for a preset or a method that is not there is told what there is."""
    with pytest.raises(ValueError, match="known: brevity, truthfulness, json_compliance"):
        known_preset("irony")
    with pytest.raises(ValueError, match="known: caa, few-shot, asas, steering-perceptrons"):
        known_training("CAA")


@pytest.mark.parametrize(
    ("fields", "strength"),
    [
        ({"vector_id": "v"}, 1.0),
        ({"vector_id": "v", "strength": 0}, 0.0),
        ({"vector_id": "v", "strength": -2}, -2.0),
        ({"preset": "brevity"}, 1.0),
        ({"preset": "Brevity", "strength": 0.1}, 0.35),
        ({"preset": "refusal_strength", "strength": 0.65}, 0.65),
        ({"preset": "tone_control", "strength": 3}, 3.0),
        ({"preset": "json_compliance", "strength": 0.1}, 0.1),
    ],
)
def test_strength(fields, strength):
    """Absent it is 1; a preset is never weaker than its floor."""
    assert SteeringEntry.model_validate(fields).effective_strength == strength


@pytest.mark.parametrize("preset", [name for name, floor in PRESET_FLOORS.items() if floor])
def test_a_preset_never_turns_the_sign_of_a_strength(preset):
    """A negative strength, which the least one would make positive, is refused by its field."""
    for name in (preset, preset.upper()):
        with pytest.raises(ValidationError, match="is at least 0") as refused:
            SteeringEntry(preset=name, strength=-0.01)
        assert refused.value.errors()[0]["loc"] == ("strength",)
    assert SteeringEntry(preset=preset, strength=0).effective_strength == PRESET_FLOORS[preset]


@pytest.mark.parametrize(
    ("fields", "operation", "bounds"),
    [
        ({}, Operation.ADD, (-math.inf, math.inf)),
        ({"operation": "add"}, Operation.ADD, (-math.inf, math.inf)),
        ({"operation": "norm-preserving-add"}, Operation.NORM_ADD, (-math.inf, math.inf)),
        ({"operation": "project-out"}, Operation.CLAMP, (0, 0)),
        ({"operation": "replace", "value": 2.5}, Operation.CLAMP, (2.5, 2.5)),
        ({"operation": "clamp", "low": -1}, Operation.CLAMP, (-1, math.inf)),
        ({"operation": "clamp", "high": 0, "low": 0}, Operation.CLAMP, (0, 0)),
    ],
)
def test_operations(fields, operation, bounds):
    """Each operation becomes the worker's own, with its bounds."""
    made = term(entry(**fields), PLAIN)
    assert (made.operation, (made.low, made.high)) == (operation, bounds)


def test_a_term_takes_everything_over():
    """Vector, layers, strength and tokens stand in the term as they were asked for."""
    made = term(entry(strength=-0.5, layers=[5], tokens="generated", token_start=2, token_end=9), PLAIN)
    assert (made.vector, made.layers, made.strength, made.gate) == ("d", (5,), -0.5, None)
    assert made.tokens == Tokens(Phase.GENERATED, 2, 9)
    assert term(entry(), PLAIN).layers == (3, 5)


@pytest.mark.parametrize(
    ("fields", "own", "field"),
    [
        ({"layers": [4]}, PLAIN, "layers"),
        ({"layers": [3, 3]}, PLAIN, "layers"),
        ({"operation": "latents"}, PLAIN, "operation"),
        ({"gate": {"kind": "probe"}}, PLAIN, "gate"),
    ],
)
def test_parts_that_the_vector_does_not_have(fields, own, field):
    """Layers, latents and probes that are not there are refused under the field that asks for them."""
    with pytest.raises(SpecError) as refused:
        term(entry(**fields), own)
    assert refused.value.field == field


def test_a_gate_needs_its_vector_at_every_layer():
    """Another vector's gate is refused where that vector has no direction, before anything runs."""
    gated = entry(gate={"vector_id": "other", "threshold": 0.2, "inverted": True})
    tested = Material("t", (3,))
    with pytest.raises(SpecError, match="gate: its vector has no layer 5"):
        term(gated, PLAIN, tested)
    narrowed = gated.model_copy(update={"layers": [3]})
    assert term(narrowed, PLAIN, tested).gate == Gate(GateKind.COSINE, "t", 0.2, inverted=True)


def test_a_gate_tests_the_vector_itself_by_default():
    """Without `vector_id` the entry's own vector is tested."""
    assert term(entry(gate={}), PLAIN).gate == Gate(GateKind.COSINE, "d", 0.0)
    assert term(entry(gate={"kind": "probe"}), PROBED).gate == Gate(GateKind.PROBE, "p")


@pytest.mark.parametrize(("strength", "inverted"), [(1, True), (-1, False)])
def test_a_perceptron_acts_by_its_own_probe(strength, inverted):
    """Without an operation a probed vector adds where the trait is missing, removes where it is there."""
    made = term(entry(strength=strength), PROBED)
    assert made.operation is Operation.ADD
    assert made.gate == Gate(GateKind.PROBE, "p", inverted=inverted)
    assert term(entry(strength=strength, operation="add"), PROBED).gate is None


def test_latents_act_as_their_method_defines():
    """A sparse vector shifts its latents, less the nearer the trait is; an operation by name has no gate."""
    made = term(entry(), SPARSE)
    assert made.operation is Operation.UNITS
    assert made.gate is not None
    assert (made.gate.kind, made.gate.vector, made.gate.inverted) == (GateKind.RAMP, "a", False)
    assert term(entry(operation="latents"), SPARSE).gate is None
    assert term(entry(operation="add"), SPARSE).operation is Operation.ADD


@pytest.mark.parametrize(("strength", "inverted"), [(1, False), (-1, True)])
def test_latents_are_taken_away_where_the_trait_is(strength, inverted):
    """The ramp closes towards the trait; a negative strength takes it away, so there it opens towards it."""
    gate = term(entry(strength=strength), SPARSE).gate
    assert gate == Gate(GateKind.RAMP, "a", threshold=1.0, slope=0.5, inverted=inverted)


@pytest.mark.parametrize("operation", [("clamp", "low"), ("clamp", "high"), ("replace", "value")])
@pytest.mark.parametrize("bound", [2e9, -2e9, 1e300])
def test_bounds_are_numbers_that_a_state_can_have(operation, bound):
    """Beyond them float32 overflows, and one request's states turn into no numbers."""
    kind, name = operation
    entry(operation=kind, **{name: bound / abs(bound) * 1e9})
    with pytest.raises(ValidationError, match="1000000000"):
        entry(operation=kind, **{name: bound})


def test_a_preset_has_one_spelling():
    """However it was written, whoever compares it later sees its own name."""
    assert SteeringEntry(preset="JSON_Compliance").preset == "json_compliance"
    assert SteeringEntry(preset="Brevity", strength=0).effective_strength == 0.35
    with pytest.raises(ValidationError, match="unknown preset 'irony'; known: brevity"):
        SteeringEntry(preset="irony")


def test_entries_cannot_be_changed():
    """An entry that was checked stays as it was."""
    with pytest.raises(ValidationError, match="frozen"):
        entry().strength = 5
    with pytest.raises(ValidationError, match="frozen"):
        GateEntry().threshold = 1


FEATURE = Material("c" * 64, (4,), latents=True)


@pytest.mark.parametrize(
    ("fields", "operation", "strength", "bounds"),
    [
        ({"op": "clamp", "value": 2.5}, Operation.LATENTS, 1.0, (2.5, 2.5)),
        ({"value": 2.5}, Operation.LATENTS, 1.0, (2.5, 2.5)),
        ({"op": "ablate"}, Operation.LATENTS, 1.0, (0.0, 0.0)),
        ({"op": "add", "value": -3.0}, Operation.ADD, -3.0, (-math.inf, math.inf)),
    ],
)
def test_a_feature_is_added_to_clamped_or_ablated(fields, operation, strength, bounds):
    made = term(SteeringEntry(feature=7, tokens="generated", **fields), FEATURE)
    assert (made.operation, made.strength, (made.low, made.high)) == (operation, strength, bounds)
    assert (made.vector, made.layers, made.tokens) == (FEATURE.digest, (4,), Tokens(Phase.GENERATED))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"feature": 7}, "needs a value"),
        ({"feature": 7, "op": "add"}, "needs a value"),
        ({"feature": 7, "op": "ablate", "value": 1.0}, "no effect on op ablate"),
        ({"feature": 7, "value": 1.0, "strength": 2.0}, "strength has no effect on a feature"),
        ({"feature": 7, "value": 1.0, "operation": "add"}, "operation has no effect on a feature"),
        ({"feature": 7, "value": 1.0, "vector_id": "v"}, "exactly one of"),
        ({"feature": -1, "value": 1.0}, "greater than or equal to 0"),
        ({"vector_id": "v", "op": "add"}, "op has no effect without a feature"),
        ({"vector_id": "v", "sae": "s"}, "sae has no effect without a feature"),
    ],
)
def test_what_has_no_effect_on_a_feature_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        SteeringEntry(**fields)
