"""Our runner against the one in Axionic's SDK: the same policies, on the same script of answers.

`mechanex.policy.PolicyModule._run_local_policy` is the reference of what a policy means. Generated policies
stay where both mean the same, which is nearly all of constraints, verifiers, rounds, retries, confidence,
schedules and diversity. Where they differ on purpose, they do not go; other tests show that they differ
exactly so:

- `repair_on_failure`, `self_revision_loops`, `branch_and_prune`, `fallback_methods`, both budgets,
  `objective.maximize`, `rerank`: the reference reads none of them; the contract (3.10) defines what they do.
- `retry_on_failure` absent: 1, as the contract's table says; the reference has 0.
- `sampling.top_p` absent: retries narrow its default too; the reference narrows only one that was given.
- Confidence also takes the likelihood of the tokens into account, which the reference does not know; where
  the mean log-probability is 0 both agree.
- A steering preset's constraints and verifiers apply (D4); the reference drops all but its steering.
- `tool_args`, `tool_schema`, `factuality`: the reference names them and checks nothing.
- A grammar that masks the decoding holds by itself; the reference reads every grammar as literals in order,
  or after `regex:` as a pattern. Guidance without literals never fails in the reference; it is refused here.
- `json_schema: {}` is a constraint, any object; to the reference it is none.
- An ensemble has several votes for a single candidate, and the most votes win before the higher score; the
  reference samples one model once.
- ADS is refused by the reference, and served.
- Candidates that could not differ, at temperature 0, are one; greedy with several is refused by name.
- Forbidden terms are found by case folding too ("STRASSE" has "straße").
- A field without effect is refused by name (D14): a verifier without its constraint, an unknown method, a
  schedule without its flag. The reference ignores it.
- Reasons of schemas and regexes are worded as the contract has them; the reference quotes the schema.
- Latency is that of a batch, the same for its candidates; the reference times each alone. Scripts are timed
  by the round.
- The reference counts words as tokens.
"""

import json
import re
import types

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from policies.policy import RuntimePolicy
from policies.run import Answer, Runner
from policies.sampling import EngineFacts, plan
from policies.trials import Score, best, grid
from policies.verdict import judge

mechanex = pytest.importorskip("mechanex.policy", reason="pip install mechanex")

