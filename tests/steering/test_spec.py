"""What travels with a request."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering.spec import (
    MAX_RANGES,
    MAX_SPANS,
    MAX_TERMS,
    CaptureSpec,
    Gate,
    GateKind,
    Operation,
    Phase,
    SpecError,
    SteeringSpec,
    Term,
    Tokens,
    checked_layers,
    default_layers,
)
from tests.steering.formulas import covers

numbers = st.floats(-1e6, 1e6)
bounds = st.none() | st.integers(-20, 40)
tokens = st.builds(Tokens, st.sampled_from(Phase), bounds, bounds)
gates = st.builds(Gate, st.sampled_from(GateKind), st.text(max_size=5), numbers, numbers, st.booleans())
limits = st.tuples(numbers | st.just(-math.inf), numbers | st.just(math.inf)).map(sorted)
terms = st.builds(
    lambda limit, **rest: Term(low=limit[0], high=limit[1], **rest),
    limits,
    vector=st.text(max_size=8),
    layers=st.lists(st.integers(0, 99), max_size=4).map(tuple),
    operation=st.sampled_from(Operation),
    strength=numbers,
    tokens=tokens,
    gate=st.none() | gates,
)
specs = st.builds(
    SteeringSpec,
    st.lists(terms, max_size=MAX_RANGES).map(tuple),
    st.text(max_size=5),
    st.none() | st.integers(1, 99),
)


@given(specs)
def test_a_spec_survives_its_text(spec):
    """What is encoded decodes to the same, fingerprint and salt included."""
    again = SteeringSpec.decode(spec.encode())
    assert again == spec
    assert again.fingerprint() == spec.fingerprint()
    assert again.cache_salt("caller", 7) == spec.cache_salt("caller", 7)


BASE = Term("a" * 64, (1, 2), Operation.CLAMP, 1.0, -1.0, 1.0, Tokens(), Gate(GateKind.RAMP, "b" * 64))


@pytest.mark.parametrize(
    "change",
    [
        {"vector": "c" * 64},
        {"layers": (1, 3)},
        {"layers": (1,)},
        {"operation": Operation.ADD},
        {"strength": 1.0000001},
        {"low": -math.inf},
        {"high": math.inf},
        {"tokens": Tokens(Phase.PROMPT)},
        {"tokens": Tokens(start=0)},
        {"tokens": Tokens(end=0)},
        {"tokens": Tokens(start=-1)},
        {"gate": None},
        *[
            {"gate": replace(BASE.gate, **part)}
            for part in (
                {"kind": GateKind.COSINE},
                {"vector": "c" * 64},
                {"threshold": 0.1},
                {"slope": 2.0},
                {"inverted": True},
            )
        ],
    ],
    ids=str,
)
def test_the_fingerprint_knows_every_field(change):
    """Whatever may change a state changes the fingerprint, and with it the salt of the prefix cache."""
    spec, other = SteeringSpec((BASE,)), SteeringSpec((replace(BASE, **change),))
    assert spec.fingerprint() != other.fingerprint()
    assert spec.cache_salt(None) != other.cache_salt(None)


def test_the_fingerprint_knows_the_order():
    """Two operations in the other order are another effect."""
    other = replace(BASE, operation=Operation.NORM_ADD)
    assert SteeringSpec((BASE, other)).fingerprint() != SteeringSpec((other, BASE)).fingerprint()


def test_the_fingerprint_forgets_the_trace():
    """Who asks does not matter, so that requests steered alike share their prefix."""
    assert SteeringSpec((BASE,), "one").fingerprint() == SteeringSpec((BASE,), "two").fingerprint()


def test_the_salt_knows_the_caller():
    """Two tenants that steer alike share nothing, and none shares with who names no salt."""
    spec = SteeringSpec((BASE,))
    assert len({spec.cache_salt(salt) for salt in (None, "one", "two")}) == 3
    assert all(len(spec.cache_salt(salt)) <= 128 for salt in (None, "x" * 500))


@pytest.mark.parametrize(
    ("range_", "matters"),
    [
        (Tokens(), False),
        (Tokens(start=3, end=9), False),
        (Tokens(Phase.PROMPT), True),
        (Tokens(Phase.GENERATED), True),
        (Tokens(start=-1), True),
        (Tokens(end=-2), True),
    ],
    ids=str,
)
def test_the_salt_knows_the_prompts_length_where_it_matters(range_, matters):
    """A turn whose prompt holds text generated before shares blocks only if both steer that text alike."""
    spec = SteeringSpec((replace(BASE, tokens=range_),))
    assert (spec.cache_salt(None, 10) != spec.cache_salt(None, 11)) is matters


@given(tokens, st.integers(1, 30))
def test_an_interval_holds_the_positions_that_the_fields_say(range_, prompt_tokens):
    """Phase, start and end, negative ones from the prompt's end, agree with a look at each position."""
    low, high = range_.interval(prompt_tokens)
    assert low <= high
    for position in range(60):
        assert (low <= position < high) is covers(range_, position, prompt_tokens)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[]",
        "null",
        "{}",
        '{"terms": 3}',
        '{"terms": [{}]}',
        '{"terms": [{"vector": "x"}]}',
        '{"terms": [{"vector": "x", "layers": 5}]}',
        '{"terms": [{"vector": "x", "layers": [1], "operation": "multiply"}]}',
        '{"terms": [{"vector": "x", "layers": [1], "strength": null}]}',
        '{"terms": [{"vector": "x", "layers": [1], "strength": NaN}]}',
        '{"terms": [{"vector": "x", "layers": [1], "strength": 1e999}]}',
        '{"terms": [{"vector": "x", "layers": [1], "low": 2, "high": 1}]}',
        '{"terms": [{"vector": "x", "layers": [1], "tokens": {"phase": "never"}}]}',
        '{"terms": [{"vector": "x", "layers": [1], "gate": {"kind": "cosine"}}]}',
        '{"terms": [{"vector": "x", "layers": [1], "gate": {"kind": "?", "vector": "x"}}]}',
        '{"terms": [{"vector": "x", "layers": [1], "gate": {"kind": "ramp", "vector": "x", "slope": "x"}}]}',
        '{"terms": [{"vector": "x", "layers": [1], "gate": {"kind": "ramp", "vector": "x", "slope": NaN}}]}',
        '{"terms": [{"vector": "x", "layers": [1], "tokens": {"start": "x"}}]}',
        '{"terms": [{"vector": "x", "layers": [1], "tokens": {"end": 1e999}}]}',
        '{"terms": [], "prompt_tokens": "x"}',
    ],
)
def test_what_is_no_spec_is_refused(text):
    """A text that `encode` does not write raises SpecError, never another error."""
    with pytest.raises(SpecError):
        SteeringSpec.decode(text)


