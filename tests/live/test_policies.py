"""Policies on the running server: every field that shapes an answer, on Axionic's routes and on OpenAI's."""

import json
import shutil

import pytest

from policies.presets import PRESETS

pytestmark = pytest.mark.engine

RUN, CHAT = "/policies/run", "/v1/chat/completions"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 200}},
    "required": ["name", "age"],
}
PERSON = "Extract the person as JSON: Bob is 5 years old."


@pytest.fixture(scope="module")
def run(ask):
    """Posts a policy and a prompt; the answer."""

    def posted(policy, prompt="Name three fruits.", **fields):
        return ask.ok(RUN, prompt=prompt, policy=policy, **{"max_new_tokens": 12, "seed": 3, **fields})

    return posted


def candidates(answer, kind="candidate"):
    return [each for each in answer["trace"]["candidates"] if each["kind"] == kind]


def test_a_seed_repeats_everything_but_the_time(run):
    """Candidates, verdicts and settings of every round are the same under one seed."""

    likelihoods = ("mean_logprob", "confidence")  # what comes from the prefix cache moves their last digits

    def timeless(answer):
        left_out = {"latency_ms", *likelihoods}
        return [
            {k: v for k, v in each.items() if k not in left_out} for each in answer["trace"]["candidates"]
        ]

    def likely(answer):
        return [each[name] for each in answer["trace"]["candidates"] for name in likelihoods]

    policy = {
        "sampling": {"num_candidates": 3, "diversity_strength": 0.5},
        "constraints": {"forbidden_terms": ["e"]},
        "optimization": {"retry_on_failure": 1},
    }
    first, second = run(policy), run(policy)
    assert timeless(first) == timeless(second)
    assert likely(first) == pytest.approx(likely(second), abs=1e-3)
    assert timeless(first) != timeless(run(policy, seed=4))


def test_each_candidate_has_its_own_settings(run):
    """Schedules and diversity reach the engine slot by slot, and the trace tells what each was drawn with."""
    policy = {
        "sampling": {
            "num_candidates": 3,
            "diversity_strength": 0.5,
            "adaptive_temperature": True,
            "adaptive_temperature_schedule": [0.0, 0.2, 1.2],
        }
    }
    found = candidates(run(policy))
    assert [each["temperature"] for each in found] == pytest.approx([0.0, 0.25, 1.3])
    greedy = candidates(run(policy, seed=9))[0]["output"]
    assert found[0]["output"] == greedy


@pytest.mark.parametrize(
    ("constraints", "masked", "holds"),
    [
        ({"json_mode": True, "json_schema": SCHEMA}, ["json_mode", "json_schema"], lambda v: v["age"] <= 200),
        ({"required_fields": ["city"]}, ["required_fields"], lambda v: "city" in v),
        ({"tool_schema": SCHEMA}, ["tool_schema"], lambda v: isinstance(v["arguments"]["age"], int)),
    ],
    ids=["schema", "fields", "tool"],
)
def test_json_constraints_hold_while_decoding(run, constraints, masked, holds):
    """The first round conforms wherever it was not cut off, and the trace says what masked it."""
    policy = {
        "sampling": {"temperature": 0.3},
        "constraints": constraints,
        "optimization": {"best_of_n": 4, "retry_on_failure": 0},
    }
    answer = run(policy, PERSON, max_new_tokens=96)
    whole = [each for each in candidates(answer) if each["finish_reason"] == "stop"]
    assert whole
    assert all(each["accepted"] for each in whole)
    assert holds(json.loads(answer["output"]))
    assert answer["trace"]["constraints"] == {"masked": masked, "checked": []}


@pytest.mark.parametrize("method", ["greedy", "top-p", "ads"])
def test_forbidden_terms_do_not_occur(run, method):
    """However the tokens split them, in any case; without the ban the greedy text has one."""
    terms = ["banana", "APPLE", "an", "Ge"]
    sampling = {"method": method, "num_candidates": 1 if method == "greedy" else 3}
    plain = run({"sampling": sampling}, max_new_tokens=24)
    policy = {"sampling": sampling, "constraints": {"forbidden_terms": terms}}
    banned = run({**policy, "optimization": {"retry_on_failure": 0}}, max_new_tokens=24)
    for each in candidates(banned):
        assert not any(term.lower() in each["output"].lower() for term in terms)
    if method == "greedy":
        assert any(term.lower() in plain["output"].lower() for term in terms)


