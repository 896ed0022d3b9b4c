"""Rounds of candidates: which are asked for, which wins, when it stops."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import run as running
from policies.policy import RuntimePolicy
from policies.run import Answer, asked, run
from policies.sampling import EngineFacts, PlanError, plan

GOOD, BAD, WORSE = '{"ok": true}', "[]", "no json"


def answer(text: str, tokens: int = 3) -> Answer:
    return Answer(text, tokens, "top-k", "stop")


class Engine:
    """Answers round by round from a script, and remembers what it was asked."""

    def __init__(self, *rounds: list[str]) -> None:
        self.rounds, self.asked = list(rounds), []

    async def __call__(self, asked):
        self.asked.append(asked)
        return [answer(text) for text in self.rounds[len(self.asked) - 1]]


def policy(**groups: dict[str, object]) -> RuntimePolicy:
    return RuntimePolicy.model_validate(groups)


JSON = {"json_mode": True}


async def test_an_accepted_answer_ends_it():
    """Where a round has an accepted candidate, it wins and no further round runs."""
    engine = Engine([BAD, GOOD])
    outcome = await run(policy(constraints=JSON, optimization={"retry_on_failure": 3}), engine)
    assert (outcome.winner.answer.text, outcome.winner.slot, len(engine.asked)) == (GOOD, 1, 1)
    assert [trial.slot for trial in outcome.trials] == [0, 1]


async def test_a_rejected_round_is_retried():
    """A round without an accepted candidate is followed by another, whose winner may win over all."""
    engine = Engine([BAD, WORSE], [WORSE, GOOD], [GOOD, GOOD])
    outcome = await run(policy(constraints=JSON, optimization={"retry_on_failure": 2}), engine)
    assert (outcome.winner.round, outcome.winner.slot) == (1, 1)
    assert [(trial.round, trial.slot) for trial in outcome.trials] == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize("retries", [0, 1, 4])
async def test_rounds_are_bounded(retries):
    """At most 1 + retry_on_failure rounds run; then the best rejected answer is the outcome."""
    engine = Engine(*[[WORSE]] * 9)
    outcome = await run(policy(constraints=JSON, optimization={"retry_on_failure": retries}), engine)
    assert len(engine.asked) == len(outcome.trials) == retries + 1
    assert not outcome.winner.verdict.accepted


async def test_nothing_to_judge_is_one_round():
    """Without constraints and verifiers nothing can be rejected, so the default retry costs nothing."""
    engine = Engine(["anything"])
    assert (await run(RuntimePolicy(), engine)).winner.verdict.accepted
    assert len(engine.asked) == 1


async def test_score_decides_among_the_rejected():
    """Among rejected candidates the higher score wins, across rounds."""
    schema = {"type": "object", "required": ["n"]}
    engine = Engine([WORSE], ["{}"])
    given = policy(
        constraints={"json_mode": True, "json_schema": schema}, verifiers={"enabled": ["json_schema"]}
    )
    outcome = await run(given, engine)
    assert [trial.verdict.score for trial in outcome.trials] == pytest.approx([-1.4, -0.7])
    assert outcome.winner.answer.text == "{}"


async def test_speed_decides_among_equals(monkeypatch):
    """Equal verdicts: the faster round wins; latencies of rounds add up, those within a round do not."""
    ticks = iter([0.0, 0.5, 10.0, 10.2])
    monkeypatch.setattr(running.time, "perf_counter", lambda: next(ticks))
    outcome = await run(policy(constraints=JSON), Engine([WORSE, WORSE], [WORSE]))
    assert [trial.latency_ms for trial in outcome.trials] == [500, 500, 200]
    assert outcome.winner.round == 1
    assert outcome.latency_ms == 700


async def test_errors_pass_through():
    """What generation raises, the caller sees."""

    async def broken(_asked):
        raise ConnectionError("engine gone")

    with pytest.raises(ConnectionError, match="engine gone"):
        await run(RuntimePolicy(), broken)


@given(st.floats(0, 2), st.floats(0, 1, exclude_min=True), st.integers(0, 16))
def test_retries_cool_down(temperature, top_p, retry):
    """Retry r lowers temperature by 0.08 r and top_p by 0.04 r, each on top of the last, to .05 and .2."""
    expected_t, expected_p = temperature, top_p
    for step in range(1, retry + 1):
        expected_t = max(0.05, expected_t - 0.08 * step)
        expected_p = max(0.2, expected_p - 0.04 * step)
    sampling = {"method": "ads", "temperature": temperature, "top_p": top_p}
    cooled = asked(policy(sampling=sampling), retry)
    assert cooled.temperature == pytest.approx(expected_t)
    assert cooled.top_p == pytest.approx(expected_p)


@pytest.mark.parametrize(
    ("best_of_n", "num_candidates", "count"), [(1, 1, 1), (3, 1, 3), (1, 4, 4), (5, 2, 5)]
)
def test_candidates_per_round(best_of_n, num_candidates, count):
    """A round has as many candidates as the larger of the two fields; an ensemble votes among them."""
    groups = {"optimization": {"best_of_n": best_of_n}}
    several = asked(policy(sampling={"num_candidates": num_candidates}, **groups), 0)
    assert (several.n, several.best_of) == (count, None)
    voted = asked(
        policy(sampling={"method": "ensemble-sampling", "num_candidates": num_candidates}, **groups), 0
    )
    assert (voted.n, voted.best_of) == (1, count if count > 1 else None)


@pytest.mark.parametrize("method", ["constrained-beam-search", "beam-search"])
def test_beams_hold_all_candidates(method):
    """A beam is as wide as asked, and at least as wide as there are candidates."""
    assert asked(policy(sampling={"method": method}), 0).beam_width == 4
    wide = asked(policy(sampling={"method": method, "num_candidates": 9}), 0)
    assert (wide.beam_width, wide.n) == (9, 9)


@pytest.mark.parametrize(
    "constraints",
    [{"json_mode": True}, {"json_schema": {}}, {"regex_pattern": ""}, {"grammar": "a"}],
)
def test_guided_generation_sees_every_constraint(constraints):
    """Any constraint, an empty schema too, is one for guided generation; without one it is refused."""
    guided = policy(sampling={"method": "guided-generation"}, constraints=constraints)
    assert plan(asked(guided, 0), EngineFacts()).method_used == "guided-generation"
    with pytest.raises(PlanError, match="needs a constraint"):
        plan(asked(policy(sampling={"method": "guided-generation"}), 0), EngineFacts())


@pytest.mark.parametrize("method", ["greedy", "top-k", "top-p", "min-p", "typical", "ads", "ssd"])
def test_every_method_plans_from_a_policy(method):
    """The defaults that a policy always carries are no strays for any method."""
    planned = plan(asked(policy(sampling={"method": method}), 0), EngineFacts())
    assert planned.method_used == {"ssd": "top-k"}.get(method, method)


def test_an_ads_policy():
    """ADS keeps its own fields and both truncations."""
    sampling = {"method": "ads", "ads_subset_size": 16, "ads_beta": 0.35, "num_candidates": 3}
    planned = plan(asked(policy(sampling=sampling), 0), EngineFacts())
    assert (planned.ads.subset_size, planned.ads.beta, planned.candidates) == (16, 0.35, 3)
    assert (planned.top_k, planned.top_p) == (50, 0.9)
