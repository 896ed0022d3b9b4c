"""Axionic's own SDK against the running server, by its documentation's calls."""

import json
import re

import jsonschema
import pytest

from server.embedded import NAME

pytestmark = pytest.mark.engine

errors = pytest.importorskip("mechanex.errors", reason="pip install mechanex")

PROMPT = "Tell me about rivers."
SCHEMA = {
    "type": "object",
    "properties": {"river": {"enum": ["Nile", "Rhine"]}, "long": {"type": "boolean"}},
    "required": ["river", "long"],
    "additionalProperties": False,
}
PATTERN = r"[A-C]{3}-\d{2}"
GRAMMAR = 'root ::= "river " ("Nile" | "Rhine") "."'


@pytest.fixture(autouse=True)
def _signed_in(mx, server):
    mx.set_key(server.key)


@pytest.fixture
def answers(mx, monkeypatch):
    """What the server answered to the SDK, which itself returns the text alone."""
    seen = []
    for name in ("_post", "_post_sse"):
        plain = getattr(mx, name)

        def recording(endpoint, data=None, plain=plain):
            seen.append(plain(endpoint, data))
            return seen[-1]

        monkeypatch.setattr(mx, name, recording)
    return seen


def generate(mx, answers, method, **fields):
    """The text, and the method that the server says it ran."""
    fields = {"max_tokens": 12, **fields}
    text = mx.generation.generate(PROMPT, sampling_method=method, include_trace=True, **fields)
    answer = answers[-1]
    return text, answer["trace"]["selection"]["sampling_method"] if "trace" in answer else answer[
        "method_used"
    ]


def test_whoami_and_the_key_list_know_the_key(mx, server, recwarn):
    """whoami has an account, and no warning that the key is bad; the list masks keys."""
    assert "@" in mx.whoami()["email"]
    assert not [warning for warning in recwarn if "API key" in str(warning.message)]
    keys = mx.list_api_keys()
    assert keys
    assert server.key not in [item["key"] for item in keys]


def test_a_created_key_works_until_revoked(mx, client):
    """create_api_key's key generates; after its revocation it fails at once."""
    made = mx.create_api_key("second")
    mx.set_key(made["api_key"])
    assert mx.generation.generate(PROMPT, max_tokens=2, sampling_method="greedy")
    assert client.delete(f"/auth/api-keys/{made['id']}").status_code == 200
    with pytest.raises(errors.AuthenticationError):
        mx.generation.generate(PROMPT, max_tokens=2)


def test_the_balance_counts_requests_and_tokens(mx):
    """get_balance says that nothing is charged, and grows by what one request used."""
    mx.set_key(mx.create_api_key("counted")["api_key"])
    before = mx.get_balance()
    assert before["billing"] is False
    assert before["requests"] == before["total_tokens"] == 0
    mx.generation.generate(PROMPT, max_tokens=4, sampling_method="ads", best_of_n=2)
    after = mx.get_balance()
    assert after["requests"] == 1
    assert 2 <= after["completion_tokens"] <= 8
    assert after["total_tokens"] == after["prompt_tokens"] + after["completion_tokens"]


def test_set_model_binds_a_served_model_and_refuses_others(mx, capsys):
    """A known name is bound to the key; an unknown one is refused by the SDK with the list of names."""
    mx.set_model(NAME)
    assert NAME in [item["selected_model"] for item in mx.list_api_keys()]
    with pytest.raises(errors.MechanexError, match="Invalid model name"):
        mx.set_model("qwen-900b")
    assert f" - {NAME}" in capsys.readouterr().out
    with pytest.raises(errors.NotFoundError):
        mx._post("/auth/api-keys/set-model", {"model_name": "qwen-900b"})


def test_the_graph_has_a_node_for_each_block(mx):
    """model.get_graph: 30 decoder blocks in order."""
    assert [node["name"] for node in mx.model.get_graph()] == [f"layers.{index}" for index in range(30)]


def test_greedy_repeats(mx, answers):
    """greedy: twice the same text, by the method it names."""
    first, method = generate(mx, answers, "greedy")
    assert method == "greedy"
    assert first
    assert generate(mx, answers, "greedy") == (first, "greedy")


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("top-k", {"top_k": 5}),
        ("top-p", {"top_p": 0.8}),
        ("min-p", {}),
        ("min-p", {"min_p": 0.2}),
        ("typical", {}),
        ("typical", {"typical_p": 0.5}),
        ("ads", {}),
        ("ads", {"ads_subset_size": 8, "ads_beta": 0.3}),
        ("adaptive-determinantal-sampling", {"best_of_n": 3}),
    ],
)
def test_a_drawing_method_runs_under_its_name(mx, answers, method, fields):
    """Each method that draws answers with text, says that it ran, and varies."""
    texts = set()
    for _ in range(6):
        text, used = generate(mx, answers, method, **fields)
        assert text
        assert used == ("ads" if method.startswith("ad") else method)
        texts.add(text)
    assert len(texts) > 1


