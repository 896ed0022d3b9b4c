"""Axionic's own runner beside ours: policies, scripts of answers, and what both make of them."""

import json
import re
import types

import pytest
from hypothesis import strategies as st

from policies.policy import RuntimePolicy
from policies.run import Answer, Runner
from policies.sampling import EngineFacts, plan
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
    if constraints.get("json_mode"):
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
    if constraints.get("json_schema", {}).get("additionalProperties") is False:
        wanted = constraints.get("required_fields", [])  # ours refuses those that have no place
        constraints["required_fields"] = [name for name in wanted if name == "b"]
    verifiers = draw(verifiers_for(constraints))
    masks = any(constraints.get(name) for name in set(constraints) - {"forbidden_terms", "stop_sequences"})
    methods = [method for method in METHODS if masks or method != "guided-generation"]
    method = draw(st.sampled_from([*methods, "greedy"]))
    if method == "constrained-beam-search":
        constraints.pop("forbidden_terms", None)  # ours refuses what beams cannot hold to
    sampling = {"method": method, "top_p": draw(shares)}
    optimization = draw(
        optional(
            confidence_triggered_regeneration=st.just(True),
            branch_and_prune=st.just(False),
            self_revision_loops=st.just(0),
        )
    )
    rejects = masks or constraints.get("forbidden_terms") or verifiers["enabled"]
    again = rejects or "confidence_triggered_regeneration" in optimization
    undrawn = method in {"greedy", "constrained-beam-search"}
    optimization["retry_on_failure"] = draw(st.integers(0, 3 if again and not undrawn else 1))
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


def both(policy, *texts, logprob=0.0):
    """Both outcomes where round 0 has `texts` in their order."""
    method = policy.get("sampling", {}).get("method", "top-k")
    script = Script(texts, start=len(PROMPT) + len(method))
    return theirs(policy, script)[0], ours(policy, script, logprob)[0]