CODE = "Here:\n```python\ndef f(n):\n    return n\n```"
TEXTS = [
    '{"a": 1, "b": "x"}',
    '{"a": "1"}',
    '{"b": null}',
    "{}",
    '  {"a": 2}\n',
    'Sure: {"a": 3, "c": [1]} done',
    '{"a": 1} {"a": 2}',
    "[1]",
    "7",
    "",
    "yes",
    "first one, then TWO",
    "two before one",
    "ab12",
    "line\nab",
    CODE,
    "```\ndef broken(:\n```",
    "x = 1",
    "def (",
    "BANANA split",
]
SCHEMAS = [
    {"type": "object", "required": ["a"]},
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    {"type": "object", "properties": {"b": {"enum": ["x", None]}}, "additionalProperties": False},
    {"anyOf": [{"required": ["b"]}, {"properties": {"a": {"minimum": 2}}}]},
    {"properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "number"}}},
]
PATTERNS = [r"\d", "^{", r"ab\d+$", "a.b", "[A-Z]{3}", "line.ab"]
GUIDANCE = ["'one' 'two'", 'say "yes"', "'{' then '}'", "'B' 'a' \"split\""]
NEEDS = {"json_schema": "json_schema", "regex": "regex_pattern"}
METHODS = [
    *("top-k", "top-p", "min-p", "typical", "guided-generation", "constrained-beam-search"),
    *("speculative-decoding", "ssd", "Top_P"),
]
PROMPT = "prompt"
ROUND_SECONDS = (0.4, 0.1, 0.2)


def optional(**fields):
    return st.fixed_dictionaries({}, optional=fields)


tenths = st.integers(1, 20).map(lambda value: value / 10)
shares = st.integers(1, 10).map(lambda value: value / 10)


@st.composite
def verifiers_for(draw, constraints):
    named = ["code_compile"]
    if any(constraints.get(name) for name in ("json_mode", "required_fields", "json_schema")):
        named.append("syntax")
    named += [name for name, needs in NEEDS.items() if needs in constraints]
    enabled = draw(st.lists(st.sampled_from(named), unique=True))
    language = draw(st.sampled_from(["python", "Python", "rust"])) if "code_compile" in enabled else "python"
    return {"enabled": enabled, "repair_on_failure": False, "code_language": language}


@st.composite
def policies(draw):
    """Policies that mean the same to both, as JSON."""
    constraints = draw(
        optional(
            json_mode=st.booleans(),
            json_schema=st.sampled_from(SCHEMAS),
            required_fields=st.lists(st.sampled_from("abc"), max_size=2),
            regex_pattern=st.sampled_from(PATTERNS),
            grammar=st.sampled_from(GUIDANCE),
            forbidden_terms=st.lists(st.sampled_from(["banana", "ONE", "1"]), max_size=2),
            stop_sequences=st.just(["###"]),
        )
    )
    verifiers = draw(verifiers_for(constraints))
    masks = any(constraints.get(name) for name in set(constraints) - {"forbidden_terms", "stop_sequences"})
    methods = [method for method in METHODS if masks or method != "guided-generation"]
    method = draw(st.sampled_from([*methods, "greedy"]))
    sampling = {"method": method, "top_p": draw(shares)}
    optimization = draw(
        optional(
            confidence_triggered_regeneration=st.just(True),
            branch_and_prune=st.just(False),
            self_revision_loops=st.just(0),
        )
    )
    optimization["retry_on_failure"] = draw(st.integers(0, 3))
    if "confidence_triggered_regeneration" in optimization:
        optimization["confidence_threshold"] = draw(st.sampled_from([0.0, 0.3, 0.5, 0.6, 0.9, 1.0]))
    if method != "greedy":
        optimization["best_of_n"] = draw(st.integers(1, 3))
        sampling |= draw(optional(num_candidates=st.integers(1, 4), temperature=tenths))
    if method not in {"greedy", "constrained-beam-search"}:
        for name, values in (("adaptive_temperature", tenths), ("adaptive_top_p", shares)):
            if draw(st.booleans()):
                sampling[name] = True
                sampling[f"{name}_schedule"] = draw(st.lists(values, max_size=5))
        if max(optimization["best_of_n"], sampling.get("num_candidates", 1)) > 1:
            sampling["diversity_strength"] = draw(st.sampled_from([0, 0.3, 1.5, 20]))
    return draw(optional(id=st.just("p"), name=st.just("n"))) | {
        "sampling": sampling,
        "constraints": constraints,
        "verifiers": verifiers,
        "optimization": optimization,
    }


class Script:
    """Answers by prompt, round, slot and method, the same for both runners, timed by the round."""

    def __init__(self, texts, seconds=1, start=0):
        self.texts, self.pace, self.start = texts, seconds, start

    def text(self, prompt, method, number, slot):
        return self.texts[(len(prompt) + len(method) - self.start + 7 * number + slot) % len(self.texts)]

    def seconds(self, number):
        return self.pace * ROUND_SECONDS[number % len(ROUND_SECONDS)]


class Recorder:
    """A local model of the SDK's that remembers what it was to be sampled with."""

    def __init__(self):
        self.sampled = []

    def generate(self, prompt, **kwargs):
        self.sampled.append(kwargs)
        return ""


def local_module(script):
    """The SDK's policy module over the script, and the keyword arguments of each call to its local model."""
    model = Recorder()
    module = object.__new__(mechanex.PolicyModule)
    module._client = types.SimpleNamespace(local_model=model, _local_vectors={})
    sampled = module._local_generate_once

    def scripted(*, prompt, sampling, slot, round_idx, **given_):
        sampled(prompt=prompt, sampling=sampling, slot=slot, round_idx=round_idx, **given_)
        text = script.text(prompt, sampling.get("method", "top-k"), round_idx, slot)
        return text, round(1000 * script.seconds(round_idx))

    module._local_generate_once = scripted
    return module, model.sampled


def theirs(policy, script):
    """The SDK's result, and how each candidate was sampled."""
    module, sampled = local_module(script)
    return module._run_local_policy(PROMPT, json.loads(json.dumps(policy)), 16, include_trace=True), sampled


def ours(policy, script, logprob=0.0, prompt=PROMPT):
    """The outcome of the same policy, and the sampling settings of each candidate."""
    given_ = RuntimePolicy.model_validate(policy).expanded()
    now, sampled = [0.0], []

    async def generate(ask):
        plan(ask.round.asked, EngineFacts())
        sampled.extend(ask.round.slots)
        now[0] += script.seconds(ask.number)
        method = ask.round.method
        return [
            Answer(script.text(prompt, method, ask.number, slot), 1, method, "stop", mean_logprob=logprob)
            for slot in range(len(ask.round.slots))
        ]

    async def verify(texts):
        return [judge(text, given_, masked_grammar=False) for text in texts]

    runner = Runner(given_, generate, verify, 16, grammar_compiles=False, clock=lambda: now[0])
    return finished(runner.run()), sampled


def finished(coroutine):
    """The result of a coroutine that waits for nothing."""
    with pytest.raises(StopIteration) as stopped:
        coroutine.send(None)
    return stopped.value.value


def told(result):
    """What of the SDK's result is to be the same."""
    return {
        "winner": seen(result["trace"]["selection"]),
        "candidates": [seen(each) for each in result["trace"]["candidates"]],
        "retries": [
            (each["round"], each["trigger"], pytest.approx(each["winner_score"]))
            for each in result["trace"]["retry_events"]
        ],
    }


def seen(each):
    names = ("output", "accepted", "constraints_ok", "verifier_ok", "round", "slot", "latency_ms")
    return (*(each[name] for name in names), pytest.approx(each["score"]))


def counted(outcome):
    """What of our outcome is to be the same."""
    return {
        "winner": row(outcome.winner),
        "candidates": [row(trial) for trial in outcome.trials],
        "retries": [(each.round, each.trigger, each.winner_score) for each in outcome.retries],
    }


def row(trial):
    verdict = trial.verdict
    found = (trial.answer.text, verdict.accepted, verdict.constraints_ok, verdict.verifier_ok)
    return (*found, trial.round, trial.slot, trial.latency_ms, verdict.score)


def checks(reason):
    """What failed, in order, without the words for it; a schema's words may have bars of their own."""
    return re.findall(r"(?:^|(?<= \| ))(?:accepted|constraint|\w+_verifier)(?=:|$)", reason)


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(policies(), st.lists(st.sampled_from(TEXTS), min_size=1, max_size=9))
def test_the_same_outcome(policy, texts):
    """Winner, candidates with their scores and verdicts, and retry events are those of the SDK's runner, and
    so are the checks that its reasons name."""
    script = Script(texts)
    (result, sampled), (outcome, slots) = theirs(policy, script), ours(policy, script)
    assert counted(outcome) == told(result)
    assert [checks(trial.verdict.reason) for trial in outcome.trials] == [
        checks(each["reason"]) for each in result["trace"]["candidates"]
    ]
    assert len(sampled) == len(slots)
    method = policy["sampling"]["method"].lower().replace("_", "-")
    if method not in {"greedy", "constrained-beam-search"}:  # ours tell what acts, which is no temperature
        assert [slot.temperature for slot in slots] == pytest.approx(
            [each["temperature"] for each in sampled]
        )
    if method in {"top-p", "guided-generation"}:  # to others the reference passes none, or it is not theirs
        asked = [each.get("top_p") for each in sampled]
        if policy["sampling"]["method"] == method:  # the reference knows a method by its one spelling
            assert [slot.top_p for slot in slots] == pytest.approx(asked)
    event(f"rounds: {outcome.rounds}")
    event(f"accepted: {outcome.winner.verdict.accepted}")
    event(f"winner of a later round: {outcome.winner.round > 0}")


@settings(max_examples=100, deadline=None)
@given(
    optional(
        **{
            "sampling.method": st.lists(st.sampled_from(["top-k", "top-p", "ssd"]), min_size=1, max_size=3),
            "sampling.temperature": st.lists(tenths, min_size=1, max_size=3),
            "sampling.top_p": st.lists(shares, min_size=1, max_size=2),
            "optimization.best_of_n": st.lists(st.integers(1, 3), min_size=1, max_size=2),
        }
    ),
    st.lists(st.sampled_from(TEXTS), min_size=1, max_size=9),
    st.integers(1, 30),
)
def test_the_same_search(space, texts, most):
    """Autotune tries the same points in the same order, scores each alike and prefers the same one."""
    base = {
        "constraints": {"json_mode": True, "regex_pattern": r"\d"},
        "verifiers": {"enabled": ["regex"], "repair_on_failure": False},
        "optimization": {"retry_on_failure": 1},
    }
    prompts, script = ["one", "other"], Script(texts, seconds=0)
    module, _ = local_module(script)
    module._use_local = lambda: True
    result = module.auto_tune(prompts, base_policy=base, search_space=space, max_trials=most)
    tried = grid(base, dict(reversed(space.items())), most).tried
    scores = [Score.of([ours(each.plain, script, prompt=prompt)[0] for prompt in prompts]) for each in tried]
    names = ("success_rate", "avg_score", "avg_latency_ms", "pass_count", "fail_count")
    assert [tuple(getattr(score, name) for name in names) for score in scores] == [
        (
            *(trial[name] for name in names[:1]),
            pytest.approx(trial["avg_score"]),
            *(trial[n] for n in names[2:]),
        )
        for trial in result["trials"]
    ]
    points = [
        (sampling.method, sampling.temperature, sampling.top_p, each.policy.optimization.best_of_n)
        for each in tried
        for sampling in (each.policy.sampling,)
    ]
    assert points == [
        (*(trial["policy"]["sampling"][name] for name in ("method", "temperature", "top_p")), count)
        for trial in result["trials"]
        for count in (trial["policy"]["optimization"]["best_of_n"],)
    ]
    found = best(scores)
    assert scores[found].rank[0] == result["best_trial"]["success_rate"]
    assert result["trials"].index(result["best_trial"]) == found


def both(policy, *texts, logprob=0.0):
    """Both outcomes where round 0 has `texts` in their order."""
    method = policy.get("sampling", {}).get("method", "top-k")
    script = Script(texts, start=len(PROMPT) + len(method))
    return theirs(policy, script)[0], ours(policy, script, logprob)[0]


UNREPAIRED = {"repair_on_failure": False}
JSON = {"json_mode": True}


def test_repairs_are_ours_alone():
    """Theirs goes straight to the next round; ours asks for the rejected winner again first."""
    policy = {"constraints": JSON, "optimization": {"retry_on_failure": 0}}
    result, outcome = both(policy, "no")
    assert len(result["trace"]["candidates"]) == 1
    assert [trial.kind for trial in outcome.trials] == ["candidate", "repair"]


def test_retries_by_default():
    """None in theirs, one in ours, as the contract's table has it."""
    result, outcome = both({"constraints": JSON, "verifiers": UNREPAIRED}, "no")
    assert (len(result["trace"]["candidates"]), len(outcome.trials)) == (1, 2)
    assert (result["trace"]["retry_events"], len(outcome.retries)) == ([], 1)


def test_confidence_reads_likelihoods():
    """An accepted answer of score 1 satisfies theirs; ours asks again where its tokens were unlikely."""
    policy = {
        "verifiers": UNREPAIRED,
        "optimization": {"confidence_triggered_regeneration": True, "retry_on_failure": 0},
    }
    result, outcome = both(policy, "yes", logprob=-3.0)
    assert result["trace"]["retry_events"] == []
    assert [each.trigger for each in outcome.retries] == ["confidence"]


def test_presets_bring_constraints():
    """json_compliance rejects text in ours; theirs keeps its steering alone."""
    policy = {"steering": {"preset": "json_compliance"}, "verifiers": UNREPAIRED}
    result, outcome = both(policy, "no")
    assert result["accepted"] is True
    assert not outcome.winner.verdict.accepted
    assert outcome.winner.verdict.reason == "constraint: invalid json | syntax_verifier: invalid json"


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ({"verifiers": {"enabled": ["tool_args"]}}, "tool_args_verifier"),
        ({"constraints": {"tool_schema": {}}}, "constraint: the tool call"),
        ({"constraints": {"json_schema": {}}}, "constraint: invalid json"),
        ({"constraints": {"forbidden_terms": ["straße"]}}, "constraint: forbidden term"),
    ],
)
def test_what_theirs_does_not_check(policy, reason):
    """Accepted there, rejected here with a reason."""
    verifiers = {**policy.get("verifiers", {}), **UNREPAIRED}
    result, outcome = both({**policy, "verifiers": verifiers}, "STRASSE")
    assert result["accepted"] is True
    assert outcome.winner.verdict.reason.startswith(reason)


