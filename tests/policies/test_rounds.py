"""Which candidates a round asks for, each with its own settings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.enforced import enforced
from policies.policy import RuntimePolicy
from policies.rounds import free, plan_round, single
from policies.sampling import Choose, EngineFacts, PlanError, Slot, plan, resolve

METHODS = [
    "greedy",
    "top-k",
    "top-p",
    "min-p",
    "typical",
    "ads",
    "guided-generation",
    "constrained-beam-search",
    "beam-search",
    "speculative-decoding",
    "ssd",
    "ensemble-sampling",
]


def policy(sampling=None, constraints=None, **optimization):
    return RuntimePolicy.model_validate(
        {"sampling": sampling or {}, "constraints": constraints or {}, "optimization": optimization}
    )


def planned(given, number=0, method=None):
    return plan_round(given, enforced(given), number, method or given.sampling.method)


def temperatures(given, number=0):
    return [slot.temperature for slot in planned(given, number).slots]


@given(st.floats(0.06, 2), st.floats(0, 1, exclude_min=True), st.integers(0, 16))
def test_retries_cool_down(temperature, top_p, retry):
    """Retry r lowers temperature by 0.08 r and top_p by 0.04 r, each on top of the last, to .05 and .2."""
    expected_t, expected_p = temperature, top_p
    for step in range(1, retry + 1):
        expected_t = max(0.05, expected_t - 0.08 * step)
        expected_p = max(0.2, expected_p - 0.04 * step)
    found = planned(policy({"method": "ads", "temperature": temperature, "top_p": top_p}), retry)
    assert (found.asked.temperature, found.asked.top_p) == pytest.approx((expected_t, expected_p))
    assert found.slots[0] == Slot(found.asked.temperature, found.asked.top_p)


@pytest.mark.parametrize(
    ("best_of_n", "num_candidates", "count"), [(1, 1, 1), (3, 1, 3), (1, 4, 4), (5, 2, 5)]
)
def test_candidates_per_round(best_of_n, num_candidates, count):
    """A round has as many candidates as the larger of the two fields."""
    found = planned(policy({"num_candidates": num_candidates}, best_of_n=best_of_n))
    assert (len(found.slots), found.asked.n, found.asked.best_of) == (count, count, None)


@pytest.mark.parametrize(
    ("models", "best_of_n", "slots", "best_of"),
    [
        ([], 1, [None] * 5, 5),
        ([], 4, [None] * 4, 4),
        (["a"], 1, ["a"] * 5, 5),
        (["a", "b"], 1, ["a", "b"], 1),
        (["a", "b"], 2, ["a", "b", "a", "b"], 2),
    ],
)
def test_an_ensemble_goes_round_its_models(models, best_of_n, slots, best_of):
    """Each model has as many votes as the policy has candidates; one model alone has five."""
    found = planned(policy({"method": "ensemble-sampling", "ensemble_models": models}, best_of_n=best_of_n))
    assert [slot.model for slot in found.slots] == slots
    assert found.votes
    told = plan(found.asked, EngineFacts())
    assert (found.asked.n, found.asked.best_of) == (1, best_of)
    assert (told.candidates, told.choose) == (len(slots), Choose.VOTE)


@given(
    st.floats(0, 2),
    st.floats(0.01, 20),
    st.integers(2, 12),
    st.integers(0, 3),
    st.lists(st.floats(0, 2), max_size=4),
)
def test_diversity_warms(temperature, strength, count, number, schedule):
    """Candidate s > 0 is warmer by (s mod 3) * 0.1 * strength, within .05 and 2; the first one is not."""
    sampling = {
        "temperature": temperature,
        "num_candidates": count,
        "diversity_strength": strength,
        "adaptive_temperature": True,
        "adaptive_temperature_schedule": schedule,
    }
    base = temperatures(policy({**sampling, "diversity_strength": 0, "top_k": 5}), number)
    base += base * (count - len(base))  # all at temperature 0 are one
    found = temperatures(policy(sampling), number)
    assert found[0] == base[0]
    assert found[1:] == pytest.approx(
        [min(2.0, max(0.05, base[slot] + slot % 3 * 0.1 * strength)) for slot in range(1, count)]
    )
    assert all(0 <= each <= 2 for each in found)


@given(
    st.lists(st.floats(0.1, 2), min_size=1, max_size=9),
    st.lists(st.floats(0.1, 1), min_size=1, max_size=9),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 4),
)
def test_schedules(warmth, shares, num_candidates, best_of_n, number):
    """Candidate s of round r has the value at r * num_candidates + s, or the last one."""
    sampling = {
        "method": "top-p",
        "num_candidates": num_candidates,
        "adaptive_temperature": True,
        "adaptive_temperature_schedule": warmth,
        "adaptive_top_p": True,
        "adaptive_top_p_schedule": shares,
    }
    found = planned(policy(sampling, best_of_n=best_of_n), number)
    for slot, each in enumerate(found.slots):
        index = number * num_candidates + slot
        assert each == Slot(warmth[min(index, len(warmth) - 1)], shares[min(index, len(shares) - 1)])
    assert found.asked.top_p == found.slots[0].top_p


@pytest.mark.parametrize(
    ("sampling", "top_p"),
    [
        ({"method": "top-k"}, None),
        ({"method": "top-k", "adaptive_top_p": True}, None),
        ({"method": "top-k", "adaptive_top_p": True, "adaptive_top_p_schedule": [0.4]}, 0.4),
        ({"method": "top-p", "adaptive_top_p": True}, 0.9),
        ({"method": "min-p", "adaptive_top_p": True, "adaptive_top_p_schedule": [0.4]}, 0.4),
    ],
)
def test_a_schedule_applies_beside_any_method_that_draws(sampling, top_p):
    """A method that does not name top_p gets it where a schedule asks for it, and only there."""
    found = planned(policy(sampling))
    assert (found.asked.top_p, found.slots[0].top_p) == (top_p, top_p)


def test_a_schedule_skips_methods_that_draw_nothing():
    """A greedy or beam fallback is told, and reports, no temperature and no top_p of a schedule."""
    sampling = {
        "adaptive_top_p": True,
        "adaptive_top_p_schedule": [0.4],
        "adaptive_temperature": True,
        "adaptive_temperature_schedule": [1.5],
    }
    given = policy(sampling, fallback_methods=["greedy", "beam-search"])
    for method in given.methods[1:]:
        found = planned(given, 1, method)
        assert not found.drawn
        assert set(found.slots) == {Slot(0.0, None)}
        assert (found.asked.temperature, found.asked.top_p) == (0.0, None)


def test_one_cold_candidate_does_not_make_a_greedy_round():
    """Where a schedule has one candidate at temperature 0, the round as a whole is still drawn; alone, it is
    greedy."""
    sampling = {
        "num_candidates": 3,
        "adaptive_temperature": True,
        "adaptive_temperature_schedule": [0, 0.2, 1.2],
    }
    found = planned(policy(sampling))
    assert [slot.temperature for slot in found.slots] == [0, 0.2, 1.2]
    assert plan(found.asked, EngineFacts()).method_used == "top-k"
    assert plan(single(found).asked, EngineFacts()).method_used == "greedy"
    assert plan(found.first(1).asked, EngineFacts()).method_used == "greedy"


@pytest.mark.parametrize("method", ["top-k", "ads", "ensemble-sampling"])
def test_candidates_that_could_not_differ_are_one(method):
    """At temperature 0 a round has one candidate; its retries, which are warmer, have all."""
    given = policy({"method": method, "temperature": 0}, best_of_n=3)
    assert (len(planned(given).slots), planned(given).asked.n, planned(given).votes) == (1, 1, False)
    assert plan(planned(given).asked, EngineFacts()).method_used == "greedy"
    assert len(planned(given, 1).slots) == 3


def test_cold_models_still_vote():
    """Different models differ at temperature 0 too."""
    given = policy({"method": "ensemble-sampling", "ensemble_models": ["a", "b"], "temperature": 0})
    assert (len(planned(given).slots), planned(given).votes) == (2, True)


@pytest.mark.parametrize("method", ["constrained-beam-search", "beam-search"])
def test_beams_hold_all_candidates(method):
    """A beam is as wide as asked, and at least as wide as there are candidates."""
    assert planned(policy({"method": method})).asked.beam_width == 4
    assert planned(policy({"method": method, "beam_width": 2})).asked.beam_width == 2
    wide = planned(policy({"method": method, "num_candidates": 9}))
    assert (wide.asked.beam_width, wide.asked.n, len(wide.slots)) == (9, 9, 9)


@pytest.mark.parametrize(
    "constraints",
    [
        {"json_mode": True},
        {"json_schema": {}},
        {"required_fields": ["a"]},
        {"tool_schema": {}},
        {"regex_pattern": ""},
        {"grammar": "a"},
    ],
)
def test_guided_generation_sees_every_constraint(constraints):
    """Any constraint, an empty schema too, is one for guided generation; without one it is refused."""
    guided = policy({"method": "guided-generation"}, constraints)
    assert plan(planned(guided).asked, EngineFacts()).method_used == "guided-generation"
    with pytest.raises(PlanError, match="needs a constraint"):
        plan(planned(policy({"method": "guided-generation"})).asked, EngineFacts())


def test_guidance_that_is_no_grammar():
    """Where nothing can mask, guided-generation decodes without, says so, and the text is checked."""
    guided = policy({"method": "guided-generation"}, {"grammar": "'a' then 'b'"})
    found = plan_round(guided, enforced(guided, grammar_compiles=False), 0, "guided-generation")
    assert plan(found.asked, EngineFacts()).method_used == "top-k"
    assert plan(found.asked, EngineFacts()).top_p == 0.9
    plan(free(found).asked, EngineFacts())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("constraints", [{}, {"regex_pattern": "a"}], ids=["free", "constrained"])
def test_every_method_plans_from_a_policy(method, constraints):
    """Whatever the method, alone or as a fallback, its rounds, repairs and critiques can be planned with all
    fields set that some method reads."""
    if method == "guided-generation" and not constraints:
        return
    sampling = {
        "num_candidates": 3,
        "min_p": 0.1,
        "typical_p": 0.9,
        "ads_subset_size": 4,
        "ads_beta": 0.2,
        "beam_width": 8,
        "draft_model": "small",
        "ensemble_models": ["a", "b"],
        "diversity_strength": 0.5,
    }
    others = [each for each in METHODS if each != "guided-generation" or constraints]
    for own, fallbacks in ((method, others), ("top-p", [method, *others])):
        given = policy({**sampling, "method": own}, constraints, fallback_methods=fallbacks)
        for number in range(3):
            found = planned(given, number, method)
            for each in (found, found.first(2), found.first(1), single(found), free(found)):
                plan(each.asked, EngineFacts())
            told = plan(found.asked, EngineFacts())
            assert told.method_used == resolve(method) or method in {"ssd", "speculative-decoding"}
            assert not free(found).asked.constrained
            assert (len(single(found).slots), single(found).slots[0].model) == (1, None)
            assert plan(single(found).asked, EngineFacts()).candidates == 1
            assert plan(found.first(1).asked, EngineFacts()).candidates == 1


def test_an_ads_policy():
    """ADS keeps its own fields and both truncations."""
    sampling = {"method": "ads", "ads_subset_size": 16, "ads_beta": 0.35, "num_candidates": 3}
    told = plan(planned(policy(sampling)).asked, EngineFacts())
    assert (told.ads.subset_size, told.ads.beta, told.candidates) == (16, 0.35, 3)
    assert (told.top_k, told.top_p) == (50, 0.9)


def test_truncations_compose_with_the_policys_own_method_only():
    """min_p and typical_p go along with any method of the policy that draws, and with fallbacks they name."""
    given = policy({"min_p": 0.1, "typical_p": 0.8}, fallback_methods=["top-p", "min-p", "typical"])
    found = {
        method: (planned(given, 0, method).asked.min_p, planned(given, 0, method).asked.typical_p)
        for method in given.methods
    }
    assert found == {"top-k": (0.1, 0.8), "top-p": (None, None), "min-p": (0.1, None), "typical": (None, 0.8)}


def test_the_first_few_candidates():
    """A budget's share of a round has its first candidates with their own settings, and asks for no more."""
    full = planned(policy({"method": "top-p", "num_candidates": 4, "diversity_strength": 1}))
    few = full.first(2)
    assert (few.slots, few.asked.n) == (full.slots[:2], 2)
    assert few.asked.temperature == max(slot.temperature for slot in few.slots)
    assert full.first(9) == full
    votes = planned(policy({"method": "ensemble-sampling"}))
    assert votes.first(2).votes
    assert not votes.first(1).votes


def test_rounds_that_vary():
    """A round varies where a candidate has settings, or a model, of its own."""
    assert not planned(policy(best_of_n=3)).varies
    assert planned(policy({"diversity_strength": 1}, best_of_n=3)).varies
    assert planned(policy({"method": "ensemble-sampling", "ensemble_models": ["a"]})).varies


@pytest.mark.parametrize("method", METHODS)
def test_what_a_request_says_itself_applies_beside_any_method_that_draws(method):
    """Truncations of the request go along with every method that draws, a fallback too; those of the policy
    only with the methods that name them."""
    given = policy(
        {"top_k": 5, "top_p": 0.5, "min_p": 0.2}, {"regex_pattern": "a"}, fallback_methods=[method]
    )
    explicit = ("top_k", "top_p", "min_p")
    found = plan_round(given, enforced(given), 0, method, explicit)
    told = plan(found.asked, EngineFacts())
    assert (told.top_k, told.top_p, told.min_p) == ((5, 0.5, 0.2) if found.drawn else (None, None, None))
    assert {slot.top_p for slot in found.slots} == {0.5 if found.drawn else None}