def test_too_much_is_refused():
    """More terms or different token ranges than the limits say."""
    with pytest.raises(SpecError, match="at most 16 vectors"):
        SteeringSpec((BASE,) * (MAX_TERMS + 1))
    ranged = tuple(replace(BASE, tokens=Tokens(start=n)) for n in range(MAX_RANGES + 1))
    with pytest.raises(SpecError, match="at most 4 different token ranges"):
        SteeringSpec(ranged)
    SteeringSpec(ranged[:-1] * 4)


@pytest.mark.parametrize("strength", [math.nan, math.inf, -math.inf])
def test_a_strength_is_finite(strength):
    """Refused before it could turn a state into NaN."""
    with pytest.raises(SpecError) as error:
        SteeringSpec((replace(BASE, strength=strength),))
    assert error.value.field == "strength"


def test_vectors_are_named_once():
    """Those of terms and gates, each once and in order."""
    twice = replace(BASE, gate=Gate(GateKind.COSINE, "a" * 64))
    assert SteeringSpec((BASE, twice)).vectors == ("a" * 64, "b" * 64)


def test_a_capture_survives_its_text():
    """What is encoded decodes to the same."""
    spec = CaptureSpec("id", (0, 5), ((0, 3), (7, 9)), after=True)
    assert CaptureSpec.decode(spec.encode()) == spec


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "null", "{}", '{"id": "", "layers": 1, "spans": []}'])
def test_what_is_no_capture_is_refused(text):
    """A text that `encode` does not write raises SpecError, never another error."""
    with pytest.raises(SpecError):
        CaptureSpec.decode(text)


@pytest.mark.parametrize(
    "spans",
    [(), ((0, 1),) * (MAX_SPANS + 1), ((3, 3),), ((4, 3),), ((-1, 3),), ((5, 9), (0, 6)), ((0, 2), (0, 2))],
)
def test_spans_are_within_reason(spans):
    """At least one, not too many, none empty or negative, none over another."""
    with pytest.raises(SpecError) as error:
        CaptureSpec("id", (0,), spans)
    assert error.value.field == "spans"


def test_spans_may_touch():
    """[0, 2) and [2, 4) share no token."""
    CaptureSpec("id", (0,), ((2, 4), (0, 2)))


@pytest.mark.parametrize(
    ("count", "expected"),
    [(30, tuple(range(20, 28))), (12, (8, 9, 10, 11)), (32, tuple(range(21, 29))), (1, (0,)), (2, (1,))],
)
def test_default_layers(count, expected):
    """Up to eight from two thirds of the depth, and never none."""
    assert default_layers(count) == expected


@pytest.mark.parametrize(
    ("layers", "match"), [([0, 4], "layers 0 to 3, not 4"), ([-1], "not -1"), ([1, 1], "twice")]
)
def test_layers_are_checked(layers, match):
    """A layer that the model does not have, or that stands twice, is refused by name."""
    with pytest.raises(SpecError, match=match) as error:
        checked_layers(layers, 4, "layers")
    assert error.value.field == "layers"
    assert checked_layers([3, 0], 4) == (3, 0)