def test_a_grammar_that_masks():
    """Theirs wants both alternatives of `"yes" | "no"` in order; ours leaves that to the mask."""
    policy = {"constraints": {"grammar": 'root ::= "yes" | "no"'}, "verifiers": UNREPAIRED}
    result, _ = both(policy, "yes")
    assert result["trace"]["selection"]["reason"] == "constraint: grammar mismatch"
    given_ = RuntimePolicy.model_validate(policy)

    async def generate(ask):
        assert ask.constraint.grammar == policy["constraints"]["grammar"]
        return [Answer("yes", 1, "top-k", "stop")]

    async def verify(texts):
        return [judge(text, given_) for text in texts]

    assert finished(Runner(given_, generate, verify, 16).run()).winner.verdict.accepted


def test_an_objective_to_be_minimised():
    """Among answers rejected alike theirs takes the highest score whatever the policy says."""
    policy = {
        "constraints": {"json_mode": True, "regex_pattern": "x"},
        "objective": {"maximize": False},
        "verifiers": {"enabled": ["regex", "syntax"], **UNREPAIRED},
        "sampling": {"num_candidates": 2},
        "optimization": {"retry_on_failure": 0},
    }
    result, outcome = both(policy, "no", '{"b": 1}')
    assert result["output"] == '{"b": 1}'
    assert outcome.winner.answer.text == "no"
    result, outcome = both({**policy, "objective": {}}, "no", '{"b": 1}')
    assert result["output"] == outcome.winner.answer.text == '{"b": 1}'


