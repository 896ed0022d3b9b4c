"""The ten sampling methods on every generation route: what ran, what it says, and that it had its effect."""

import json
import math
import re

import jsonschema
import pytest

from server.embedded import NAME

pytestmark = pytest.mark.engine

CHAT, COMPLETIONS, NATIVE, SAMPLING = (
    "/v1/chat/completions",
    "/v1/completions",
    "/generate",
    "/sampling/generate",
)
PROMPT = "Say something about rivers."
PATTERN = "(yes|no), (never|always)"
# What a client asks for, and what the server must say it ran.
METHODS = [
    ("greedy", {}, "greedy"),
    ("top-k", {"top_k": 5}, "top-k"),
    ("top-p", {"top_p": 0.8}, "top-p"),
    ("min-p", {"min_p": 0.2}, "min-p"),
    ("typical", {"typical_p": 0.6}, "typical"),
    ("ads", {"ads_subset_size": 4, "ads_beta": 0.5}, "ads"),
    ("guided-generation", {"regex_pattern": PATTERN}, "guided-generation"),
    ("constrained-beam-search", {"beam_width": 3}, "constrained-beam-search"),
    ("speculative-decoding", {"top_k": 5}, "top-k"),
    ("ensemble-sampling", {}, "ensemble-sampling"),
    ("ssd", {"top_p": 0.5}, "top-p"),
    ("adaptive_determinantal_sampling", {}, "ads"),
]
IDS = [name for name, _, _ in METHODS]
each_method = pytest.mark.parametrize(("method", "fields", "used"), METHODS, ids=IDS)


def body_for(path, **fields):
    if path == CHAT:
        return {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 10, **fields}
    if path == COMPLETIONS:
        return {"prompt": "Rivers are long because the", "max_tokens": 10, **fields}
    if path == NATIVE:
        return {"prompt": PROMPT, "max_tokens": 10, **fields}
    outer = {name: fields.pop(name) for name in ("method", "model", "regex_pattern") if name in fields}
    return {"prompt": PROMPT, "max_new_tokens": 10, "params": fields, **outer}


def text_of(choice):
    return choice["text"] if "text" in choice else choice["message"]["content"]


def check_usage(usage):
    assert usage["prompt_tokens"] > 0
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@each_method
def test_v1_answers_by_the_method_and_says_so(ask, path, method, fields, used):
    """Header and body name the method; the model's name is the requested one; usage adds up."""
    response = ask.post(path, **body_for(path, sampling_method=method, model=NAME, **fields))
    assert response.status_code == 200, response.text
    body = response.json()
    assert response.headers["x-steersman-method"] == body["steersman"]["method_used"] == used
    assert body["model"] == NAME
    (choice,) = body["choices"]
    assert text_of(choice)
    check_usage(body["usage"])
    if method == "guided-generation":
        assert re.fullmatch(PATTERN, text_of(choice))


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@each_method
def test_v1_streams_by_the_method(client, path, method, fields, used):
    """The header is there before the first token; text arrives, one finish reason, then [DONE]."""
    body = body_for(path, sampling_method=method, model="default", stream=True, **fields)
    with client.stream("POST", path, json=body) as response:
        lines = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    assert response.headers["x-steersman-method"] == used
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    assert {chunk["model"] for chunk in chunks} == {"default"}
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    text = "".join(c["text"] if "text" in c else c["delta"].get("content") or "" for c in choices)
    assert text
    assert [c["finish_reason"] for c in choices if c["finish_reason"]] in (["stop"], ["length"])
    if method == "guided-generation":
        assert re.fullmatch(PATTERN, text)


@each_method
def test_generate_answers_in_json_and_in_events(client, ask, method, fields, used):
    """/generate: output and text, by the method; its events join to the output, by the SDK's own parser."""
    mechanex = pytest.importorskip("mechanex", reason="pip install mechanex")
    body = body_for(NATIVE, sampling_method=method, **fields)
    if method == "guided-generation":
        del body["regex_pattern"]
        assert ask.post(NATIVE, **body).status_code == 422
        return
    whole = ask.post(NATIVE, **body)
    assert whole.headers["content-type"] == "application/json"
    assert whole.headers["x-steersman-method"] == whole.json()["method_used"] == used
    assert whole.json()["output"] == whole.json()["text"] != ""
    with client.stream("POST", NATIVE, json=body) as response:
        events = mechanex.Mechanex._parse_sse_events(response.iter_lines())
    assert response.headers["content-type"].startswith("text/event-stream")
    *tokens, complete = events
    assert {event["status"] for event in tokens} == {"token"}
    assert complete["status"] == "complete"
    assert complete["result"]["method_used"] == used
    text = "".join(event["token"] for event in tokens)
    assert text == complete["result"]["output"] == complete["result"]["text"]
    if method == "greedy":
        assert text == whole.json()["output"]


