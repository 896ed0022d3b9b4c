"""What a request's sampling fields become: a plan, or a refusal that names the field."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from policies.sampling import (
    ALIASES,
    ENSEMBLE_SAMPLES,
    MAX_BEAM_WIDTH,
    MAX_CANDIDATES,
    Ads,
    Asked,
    Choose,
    EngineFacts,
    Method,
    PlanError,
    UnavailableError,
    known_method,
    own_fields,
    plan,
    resolve,
)

ENGINE = EngineFacts()
SPECULATIVE = EngineFacts(speculative=True, processors=False)
TEN = sorted(set(Method) - {Method.MULTINOMIAL})


def maybe(strategy):
    return st.none() | strategy


# Every field within what the wire models admit, every method with and without its conditions.
requests = st.builds(
    Asked,
    method=maybe(st.sampled_from([*TEN, *ALIASES, "Top_K"])),
    temperature=maybe(st.sampled_from([0.0, 1e-6]) | st.floats(0, 2)),
    top_p=maybe(st.floats(0, 1, exclude_min=True)),
    top_k=maybe(st.integers(-1, 2**31 - 1)),
    min_p=maybe(st.floats(0, 1)),
    typical_p=maybe(st.floats(0, 1, exclude_min=True)),
    ads_subset_size=maybe(st.integers(1, 32)),
    ads_beta=maybe(st.floats(0, 0.9)),
    beam_width=maybe(st.integers(1, 16)),
    n=st.just(1) | st.integers(1, 128),
    best_of=maybe(st.integers(1, 128)),
    ensemble_models=st.just(()) | st.lists(st.sampled_from("abc"), max_size=16).map(tuple),
    draft_model=maybe(st.just("d")),
    constrained=st.booleans(),
)
engines = st.builds(
    EngineFacts,
    speculative=st.booleans(),
    processors=st.booleans(),
    temperature=st.sampled_from([0.0, 0.6, 1.0]),
)
FIELDS = set(Asked.__dataclass_fields__) - {"method"} | {"sampling_method"}


@given(requests, engines)
@example(Asked(method="ads", n=128, best_of=128), ENGINE)
@example(Asked(method="ensemble-sampling", ensemble_models=("a",) * 16, best_of=128), ENGINE)
def test_a_plan_or_a_named_field(asked, engine):
    """Any request the wire admits gives a plan within the engine's bounds, or a PlanError that names a field
    of the request."""
    try:
        planned = plan(asked, engine)
    except PlanError as error:
        assert error.field in FIELDS
        assert str(error)
        return
    assert 1 <= planned.candidates <= MAX_CANDIDATES
    assert 0 <= planned.beam_width <= MAX_BEAM_WIDTH
    assert not (planned.beam_width and planned.candidates > 1)
    assert planned.ads is None or planned.method_used is Method.ADS
    assert planned.choose is Choose.VOTE or not planned.models
    temperature = engine.temperature if planned.temperature is None else planned.temperature
    if temperature >= 1e-5 and not engine.processors:
        assert (planned.ads, planned.typical_p) == (None, 1)


@given(requests)
def test_nothing_given_is_lost(asked):
    """What is asked for beside a method reaches the plan; only methods that draw nothing drop it."""
    try:
        planned = plan(asked, ENGINE)
    except PlanError:
        return
    if planned.method_used in (Method.GREEDY, Method.BEAM):
        return
    for field in ("temperature", "top_p", "top_k", "min_p", "typical_p"):
        value = getattr(asked, field)
        assert value is None or getattr(planned, field) == value, field


@given(requests)
def test_without_a_method_the_models_defaults_stand(asked):
    """A request that names no method sets no sampling field that it does not carry."""
    unnamed = Asked(
        temperature=asked.temperature, top_p=asked.top_p, top_k=asked.top_k, min_p=asked.min_p, n=asked.n
    )
    planned = plan(unnamed, ENGINE)
    for field in ("temperature", "top_p", "top_k", "min_p"):
        assert getattr(planned, field) == getattr(unnamed, field), field
    assert (planned.typical_p, planned.ads, planned.beam_width, planned.candidates) == (1, None, 0, 1)


@pytest.mark.parametrize(
    ("fields", "method"),
    [
        ({}, Method.MULTINOMIAL),
        ({"temperature": 0.5}, Method.MULTINOMIAL),
        ({"top_p": 1.0, "top_k": 0, "min_p": 0.0, "typical_p": 1.0}, Method.MULTINOMIAL),
        ({"top_k": -1}, Method.MULTINOMIAL),
        ({"top_p": 0.9}, Method.TOP_P),
        ({"top_p": 0.9, "top_k": 20}, Method.TOP_K),
        ({"min_p": 0.1, "top_k": 20}, Method.MIN_P),
        ({"typical_p": 0.9, "min_p": 0.1}, Method.TYPICAL),
        ({"constrained": True, "top_k": 20}, Method.GUIDED),
        ({"temperature": 0.0, "top_k": 20}, Method.GREEDY),
        ({"temperature": 9e-6}, Method.GREEDY),
        ({"temperature": 1e-5}, Method.MULTINOMIAL),
    ],
)
def test_the_method_of_a_request_that_names_none(fields, method):
    """`method_used` is the method that the given fields amount to."""
    assert plan(Asked(**fields), ENGINE).method_used is method


@pytest.mark.parametrize(
    ("method", "set_to"),
    [
        ("top-k", {"top_k": 50, "top_p": 1.0}),
        ("top-p", {"top_p": 0.9, "top_k": 0}),
        ("min-p", {"min_p": 0.1, "top_k": 0, "top_p": 1.0}),
        ("typical", {"typical_p": 0.95, "top_k": 0, "top_p": 1.0}),
        ("ads", {"ads": Ads(subset_size=8, beta=0.3), "top_k": None, "top_p": None}),
        ("greedy", {"temperature": 0.0}),
        ("constrained-beam-search", {"beam_width": 4, "temperature": 0.0}),
        ("ensemble-sampling", {"candidates": ENSEMBLE_SAMPLES, "choose": Choose.VOTE}),
    ],
)
def test_a_named_method_brings_its_defaults(method, set_to):
    """The documented default of each method applies where its field is absent."""
    planned = plan(Asked(method=method), ENGINE)
    assert planned.method_used == method
    assert {field: getattr(planned, field) for field in set_to} == set_to


@given(st.floats(0.01, 2), st.integers(1, 100))
def test_greedy_is_temperature_zero(temperature, top_k):
    """Greedy ignores what its client always sends, and takes the argmax."""
    planned = plan(Asked(method="greedy", temperature=temperature, top_k=top_k), ENGINE)
    assert (planned.temperature, planned.method_used) == (0.0, Method.GREEDY)


@pytest.mark.parametrize("method", ["top-k", "top-p", "min-p", "typical", "ads", None])
def test_temperature_zero_is_greedy(method):
    """At temperature 0, given or the model's own, truncations have no effect and `method_used` says so."""
    at_zero = plan(Asked(method=method, temperature=0.0), ENGINE)
    by_model = plan(Asked(method=method), EngineFacts(temperature=0.0))
    for planned in (at_zero, by_model):
        assert (planned.method_used, planned.ads, planned.typical_p) == (Method.GREEDY, None, 1.0)