def test_top_k_of_one_is_the_greedy_text(mx, answers):
    """The SDK's top_k reaches the engine: of one token there is one text."""
    greedy, _ = generate(mx, answers, "greedy")
    assert generate(mx, answers, "top-k", top_k=1) == (greedy, "top-k")


@pytest.mark.parametrize("method", ["guided-generation", "constrained-beam-search", "ads", "top-k"])
def test_a_json_schema_is_obeyed(mx, answers, method):
    """json_schema: the text validates, whatever draws it."""
    text, used = generate(mx, answers, method, json_schema=SCHEMA, max_tokens=60)
    jsonschema.validate(json.loads(text), SCHEMA)
    assert used == method
    assert answers[-1]["accepted"] is True


@pytest.mark.parametrize("method", ["guided-generation", "constrained-beam-search"])
def test_a_regex_is_matched_in_full(mx, answers, method):
    """regex_pattern: the whole text matches."""
    text, used = generate(mx, answers, method, regex_pattern=PATTERN)
    assert re.fullmatch(PATTERN, text)
    assert used == method


@pytest.mark.parametrize("method", ["guided-generation", "constrained-beam-search"])
def test_a_grammar_is_obeyed(mx, answers, method):
    """grammar: the text is one of the two the grammar derives."""
    text, used = generate(mx, answers, method, grammar=GRAMMAR)
    assert text in ("river Nile.", "river Rhine.")
    assert used == method


def test_beam_search_repeats(mx, answers):
    """constrained-beam-search without a constraint draws nothing: twice the same text."""
    first, method = generate(mx, answers, "constrained-beam-search")
    assert method == "constrained-beam-search"
    assert first
    assert generate(mx, answers, "constrained-beam-search")[0] == first


@pytest.mark.parametrize("method", ["ssd", "speculative-decoding"])
def test_speculation_without_a_draft_model_says_what_ran_instead(mx, answers, method):
    """ssd with draft_model on this engine: an answer, and the name of the method that made it."""
    text, used = generate(mx, answers, method, draft_model="gpt2-small", top_k=7)
    assert text
    assert used == "top-k"


@pytest.mark.parametrize("fields", [{}, {"ensemble_models": [NAME, NAME, NAME]}, {"best_of_n": 3}])
def test_ensemble_sampling_votes(mx, answers, fields):
    """ensemble-sampling: one of the texts that its constraint allows, elected."""
    text, used = generate(mx, answers, "ensemble-sampling", grammar=GRAMMAR, **fields)
    assert text in ("river Nile.", "river Rhine.")
    assert used == "ensemble-sampling"


def test_an_ensemble_of_an_unknown_model_is_not_found(mx):
    """NotFoundError names the model."""
    with pytest.raises(errors.NotFoundError, match="gpt-17"):
        mx.generation.generate(PROMPT, sampling_method="ensemble-sampling", ensemble_models=["gpt-17"])


def test_the_sdks_strict_json_policy_runs(mx):
    """policy.strict_json_extraction: accepted JSON, every candidate traced."""
    policy = mx.policy.strict_json_extraction(schema=SCHEMA)
    result = mx.policy.run(PROMPT, policy=policy, max_new_tokens=60)
    assert result["accepted"] is True
    jsonschema.validate(json.loads(result["output"]), SCHEMA)
    assert len(result["trace"]["candidates"]) >= 2


def test_an_invalid_key_is_an_authentication_error(mx):
    """Every path of generate raises AuthenticationError for a wrong key."""
    mx.set_key("ax_" + "0" * 48)
    for method in ("top-k", "ads"):
        with pytest.raises(errors.AuthenticationError):
            mx.generation.generate(PROMPT, sampling_method=method)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"sampling_method": "nope"}, "unknown sampling method 'nope'"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_p": 7.0}, "top_p"),
        ({"sampling_method": "ads", "ads_beta": 2.0}, "ads_beta"),
        ({"typical_p": 0.0}, "typical_p"),
        ({"sampling_method": "guided-generation"}, "needs a constraint"),
        ({"json_schema": {"type": "nonsense"}}, "json_schema"),
        ({"regex_pattern": "(a"}, "regex_pattern"),
        ({"grammar": "root ::= nowhere"}, "grammar"),
        ({"steering_preset": "kindness"}, "unknown preset 'kindness'"),
    ],
)
def test_a_wrong_field_is_a_validation_error_that_names_it(mx, fields, named):
    """ValidationError (422) with the field or the reason in its text."""
    with pytest.raises(errors.ValidationError, match=re.escape(named)):
        mx.generation.generate(PROMPT, **fields)