@each_method
def test_sampling_generate_says_what_was_executed(ask, method, fields, used):
    """/sampling/generate: exactly output and method_used."""
    answer = ask.ok(SAMPLING, **body_for(SAMPLING, method=method, **fields))
    assert answer.keys() == {"output", "method_used"}
    assert answer["method_used"] == used
    assert answer["output"]
    if method == "guided-generation":
        assert re.fullmatch(PATTERN, answer["output"])


def test_the_native_defaults_are_axionics(ask):
    """Without a method both native routes run top-k; a constraint alone is guided generation."""
    assert ask.ok(NATIVE, prompt=PROMPT, max_tokens=2)["method_used"] == "top-k"
    assert ask.ok(SAMPLING, prompt=PROMPT, max_new_tokens=2)["method_used"] == "top-k"
    guided = ask.ok(SAMPLING, prompt=PROMPT, regex_pattern=PATTERN)
    assert guided["method_used"] == "guided-generation"
    assert re.fullmatch(PATTERN, guided["output"])


@pytest.mark.parametrize("name", [NAME, "default", None])
def test_the_requested_model_name_is_echoed(ask, name):
    """In whole answers and in every chunk; without a name, the served one."""
    named = {"model": name} if name else {}
    assert ask.chat(**named)["model"] == (name or NAME)
    body = body_for(CHAT, sampling_method="ads", n=2, **named)
    assert {chunk["model"] for chunk in ask.events(CHAT, **body)} == {name or NAME}


def chosen(ask, **fields):
    """Each drawn token's log-probability beside the 20 largest, at temperature 1."""
    answer = ask.chat(n=4, max_tokens=25, temperature=1, logprobs=True, top_logprobs=20, **fields)
    for choice in answer["choices"]:
        for token in choice["logprobs"]["content"]:
            yield token["logprob"], sorted((top["logprob"] for top in token["top_logprobs"]), reverse=True)


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"sampling_method": "top-k", "top_k": 3}, lambda own, top: own >= top[2]),
        ({"sampling_method": "ads", "ads_subset_size": 3}, lambda own, top: own >= top[2]),
        ({"sampling_method": "ads", "top_k": 2, "ads_beta": 0.9}, lambda own, top: own >= top[1]),
        ({"sampling_method": "min-p", "min_p": 0.3}, lambda own, top: own >= top[0] + math.log(0.3) - 1e-4),
        (
            {"sampling_method": "ads", "min_p": 0.3},
            lambda own, top: own >= top[0] + math.log(0.3) - 1e-4,
        ),
        (
            {"sampling_method": "top-p", "top_p": 0.3},
            lambda own, top: sum(math.exp(t) for t in top if t > own) < 0.3 + 1e-4,
        ),
        (
            {"sampling_method": "ads", "top_p": 0.3, "ads_subset_size": 32},
            lambda own, top: sum(math.exp(t) for t in top if t > own) < 0.3 + 1e-4,
        ),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_no_token_is_drawn_outside_the_methods_pool(ask, fields, kept):
    """What top-k, top-p, min-p and ADS exclude is never drawn, and something else than the argmax is."""
    drawn = list(chosen(ask, **fields))
    assert all(kept(own, top) for own, top in drawn)
    assert any(own < top[0] for own, top in drawn)