def test_greedy_siblings_are_left_to_the_engine():
    """n > 1 at temperature 0 goes to vLLM as it is, which refuses it; nothing is decoded twice."""
    assert plan(Asked(method="ads", temperature=0.0, n=4), ENGINE).candidates == 1


@pytest.mark.parametrize("name", [*TEN, *ALIASES, "TOP-K", "top_k", "Adaptive_Determinantal_Sampling"])
def test_names(name):
    """The ten names and the aliases are known in any case, with hyphens or underscores."""
    assert resolve(name) in TEN
    assert known_method(name) == name


@pytest.mark.parametrize("name", ["", "topk", "multinomial", "steering-perceptrons", "тор-k"])
def test_unknown_names(name):
    """Another name is refused, and the refusal lists the known ones."""
    with pytest.raises(PlanError, match=r"known methods: greedy, top-k, .*, ssd, beam-search") as refused:
        plan(Asked(method=name), ENGINE)
    assert refused.value.field == "sampling_method"


@pytest.mark.parametrize(
    ("field", "value", "owner"),
    [
        ("ads_subset_size", 8, "ads"),
        ("ads_beta", 0.0, "ads"),
        ("beam_width", 4, "constrained-beam-search"),
        ("ensemble_models", ("a",), "ensemble-sampling"),
        ("draft_model", "d", "speculative-decoding"),
    ],
)
def test_a_field_without_its_method(field, value, owner):
    """A field that would silently do nothing is refused by name, with the method that it needs."""
    for method in [None, *(name for name in TEN if name != owner)]:
        with pytest.raises(PlanError, match=f"'{owner}'") as refused:
            plan(Asked(method=method, constrained=True, **{field: value}), ENGINE)
        assert refused.value.field == field
    assert plan(Asked(method=owner, **{field: value}), ENGINE)


def test_guided_needs_a_constraint():
    """guided-generation without a constraint is refused, never decoded freely."""
    with pytest.raises(PlanError, match="needs a constraint"):
        plan(Asked(method="guided-generation"), ENGINE)
    assert plan(Asked(method="guided-generation", constrained=True), ENGINE).method_used is Method.GUIDED


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"n": 5, "beam_width": 4}, "n"),
        ({"n": 17}, "beam_width"),
        ({"min_p": 0.1}, "min_p"),
        ({"typical_p": 0.9}, "typical_p"),
        ({"best_of": 2}, "best_of"),
    ],
)
def test_beam_search_refuses(fields, field):
    """Beam search refuses more results than beams, too many beams, and what needs drawing."""
    with pytest.raises(PlanError) as refused:
        plan(Asked(method="beam-search", **fields), ENGINE)
    assert refused.value.field == field


def test_beam_search_takes_neutral_values():
    """A truncation that is off is not in beam search's way; n widens a beam that is not given."""
    planned = plan(Asked(method="beam-search", min_p=0.0, typical_p=1.0, n=6, best_of=6), ENGINE)
    assert (planned.beam_width, planned.candidates, planned.top_k) == (6, 1, None)