def test_a_rejected_winner_is_repaired(run):
    """What is checked on the text alone can fail; then it is asked for again, told why, and traced."""
    policy = {
        "constraints": {"grammar": "'zebra' before 'quagga'"},
        "optimization": {"retry_on_failure": 0},
        "verifiers": {"max_retries": 1},
    }
    answer = run(policy)
    assert (len(candidates(answer)), len(candidates(answer, "repair"))) == (1, 1)
    assert answer["trace"]["constraints"]["checked"] == ["grammar"]
    assert not answer["accepted"]
    assert "grammar mismatch" in candidates(answer)[0]["reason"]
    assert answer["total_tokens"] == sum(each["tokens"] for each in answer["trace"]["candidates"])


def test_branches_are_pruned(run):
    """Of eight candidates one runs to its end; the others stop at a checkpoint and cannot win."""
    policy = {"optimization": {"best_of_n": 8, "branch_and_prune": True}, "sampling": {"temperature": 1.0}}
    answer = run(policy, "Write two sentences about rivers.", max_new_tokens=40)
    found = candidates(answer)
    assert len(found) == 8
    pruned = [each for each in found if "pruned_at" in each]
    assert len(pruned) >= 4
    assert all(each["tokens"] < 40 for each in pruned)
    assert answer["total_tokens"] < 8 * 40 * 0.75
    assert answer["output"] not in [each["output"] for each in pruned]


def test_low_confidence_is_regenerated(run):
    """A winner whose tokens were less likely than the threshold is not the last word."""
    policy = {"optimization": {"confidence_triggered_regeneration": True, "confidence_threshold": 0.99}}
    answer = run(policy)
    (event,) = answer["trace"]["retry_events"]
    assert (event["trigger"], 0 < event["confidence"] < 0.99) == ("confidence", True)
    assert all(0 < each["confidence"] <= 1 for each in candidates(answer))
    low = {**policy["optimization"], "confidence_threshold": 0.01}
    assert not run({"optimization": low})["trace"]["retry_events"]


def test_an_answer_is_criticised_and_revised(run):
    """Each loop asks for a critique and a revision, and the trace has both."""
    answer = run({"optimization": {"self_revision_loops": 1}})
    assert len(answer["trace"]["critiques"]) == 1
    assert len(candidates(answer, "revision")) == 1


def test_an_ensemble_votes(run):
    """The text that most candidates agree on wins, and each candidate knows its votes."""
    policy = {"sampling": {"method": "ensemble-sampling", "temperature": 0.2}}
    answer = run(policy, "What is 2+2? Answer with one number.", max_new_tokens=6)
    found = candidates(answer)
    assert len(found) == 5
    most = max(each["votes"] for each in found)
    assert next(each for each in found if each["output"] == answer["output"])["votes"] == most


def test_facts_are_judged_by_the_model(run):
    """`factuality` reports P(yes), which alone decides it."""
    answer = run({"verifiers": {"enabled": ["factuality"], "repair_on_failure": False}})
    for each in candidates(answer):
        likely = each["measured"]["factuality"]
        assert 0 < likely < 1
        assert each["accepted"] == (likely >= 0.5)


def test_unit_tests_decide(run):
    """Code is run against its tests, and a test that fails rejects it with what Python said."""
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is missing: apt-get install bubblewrap")
    asked = "Write a Python function add(a, b) that returns a + b. Only code."
    policy = {
        "sampling": {"method": "greedy"},
        "verifiers": {"enabled": ["unit_tests"], "code_unit_tests": ["assert add(2, 3) == 5"]},
        "optimization": {"retry_on_failure": 0},
    }
    answer = run(policy, asked, max_new_tokens=64)
    assert answer["accepted"], answer["trace"]["candidates"][0]["reason"]
    wrong = {**policy, "verifiers": {**policy["verifiers"], "code_unit_tests": ["assert add(2, 3) == 6"]}}
    rejected = run(wrong, asked, max_new_tokens=64)
    assert "AssertionError" in rejected["trace"]["candidates"][0]["reason"]


def test_budgets_end_a_run(run):
    """Tokens never pass their budget; what stopped the run is traced."""
    policy = {
        "objective": {"token_budget": 20},
        "constraints": {"grammar": "'zebra' 'quagga'"},
        "optimization": {"retry_on_failure": 5, "best_of_n": 2},
    }
    answer = run(policy)
    assert answer["total_tokens"] <= 20
    assert answer["trace"]["budgets"]["stopped_by"] == "token_budget"
    hurried = run({**policy, "objective": {"latency_budget_ms": 1}})
    assert hurried["trace"]["budgets"]["stopped_by"] == "latency_budget_ms"
    assert hurried["trace"]["budgets"]["overrun"]