@pytest.mark.parametrize("method", ["top-k", "typical", "ads"])
def test_n_siblings_come_in_order_and_count_their_prompt_once(ask, method):
    """n=3: indices 0, 1, 2; the prompt's tokens of one request, the completion tokens of all."""
    one = ask.chat(sampling_method=method, ignore_eos=True)
    three = ask.chat(sampling_method=method, n=3, ignore_eos=True)
    assert [choice["index"] for choice in three["choices"]] == [0, 1, 2]
    assert three["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]
    assert three["usage"]["completion_tokens"] == 3 * 12
    check_usage(three["usage"])


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_ads_streams_its_siblings_interleaved(ask, path):
    """n=3 and stream: one id, every index ends once, the tokens of all are counted."""
    body = body_for(path, sampling_method="ads", n=3, ignore_eos=True, stream_options={"include_usage": True})
    *chunks, last = ask.events(path, **body)
    assert len({chunk["id"] for chunk in [*chunks, last]}) == 1
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert sorted(choice["index"] for choice in choices if choice["finish_reason"]) == [0, 1, 2]
    order = [choice["index"] for choice in choices]
    assert order != sorted(order), "one sibling after the other is not a stream of siblings"
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 30
    check_usage(last["usage"])


def test_several_prompts_have_siblings_each(ask):
    """Two prompts with n=2 under ADS: four choices, prompts counted once each."""
    both = ask.ok(COMPLETIONS, prompt=["One", "Two and three"], n=2, sampling_method="ads", max_tokens=4)
    assert [choice["index"] for choice in both["choices"]] == [0, 1, 2, 3]
    alone = [ask.ok(COMPLETIONS, prompt=p, max_tokens=1)["usage"] for p in ("One", "Two and three")]
    assert both["usage"]["prompt_tokens"] == sum(usage["prompt_tokens"] for usage in alone)


def test_ads_obeys_a_json_schema(ask):
    """The grammar's mask comes first: three siblings, three valid objects."""
    schema = {
        "type": "object",
        "properties": {"river": {"enum": ["Nile", "Rhine", "Po"]}, "wide": {"type": "boolean"}},
        "required": ["river", "wide"],
        "additionalProperties": False,
    }
    answer = ask.chat(sampling_method="ads", n=3, json_schema=schema, max_tokens=60)
    assert answer["steersman"]["method_used"] == "ads"
    for choice in answer["choices"]:
        assert choice["finish_reason"] == "stop"
        jsonschema.validate(json.loads(choice["message"]["content"]), schema)


def test_min_p_applies_together_with_typical(ask):
    """typical 0.99 hardly cuts, min_p 0.99 cuts to the likeliest token: the text is the greedy one."""
    both = ask.chat(typical_p=0.99, min_p=0.99, seed=1, temperature=1)
    assert both["steersman"]["method_used"] == "typical"
    assert text_of(both["choices"][0]) == text_of(ask.chat(temperature=0)["choices"][0])


@pytest.mark.parametrize("fields", [{"sampling_method": "ads"}, {"typical_p": 0.3}, {"min_p": 0.5}])
def test_at_temperature_zero_everything_is_greedy(ask, fields):
    """method_used says greedy, and the text is the greedy one."""
    greedy = ask.chat(sampling_method="greedy")
    cold = ask.chat(temperature=0, **fields)
    assert cold["steersman"]["method_used"] == greedy["steersman"]["method_used"] == "greedy"
    assert text_of(cold["choices"][0]) == text_of(greedy["choices"][0])


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, NATIVE, SAMPLING])
def test_speculation_without_a_draft_model_warns(ask, path):
    """The warning is a header on every route, and part of the body on /v1."""
    named = {"method": "ssd"} if path == SAMPLING else {"sampling_method": "ssd"}
    response = ask.post(path, **body_for(path, **named))
    assert response.status_code == 200, response.text
    assert "without a draft model" in response.headers["x-steersman-warning"]
    if path.startswith("/v1"):
        assert response.json()["steersman"]["warning"] == response.headers["x-steersman-warning"]


def test_a_beam_gives_at_most_its_width(ask):
    """n ≤ beam_width: distinct texts, the best first and the same as alone; n above it is refused."""
    beam = {"sampling_method": "constrained-beam-search", "beam_width": 4}
    three = [text_of(choice) for choice in ask.chat(n=3, **beam)["choices"]]
    assert len(set(three)) == 3
    assert text_of(ask.chat(**beam)["choices"][0]) == three[0]
    refused = ask.post(CHAT, **body_for(CHAT, n=5, **beam))
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "n"


def test_a_beam_keeps_to_its_constraint(ask):
    """Every one of four beams under a regex matches it in full."""
    answer = ask.chat(
        sampling_method="constrained-beam-search", beam_width=4, n=4, regex_pattern=PATTERN, max_tokens=20
    )
    for choice in answer["choices"]:
        assert re.fullmatch(PATTERN, text_of(choice))


def test_an_ensemble_votes_over_all_its_samples(ask):
    """Five samples by default, all counted; at temperature 0 they agree on the greedy text."""
    greedy = ask.chat(temperature=0, ignore_eos=True)
    voted = ask.chat(temperature=0, ignore_eos=True, sampling_method="ensemble-sampling")
    assert text_of(voted["choices"][0]) == text_of(greedy["choices"][0])
    assert voted["usage"]["completion_tokens"] == 5 * 12
    assert voted["usage"]["prompt_tokens"] == greedy["usage"]["prompt_tokens"]
    two = ask.chat(sampling_method="ensemble-sampling", ensemble_models=[NAME, NAME], ignore_eos=True)
    assert two["usage"]["completion_tokens"] == 2 * 12


def test_best_of_keeps_the_likeliest_of_its_candidates(ask):
    """best_of=4 over siblings that are told apart by seed: no seed of the four alone is likelier."""

    def mean(**fields):
        answer = ask.chat(temperature=1, logprobs=True, ignore_eos=True, **fields)
        tokens = answer["choices"][0]["logprobs"]["content"]
        return sum(token["logprob"] for token in tokens) / len(tokens)

    alone = [mean(seed=seed) for seed in range(40, 44)]
    assert mean(seed=40, best_of=4) == pytest.approx(max(alone), abs=1e-4)