def test_rerank():
    """Without it ours takes the first accepted; theirs agrees, as what text alone decides scores accepted
    answers alike (`test_run` has others)."""
    policy = {
        "constraints": {"forbidden_terms": ["z"]},
        "verifiers": {"enabled": ["code_compile"], "rerank": False, **UNREPAIRED},
        "sampling": {"num_candidates": 3},
    }
    result, outcome = both(policy, "def (", "a = 1", "b = 2")
    assert result["output"] == outcome.winner.answer.text == "a = 1"


def test_an_ensemble():
    """Theirs samples once; ours votes among five, and the most votes win."""
    policy = {"sampling": {"method": "ensemble-sampling"}, "verifiers": UNREPAIRED}
    result, outcome = both(policy, "a", "b", "B.", "c", "d")
    assert (len(result["trace"]["candidates"]), len(outcome.trials)) == (1, 5)
    assert (result["output"], outcome.winner.answer.text) == ("a", "b")


def test_ads_is_served():
    """Theirs refuses it in local mode."""
    policy = {"sampling": {"method": "ads"}}
    with pytest.raises(mechanex.MechanexError, match="ADS is not supported"):
        both(policy, "a")
    assert ours(policy, Script(["a"]))[0].winner.answer.text == "a"


def test_cold_candidates_are_one():
    """At temperature 0 theirs samples the same text three times; ours once, and three in a warmer retry."""
    policy = {
        "sampling": {"temperature": 0, "num_candidates": 3},
        "constraints": JSON,
        "verifiers": UNREPAIRED,
        "optimization": {"retry_on_failure": 1},
    }
    result, outcome = both(policy, "no")
    assert len(result["trace"]["candidates"]) == 6
    assert [trial.round for trial in outcome.trials] == [0, 1, 1, 1]