def test_speculation_on_an_ordinary_engine():
    """Without a draft model decoding is ordinary; `method_used` and a warning say so."""
    planned = plan(Asked(method="ssd", top_k=20, draft_model="d"), ENGINE)
    assert planned.method_used is Method.TOP_K
    assert "without a draft model" in planned.warning


def test_speculation_on_a_speculative_engine():
    """With one it speculates, and says that a request's own draft model and steps were not applied."""
    assert plan(Asked(method="ssd"), SPECULATIVE).warning is None
    planned = plan(Asked(method="ssd", draft_model="d"), SPECULATIVE)
    assert planned.method_used is Method.SPECULATIVE
    assert "draft_model was not applied" in planned.warning
    planned = plan(Asked(method="ssd", draft_model="d", speculative_steps=6), SPECULATIVE)
    assert "draft_model and speculative_steps were not applied" in planned.warning


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"method": "ads"}, "sampling_method"),
        ({"method": "typical"}, "sampling_method"),
        ({"method": "top-k", "typical_p": 0.9}, "typical_p"),
        ({"typical_p": 0.9}, "typical_p"),
        ({"method": "min-p"}, "sampling_method"),
        ({"min_p": 0.1}, "min_p"),
    ],
)
def test_what_a_speculative_engine_does_not_run(fields, field):
    """A method whose processor does not run is unavailable, by the field that asked for it; at temperature 0
    it would have no effect and so is not refused."""
    with pytest.raises(UnavailableError, match="speculative engine") as refused:
        plan(Asked(**fields), SPECULATIVE)
    assert refused.value.field == field
    assert plan(Asked(**fields, temperature=0.0), SPECULATIVE).method_used is Method.GREEDY
    assert plan(Asked(**fields), ENGINE)


def test_best_of():
    """best_of above n chooses among that many; equal to n it means nothing; below n it is refused."""
    chosen = plan(Asked(n=2, best_of=5), ENGINE)
    assert (chosen.candidates, chosen.choose) == (5, Choose.BEST)
    assert plan(Asked(n=2, best_of=2), ENGINE) == plan(Asked(n=2), ENGINE)
    with pytest.raises(PlanError) as refused:
        plan(Asked(n=3, best_of=2), ENGINE)
    assert refused.value.field == "best_of"


def test_siblings_and_best_of():
    """ADS runs its n as requests of their own, and best_of many where there is a choice."""
    assert plan(Asked(method="ads", n=3), ENGINE).candidates == 3
    chosen = plan(Asked(method="ads", n=3, best_of=7), ENGINE)
    assert (chosen.candidates, chosen.choose, chosen.ads) == (7, Choose.BEST, Ads(subset_size=8, beta=0.3))


@pytest.mark.parametrize(
    ("models", "best_of", "candidates"),
    [
        ((), None, ENSEMBLE_SAMPLES),
        ((), 3, 3),
        (("a",), None, ENSEMBLE_SAMPLES),
        (("a",), 7, 7),
        (("a", "b"), None, 2),
        (("a", "b", "c"), 4, 12),
    ],
)
def test_how_many_vote(models, best_of, candidates):
    """Each model has best_of voices, or one; a model alone has five."""
    planned = plan(Asked(method="ensemble-sampling", ensemble_models=models, best_of=best_of), ENGINE)
    assert (planned.candidates, planned.models, planned.choose) == (candidates, models, Choose.VOTE)


def test_a_vote_has_one_winner():
    """An ensemble answers once: n > 1 is refused."""
    with pytest.raises(PlanError, match="n must be 1") as refused:
        plan(Asked(method="ensemble-sampling", n=2), ENGINE)
    assert refused.value.field == "n"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"method": "ads", "n": MAX_CANDIDATES + 1}, "n"),
        ({"best_of": MAX_CANDIDATES + 1}, "best_of"),
        ({"method": "ensemble-sampling", "ensemble_models": ("a", "b"), "best_of": 65}, "best_of"),
    ],
)
def test_too_many_candidates(fields, field):
    """No request becomes more than 128 engine requests."""
    with pytest.raises(PlanError, match="at most 128") as refused:
        plan(Asked(**fields), ENGINE)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("method", "keeps"),
    [
        ("greedy", set()),
        ("top-k", {"top_k"}),
        (None, {"top_k"}),
        ("top-p", {"top_p"}),
        ("min-p", set()),
        ("typical", set()),
        ("beam-search", set()),
        ("ads", {"top_k", "top_p"}),
        ("guided-generation", {"top_k", "top_p"}),
        ("ssd", {"top_k", "top_p"}),
        ("ensemble-sampling", {"top_k", "top_p"}),
    ],
)
def test_own_fields(method, keeps):
    """Of the truncations that Axionic's client always sends, a method keeps those that it names."""
    asked = own_fields(Asked(method=method, top_k=50, top_p=0.9, min_p=0.1))
    assert {field for field in ("top_k", "top_p") if getattr(asked, field) is not None} == keeps
    assert asked.min_p == 0.1
