"""Axionic's fields: what they accept, and how they become the fields that planning takes."""

import math
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from policies.sampling import Asked, EngineFacts, PlanError, own_fields, plan
from policies.steering import SteeringEntry
from processors.args import BETA, MIN_P, SUBSET_SIZE, TYPICAL_MASS
from server.errors import InvalidBody, InvalidRequest
from server.wire import AxionicFields, GenerateRequest, NativeSampling, SamplingRequest, SteeringFields

MODELS = {
    "chat": (AxionicFields, {}),
    "generate": (GenerateRequest, {"prompt": "p"}),
    "params": (NativeSampling, {}),
}
NUMBERS = [
    # field, just inside, just outside
    ("temperature", [0, 2], [-0.001, 2.001]),
    ("top_p", [1e-9, 1], [0, 1.001]),
    ("top_k", [-1, 0, 2**31 - 1], [-2, 2**31, 1.5]),
    ("min_p", [MIN_P.low, MIN_P.high], [-0.001, 1.001]),
    ("typical_p", [1e-9, TYPICAL_MASS.high], [TYPICAL_MASS.low, 1.001]),
    ("ads_subset_size", [SUBSET_SIZE.low, SUBSET_SIZE.high], [0, 33, 2.5]),
    ("ads_beta", [BETA.low, BETA.high], [-0.001, 0.901]),
    ("beam_width", [1, 16], [0, 17]),
    ("seed", [-(2**63), 2**63 - 1], [-(2**63) - 1, 2**63]),
    ("repetition_penalty", [1e-9, 100], [0, 100.001]),
    ("presence_penalty", [-2, 2], [-2.001, 2.001]),
    ("frequency_penalty", [-2, 2], [-2.001, 2.001]),
]


def refused(model, **sent: object) -> list[str]:
    """The paths that `model` refuses in `sent`."""
    with pytest.raises(ValidationError) as failure:
        model.model_validate(sent)
    return [".".join(map(str, error["loc"])) for error in failure.value.errors()]


@pytest.mark.parametrize(
    ("name", "field", "inside", "outside"),
    [(name, *row) for name, (model, _) in MODELS.items() for row in NUMBERS if row[0] in model.model_fields],
)
def test_ranges(name, field, inside, outside):
    """The documented range of each field holds on every route that has it, ends included; NaN and infinity
    are outside, and so is what is no number."""
    model, needed = MODELS[name]
    for value in (*inside, None):
        assert getattr(model.model_validate({**needed, field: value}), field) == value
    for value in (*outside, math.nan, math.inf, "x", []):
        assert refused(model, **needed, **{field: value}) == [field], value


@pytest.mark.parametrize("method", ["top-k", "TOP_K", "ssd", "beam-search"])
def test_methods(method):
    """A method goes by any of its names, on every route."""
    assert AxionicFields(sampling_method=method).sampling_method == method
    assert GenerateRequest(prompt="p", sampling_method=method).sampling_method == method
    assert SamplingRequest(prompt="p", method=method).method == method


def test_an_unknown_method_is_refused_by_its_field():
    """Each route names the field that it calls the method by, and the known methods."""
    assert refused(AxionicFields, sampling_method="best") == ["sampling_method"]
    assert refused(GenerateRequest, prompt="p", sampling_method="best") == ["sampling_method"]
    assert refused(SamplingRequest, prompt="p", method="best") == ["method"]
    with pytest.raises(ValidationError, match="known methods: greedy, top-k"):
        SamplingRequest(prompt="p", method="best")


@pytest.mark.parametrize(
    ("model", "sent", "path"),
    [
        (GenerateRequest, {}, "prompt"),
        (GenerateRequest, {"prompt": ""}, "prompt"),
        (GenerateRequest, {"prompt": "p", "max_tokens": 0}, "max_tokens"),
        (GenerateRequest, {"prompt": "p", "topk": 5}, "topk"),
        (GenerateRequest, {"prompt": "p", "stop": [""]}, "stop.0"),
        (GenerateRequest, {"prompt": "p", "stop": ["x"] * 65}, "stop"),
        (SamplingRequest, {"prompt": "p", "params": {"topk": 5}}, "params.topk"),
        (SamplingRequest, {"prompt": "p", "params": {"top_p": 0}}, "params.top_p"),
        (SamplingRequest, {"prompt": "p", "best_of_n": 129}, "best_of_n"),
        (SamplingRequest, {"prompt": "p", "ensemble_models": []}, "ensemble_models"),
        (SamplingRequest, {"prompt": "p", "json_schema": "text"}, "json_schema"),
        (AxionicFields, {"best_of": 0}, "best_of"),
        (AxionicFields, {"service_tier": "priority"}, "service_tier"),
        (AxionicFields, {"metadata": {"a": 1}}, "metadata.a"),
    ],
)
def test_refused_by_name(model, sent, path):
    """An unknown field, or a value that cannot mean anything, is refused by its path."""
    assert refused(model, **sent) == [path]