def test_a_default_top_p_narrows():
    """Where a policy gives no top_p, retries narrow the default in ours alone."""
    policy = {
        "sampling": {"method": "top-p"},
        "constraints": JSON,
        "verifiers": UNREPAIRED,
        "optimization": {"retry_on_failure": 1},
    }
    (_, sampled), (_, slots) = theirs(policy, Script(["no"])), ours(policy, Script(["no"]))
    assert [each["top_p"] for each in sampled] == [0.9, 0.9]
    assert [slot.top_p for slot in slots] == pytest.approx([0.9, 0.86])


@pytest.mark.parametrize(
    "policy",
    [
        {"verifiers": {"enabled": ["regex"]}},
        {"verifiers": {"enabled": ["json_schema"]}},
        {"verifiers": {"enabled": ["syntax"]}},
        {"verifiers": {"code_unit_tests": ["assert True"]}},
        {"sampling": {"method": "warp"}},
        {"sampling": {"adaptive_temperature_schedule": [0.5]}},
        {"sampling": {"diversity_strength": 1}},
        {"sampling": {"method": "greedy", "num_candidates": 2}},
        {"sampling": {"ads_beta": 0.2}},
        {"optimization": {"confidence_threshold": 0.9}},
        {"constraints": {"json_mode": True, "grammar": "be brief"}},
    ],
)
def test_what_would_do_nothing_is_refused(policy):
    """The reference runs such a policy and ignores the field; ours names it."""
    assert theirs(policy, Script(['{"a": 1}']))[0]["accepted"] is True
    with pytest.raises(ValidationError):
        RuntimePolicy.model_validate(policy)


def test_tokens_are_the_engines():
    """Words there, tokens here."""
    result, outcome = both({"verifiers": UNREPAIRED}, "three small words")
    assert (result["tokens"], outcome.winner.answer.tokens) == (3, 1)