def test_openai_answers_carry_the_policys_outcome(oai):
    """An OpenAI client gets the winner as an ordinary answer, and the outcome beside it."""
    policy = {"constraints": {"json_schema": SCHEMA}, "optimization": {"best_of_n": 2}}
    answer = oai.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": PERSON}],
        max_tokens=96,
        temperature=0.2,
        extra_body={"policy": policy, "include_trace": True},
    )
    json.loads(answer.choices[0].message.content)
    told = answer.model_extra["steersman"]["policy"]
    assert told["accepted"] is True
    assert {each["temperature"] for each in told["trace"]["candidates"]} == {0.2}
    assert answer.usage.completion_tokens == sum(each["tokens"] for each in told["trace"]["candidates"])


@pytest.mark.parametrize("judged", [True, False])
def test_openai_streams_under_a_policy(oai, judged):
    """Judged first where something can be rejected, else as it is decoded; the outcome ends the stream."""
    policy = {"constraints": {"json_schema": SCHEMA}} if judged else {"sampling": {"temperature": 0.1}}
    stream = oai.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": PERSON}],
        max_tokens=96 if judged else 8,
        stream=True,
        extra_body={"policy": policy},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert (len(chunks) <= 3) is judged
    if judged:
        json.loads(text)
    assert chunks[-1].model_extra["steersman"]["policy"]["accepted"] is True


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_policy_cannot_do_is_a_status_of_its_own(ask, stream):
    """Streaming or not, a refusal that is known at once is no 200; it names the policy's field."""
    policy = {"constraints": {"grammar": 'root ::= "a'}}
    refused = ask.post(CHAT, messages=[{"role": "user", "content": "Hi"}], policy=policy, stream=stream)
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["param"] == "policy.constraints.grammar"


def test_what_a_request_says_itself_wins(ask):
    """Explicit sampling fields over the policy's; two different constraints of a kind are refused by name."""
    policy = {"sampling": {"method": "top-p", "temperature": 0.9}}
    answer = ask.chat(policy=policy, temperature=0.0, include_trace=True)
    traced = answer["steersman"]["policy"]["trace"]["candidates"]
    assert [each["temperature"] for each in traced] == [0.0]
    clash = ask.post(
        CHAT,
        messages=[{"role": "user", "content": "Hi"}],
        policy={"constraints": {"regex_pattern": "a"}},
        regex_pattern="b",
    )
    assert clash.status_code == 400
    assert clash.json()["error"]["param"] == "regex_pattern"
    cold = ask.post(CHAT, messages=[{"role": "user", "content": "Hi"}], policy={}, n=2, temperature=0)
    assert (cold.status_code, cold.json()["error"]["param"]) == (400, "n")


@pytest.mark.parametrize("stream", [False, True])
def test_the_best_of_the_candidates_are_the_choices(oai, stream):
    """`n` asks for so many candidates at least and answers with the best, index 0 the winner."""
    answer = oai.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": PERSON}],
        max_tokens=96,
        n=2,
        stream=stream,
        extra_body={
            "policy": {
                "constraints": {"json_schema": SCHEMA},
                "optimization": {"best_of_n": 3, "retry_on_failure": 0},
            },
            "include_trace": True,
        },
    )
    if stream:
        chunks = [chunk for chunk in answer if chunk.choices]
        texts = {chunk.choices[0].index: chunk.choices[0].delta.content for chunk in chunks}
        told = chunks[-1].model_extra["steersman"]["policy"]
    else:
        texts = {choice.index: choice.message.content for choice in answer.choices}
        told = answer.model_extra["steersman"]["policy"]
        spent = sum(each["tokens"] for each in told["trace"]["candidates"])
        assert answer.usage.completion_tokens == spent
    assert (set(texts), told["candidates"], len(told["choices"])) == ({0, 1}, 3, 2)
    assert texts[0] == told["trace"]["selection"]["output"]