def test_what_axionics_client_sends():
    """The client's plain call: its fixed fields, explicit nulls, no temperature, which is then 0.7."""
    sent = {
        "prompt": "p",
        "sampling_method": "top-k",
        "max_tokens": 128,
        "top_k": 50,
        "top_p": 0.9,
        "steering_vector_id": None,
        "steering_strength": 0.0,
    }
    request = GenerateRequest.model_validate(sent)
    assert request.steering_entries() == {}
    planned = plan(own_fields(request.asked(request.sampling_method)), EngineFacts())
    assert (planned.method_used, planned.temperature, planned.top_k, planned.top_p) == ("top-k", 0.7, 50, 1.0)


def test_defaults():
    """The documented defaults of Axionic's own routes."""
    assert GenerateRequest(prompt="p").max_tokens == 50
    assert GenerateRequest(prompt="p").sampling_method == "top-k"
    assert SamplingRequest(prompt="p").max_new_tokens == 128
    assert NativeSampling().asked("top-k").temperature == 0.7
    assert NativeSampling(temperature=0).asked("top-k").temperature == 0


native = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0, 2),
        "top_p": st.floats(0.01, 1),
        "top_k": st.integers(-1, 99),
        "min_p": st.floats(0, 1),
        "typical_p": st.floats(0.01, 1),
        "ads_subset_size": st.integers(1, 32),
        "ads_beta": st.floats(0, 0.9),
        "beam_width": st.integers(1, 16),
    },
)


@given(native, st.sampled_from(["top-k", "ads", "typical", "beam-search"]))
def test_every_sampling_field_reaches_planning(sent, method):
    """What was sent stands in Asked under the same name, and nothing else does."""
    asked = NativeSampling.model_validate(sent).asked(method, best_of=3)
    expected = Asked(**{"temperature": 0.7, **sent}, method=method, best_of=3)
    assert asked == expected
    assert set(sent) <= {field.name for field in fields(Asked)}


@given(native, st.sampled_from(["top-k", "ads", "typical", "beam-search", "greedy", "min-p", "top-p", "ssd"]))
def test_a_valid_request_plans_or_names_a_field_of_its_own(sent, method):
    """Past the wire, only PlanError is left, and it names a field that the client knows."""
    try:
        plan(own_fields(NativeSampling.model_validate(sent).asked(method)), EngineFacts())
    except PlanError as error:
        assert error.field in sent


STEERED = {"chat": (AxionicFields, {}), "generate": (GenerateRequest, {"prompt": "p"})} | {
    "sampling": (SamplingRequest, {"prompt": "p"})
}
FLAT = {"11": [0.5, -1.0]}


def entry(**fields: object) -> SteeringEntry:
    return SteeringEntry.model_validate(fields)


@pytest.mark.parametrize(("model", "needed"), STEERED.values(), ids=STEERED)
@pytest.mark.parametrize(
    ("sent", "entries"),
    [
        ({}, {}),
        ({"steering_strength": 0}, {}),
        ({"steering_strength": 0.0, "steering_vector_id": None}, {}),
        ({"steering_vector_id": "v"}, {"steering_vector_id": {"vector_id": "v"}}),
        (
            {"steering_vector_id": "v", "steering_strength": 0},
            {"steering_vector_id": {"vector_id": "v", "strength": 0}},
        ),
        (
            {"steering_vector": "v", "steering_strength": -2},
            {"steering_vector": {"vector_id": "v", "strength": -2}},
        ),
        ({"steering_vector": FLAT}, {"steering_vector": {"vector": FLAT}}),
        ({"steering_preset": "Brevity"}, {"steering_preset": {"preset": "Brevity"}}),
        (
            {
                "steering_vector_id": ["v", "w"],
                "steering_vector": [FLAT, "x"],
                "steering_preset": ["brevity"],
                "steering_strength": [1, 2, 3, 4, 5],
            },
            {
                "steering_vector_id.0": {"vector_id": "v", "strength": 1},
                "steering_vector_id.1": {"vector_id": "w", "strength": 2},
                "steering_vector.0": {"vector": FLAT, "strength": 3},
                "steering_vector.1": {"vector_id": "x", "strength": 4},
                "steering_preset.0": {"preset": "brevity", "strength": 5},
            },
        ),
        (
            {"steering_vector_id": ["v", "w"], "steering_strength": 0.5},
            {
                "steering_vector_id.0": {"vector_id": "v", "strength": 0.5},
                "steering_vector_id.1": {"vector_id": "w", "strength": 0.5},
            },
        ),
        (
            {"steering_vector_id": ["v", "w"], "steering_strength": [0.5]},
            {
                "steering_vector_id.0": {"vector_id": "v", "strength": 0.5},
                "steering_vector_id.1": {"vector_id": "w", "strength": 0.5},
            },
        ),
        (
            {"steering": {"vector_id": "v", "layers": [3]}},
            {"steering": {"vector_id": "v", "layers": [3]}},
        ),
        (
            {
                "steering_vector_id": "v",
                "steering_strength": 2,
                "steering": [{"preset": "brevity"}, {"vector": FLAT}],
            },
            {
                "steering_vector_id": {"vector_id": "v", "strength": 2},
                "steering.0": {"preset": "brevity"},
                "steering.1": {"vector": FLAT},
            },
        ),
    ],
)
def test_what_a_request_steers_by(model, needed, sent, entries):
    """On every route: one vector or several, by id, inline or preset, with one strength or one for each;
    absent it is 1, and without a vector 0 has no effect. Each is known by where it stands."""
    request = model.model_validate({**needed, **sent})
    made = request.steering_entries()
    assert list(made.items()) == [(path, entry(**fields)) for path, fields in entries.items()]