def test_a_stored_policy_runs_everywhere(ask):
    """By its id on its own route, on /policies/run, /sampling/generate, chat and completions."""
    constraints = {"regex_pattern": "[a-z]{3,9}"}
    policy = {"name": "cool", "sampling": {"method": "greedy"}, "constraints": constraints}
    identity = ask.ok("/policies/save", policy=policy)["policy_id"]
    own = ask.ok(f"/policies/{identity}/run", prompt="A fruit?", max_new_tokens=8)
    assert own["policy_id"] == identity
    assert ask.ok(RUN, prompt="A fruit?", policy_id=identity, max_new_tokens=8)["output"] == own["output"]
    sampled = ask.ok("/sampling/generate", prompt="A fruit?", policy_id=identity, max_new_tokens=8)
    assert sampled["output"] == own["output"]
    chat = ask.chat("A fruit?", policy_id=identity, max_tokens=8)
    assert chat["choices"][0]["message"]["content"] == own["output"]
    completed = ask.ok("/v1/completions", prompt="A fruit:", policy_id=identity, max_tokens=8)
    assert completed["steersman"]["policy"]["id"] == identity
    assert ask.post(RUN, prompt="x", policy_id="nobody-has-this").status_code == 404


@pytest.mark.parametrize("preset_id", PRESETS)
def test_the_presets_that_come_with_the_server(ask, client, preset_id):
    """Each can be cloned and run as it is."""
    cloned = ask.ok(f"/policies/presets/{preset_id}/clone")["policy_id"]
    found = ask.ok(f"/policies/{cloned}/run", prompt="Name a fruit.", max_new_tokens=16, seed=1)
    assert found["output"]
    assert (found["policy_id"], client.delete(f"/policies/{cloned}").status_code) == (cloned, 200)


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        ({"regex_pattern": "(?=a)b"}, "regex_pattern"),
        ({"grammar": 'root ::= "a'}, "grammar"),
        ({"json_schema": {"type": "string", "pattern": "(?=a)b"}}, "json_schema"),
    ],
)
def test_what_does_not_compile_is_not_saved(ask, limits, field):
    """A constraint that decoding could not be held to is refused before it is stored, with the reason."""
    refused = ask.post("/policies/save", policy={"constraints": limits})
    assert refused.status_code == 422, refused.text
    assert refused.json()["detail"][0]["loc"] == ["body", "policy", "constraints", field]


def test_tools_have_no_verifier(ask):
    """Verifiers judge text, which a call of a tool is not: both together are refused."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    body = {"messages": [{"role": "user", "content": "x"}], "tools": [tool], "max_tokens": 4}
    policy = {"verifiers": {"enabled": ["factuality"]}}
    refused = ask.post(CHAT, **body, policy=policy)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools")


def test_autotune_varies_any_path(ask, client):
    """The grid over dotted paths, with progress by SSE, and the best by success, score and speed."""
    body = {
        "prompts": [PERSON],
        "base_policy": {"constraints": {"json_schema": SCHEMA}, "optimization": {"retry_on_failure": 0}},
        "search_space": {"sampling.temperature": [0.1, 0.9], "verifiers.repair_on_failure": [False]},
        "max_new_tokens": 48,
    }
    found = ask.ok("/policies/autotune", **body)
    assert [trial["policy"]["sampling"]["temperature"] for trial in found["trials"]] == [0.1, 0.9]
    assert found["best_trial"] in found["trials"]
    with client.stream("POST", "/policies/autotune", json={**body, "stream": True}) as response:
        events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]
    assert [event["status"] for event in events] == ["processing", "processing", "complete"]
    assert len(events[-1]["result"]["trials"]) == 2
    assert found["skipped"] == []
    space = {"sampling.method": ["greedy", "top-k"], "optimization.best_of_n": [1, 2]}
    partly = ask.ok("/policies/autotune", prompts=["x"], search_space=space, max_new_tokens=4)
    assert len(partly["trials"]) == 3
    assert partly["skipped"][0]["point"] == {"sampling.method": "greedy", "optimization.best_of_n": 2}
    wrong = ask.post("/policies/autotune", prompts=["x"], search_space={"sampling.heat": [1]})
    assert wrong.status_code == 422
    assert wrong.json()["detail"][0]["loc"] == ["body", "search_space", "sampling", "heat"]


def test_one_policy_that_fails_leaves_the_others(ask):
    """compare tells what is wrong with it in its place."""
    lost = {"steering": {"enabled": True, "vector_id": "nobody-has-this"}}
    good, bad = ask.ok("/policies/compare", prompt="Hi", policies=[{}, lost], max_new_tokens=4)["results"]
    assert "output" in good
    assert bad["accepted"] is False
    assert "nobody-has-this" in bad["error"]


def test_policies_are_counted(client, run):
    """Decisions, durations and verifier runs stand on /metrics."""
    run({"verifiers": {"enabled": ["factuality"], "repair_on_failure": False}})
    text = client.get("/metrics").text
    for name in (
        "steersman_policy_decisions_total",
        "steersman_policy_duration_seconds_count",
        'steersman_verifier_runs_total{outcome="',
    ):
        assert name in text