@pytest.mark.parametrize(
    ("sent", "message", "param"),
    [
        ({"steering_strength": 0.5}, "nothing to steer by", "steering_strength"),
        ({"steering_strength": [0, 0.5]}, "one for each of the 0 vectors", "steering_strength"),
        (
            {"steering_vector_id": ["v", "w"], "steering_strength": [1, 2, 3]},
            "one for each of the 2 vectors",
            "steering_strength",
        ),
        ({"steering": {"vector_id": "v"}, "steering_strength": 2}, "nothing", "steering_strength"),
        ({"steering_preset": "irony"}, "unknown preset 'irony'; known: brevity", "steering_preset"),
        ({"steering_preset": ["brevity", ""]}, "unknown preset ''", "steering_preset.1"),
        ({"steering_preset": "brevity", "steering_strength": -1}, "at least 0.35", "steering_strength"),
        (
            {"steering_vector_id": "v", "steering_preset": "brevity", "steering_strength": [-1, -1]},
            "at least 0.35",
            "steering_strength.1",
        ),
    ],
)
def test_steering_fields_that_do_not_fit_each_other(sent, message, param):
    """A strength without a vector, another number of strengths, an unknown preset: refused by field."""
    with pytest.raises(InvalidRequest, match=message) as failure:
        SteeringFields.model_validate(sent).steering_entries()
    assert failure.value.param == param


@pytest.mark.parametrize(("model", "needed"), STEERED.values(), ids=STEERED)
@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ({"steering_strength": math.nan}, "steering_strength"),
        ({"steering_strength": math.inf}, "steering_strength"),
        ({"steering_strength": 1001}, "steering_strength"),
        ({"steering_strength": [1, math.nan]}, "steering_strength"),
        ({"steering_strength": []}, "steering_strength"),
        ({"steering_vector_id": 5}, "steering_vector_id"),
        ({"steering_vector_id": []}, "steering_vector_id"),
        ({"steering_vector_id": ["v"] * 17}, "steering_vector_id"),
        ({"steering_vector": {}}, "steering_vector"),
        ({"steering_vector": {"11": [math.nan]}}, "steering_vector"),
        ({"steering_vector": {"11": 5}}, "steering_vector"),
        ({"steering_preset": {}}, "steering_preset"),
        ({"steering": {"vector_id": "v", "colour": "red"}}, "steering"),
        ({"steering": {"vector_id": "v", "preset": "brevity"}}, "steering"),
        ({"steering": [{"vector_id": "v", "operation": "clamp"}]}, "steering"),
        ({"steering": []}, "steering"),
    ],
)
def test_steering_values_are_refused_by_their_field(model, needed, sent, param):
    """NaN, empty lists, unknown keys and wrong types are refused, and the error begins at the field."""
    with pytest.raises(ValidationError) as failure:
        model.model_validate({**needed, **sent})
    assert (InvalidBody.of(failure.value.errors()).param or "").split(".")[0] == param


def test_steering_passes_from_request_to_request():
    """What was given, and only that, goes on to the request that is decoded; it means the same there."""
    request = GenerateRequest(prompt="p", steering_vector_id=["v"], steering_strength=[0.5], max_tokens=3)
    passed = request.steering_fields()
    assert passed == {"steering_vector_id": ["v"], "steering_strength": [0.5]}
    assert AxionicFields(**passed).steering_entries() == request.steering_entries()
    assert GenerateRequest(prompt="p").steering_fields() == {}
    listed = SamplingRequest(prompt="p", steering=[entry(vector_id="v", layers=[1])])
    assert AxionicFields(**listed.steering_fields()).steering_entries() == listed.steering_entries()
