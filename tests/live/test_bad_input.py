"""Nothing that a client can send ends in a 5xx, kills the engine, or is silently ignored."""

import json
import time

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.embedded import NAME

pytestmark = pytest.mark.engine

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
NATIVE = "/generate"
SAMPLING = "/sampling/generate"
POLICY = "/policies/run"
MESSAGES = [{"role": "user", "content": "Hi"}]
BASES = {
    CHAT: {"messages": MESSAGES, "max_tokens": 2},
    COMPLETIONS: {"prompt": "Hi", "max_tokens": 2},
    NATIVE: {"prompt": "Hi", "max_tokens": 2},
    SAMPLING: {"prompt": "Hi", "max_new_tokens": 2},
    POLICY: {"prompt": "Hi", "max_new_tokens": 2, "policy": {}},
}
SHARED = (
    "n seed temperature top_p top_k min_p typical_p max_tokens min_tokens presence_penalty frequency_penalty"
    " repetition_penalty length_penalty ads_beta ads_subset_size beam_width best_of truncate_prompt_tokens"
    " prompt_logprobs priority"
)
NATIVE_NUMBERS = (
    "seed temperature top_p top_k min_p typical_p presence_penalty frequency_penalty repetition_penalty"
    " ads_beta ads_subset_size beam_width"
)
POLICY_NUMBERS = (
    "sampling.temperature sampling.top_p sampling.top_k sampling.min_p sampling.typical_p"
    " sampling.num_candidates sampling.beam_width sampling.ads_beta sampling.ads_subset_size"
    " sampling.diversity_strength optimization.best_of_n optimization.retry_on_failure steering.strength"
)
NUMBERS = {
    CHAT: f"{SHARED} top_logprobs max_completion_tokens thinking_token_budget",
    COMPLETIONS: f"{SHARED} logprobs",
    NATIVE: f"{NATIVE_NUMBERS} max_tokens steering_strength",
    SAMPLING: "max_new_tokens best_of_n " + " ".join(f"params.{name}" for name in NATIVE_NUMBERS.split()),
    POLICY: "max_new_tokens " + " ".join(f"policy.{name}" for name in POLICY_NUMBERS.split()),
}
# JSON literals; 1e400 is read as infinity, and 64-bit edges are where integers wrap.
HOSTILE = (
    "NaN", "Infinity", "-Infinity", "1" + "0" * 30, "-1" + "0" * 30, "1e400", "-1e400", "9223372036854775808",
    "-9223372036854775809", "4294967296", "2147483648", "-1", "1.5", "true", '"x"', "[]", "{}",
)  # fmt: skip


def raw(client, path, content, **headers):
    headers = {"content-type": "application/json", **headers}
    return client.post(path, content=content, headers=headers)


def with_literal(base, dotted, literal):
    """The JSON of `base` with a literal at a dotted path, JSON or not."""
    body = json.loads(json.dumps(base))
    inner, *rest = reversed(dotted.split("."))
    place = body
    for name in reversed(rest):
        place = place.setdefault(name, {})
    place[inner] = "@@"
    return json.dumps(body).replace('"@@"', literal)


def check_shape(path, response):
    """An error body as clients of `path` parse it."""
    assert 400 <= response.status_code < 500, (response.status_code, response.text)
    body = response.json()
    if path.startswith("/v1/"):
        assert body["error"].keys() == {"message", "type", "param", "code"}
        assert isinstance(body["error"]["message"], str)
    else:
        assert body.keys() == {"detail"}
        if response.status_code == 422:
            assert all({"loc", "msg", "type"} <= item.keys() for item in body["detail"])
        else:
            assert isinstance(body["detail"], str)


def error_text(response):
    return json.dumps(response.json())


@pytest.fixture(scope="module", autouse=True)
def _engine_survives(client, ask):
    """After all of this module the server is healthy and answers."""
    yield
    assert client.get("/health").status_code == 200
    assert ask.chat(max_tokens=4)["choices"][0]["message"]["content"]


@pytest.mark.parametrize("path", BASES)
@pytest.mark.parametrize("literal", HOSTILE)
def test_a_hostile_number_is_refused_or_harmless(client, path, literal):
    """In every numeric field of the route: 200, or a 4xx in the family's shape that names the field."""
    for field in NUMBERS[path].split():
        if (field, literal) == ("seed", "true"):
            continue
        response = raw(client, path, with_literal(BASES[path], field, literal))
        if response.status_code != 200:
            check_shape(path, response)
            if "body is not valid JSON" not in response.text:
                assert field.rpartition(".")[2] in error_text(response), (field, literal, response.text)


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "1e400", "-1e400", "1" + "0" * 30])
@pytest.mark.parametrize("path", BASES)
def test_what_is_no_number_is_never_accepted(client, path, literal):
    """NaN, infinities and 10**30 are refused as a temperature and as a number of tokens."""
    tokens = "max_tokens" if "max_tokens" in BASES[path] else "max_new_tokens"
    places = {NATIVE: "temperature", SAMPLING: "params.temperature", POLICY: "policy.sampling.temperature"}
    for field in (tokens, places.get(path, "temperature")):
        check_shape(path, raw(client, path, with_literal(BASES[path], field, literal)))


@pytest.mark.parametrize("path", BASES)
@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[1,",
        "nul",
        '{"prompt": "\\ud800"',
        "\x00",
        "[" * 100_000,
        '{"a":' * 50_000,
        '"text"',
        "[]",
        "3",
    ],
)
def test_malformed_json_is_refused(client, path, content):
    """A body that is not a JSON object is a 4xx that says so."""
    check_shape(path, raw(client, path, content))


@pytest.mark.parametrize("path", BASES)
def test_bytes_that_are_not_utf8_are_refused(client, path):
    """Latin-1 and truncated UTF-8 are errors of the client."""
    for content in (b'{"prompt": "\xe9"}', b'\xff\xfe{"prompt": 1}', b'{"prompt": "\xf0\x9f"}'):
        check_shape(path, raw(client, path, content))


@pytest.mark.parametrize("path", BASES)
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_another_content_type_is_refused(client, path, kind):
    """Only application/json is read, and the error says so."""
    response = raw(client, path, json.dumps(BASES[path]), **{"content-type": kind})
    check_shape(path, response)
    assert "application/json" in response.text


@pytest.mark.parametrize("path", BASES)
def test_unknown_fields_are_all_named(client, path):
    """Two misspelled fields: both in the error, at once."""
    response = client.post(path, json={**BASES[path], "temprature": 1, "top_kk": 2})
    check_shape(path, response)
    assert "temprature" in response.text
    assert "top_kk" in response.text


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_reserved_processor_arguments_are_refused(client, path):
    """vllm_xargs may not set what the server tells its own processors."""
    from processors.args import RESERVED_KEYS

    for key in RESERVED_KEYS:
        response = client.post(path, json={**BASES[path], "vllm_xargs": {key: 1}})
        check_shape(path, response)
        assert key in response.text


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": []},
        {"messages": None},
        {"messages": "Hi"},
        {"messages": [{}]},
        {"messages": [{"role": "user", "content": 7}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "nonsense"}]}]},
        {"stop": ["a"] * 99},
        {"stop": [""]},
        {"stop": 3},
        {"stream": "perhaps"},
        {"stream": True, "stream_options": 1},
        {"structured_outputs": []},
        {"structured_outputs": 3},
        {"logit_bias": {"x": 1}},
        {"logit_bias": {"99999999": 1}},
        {"logit_bias": {"-1": 1}},
        {"logit_bias": {"1": 1000}},
        {"stop_token_ids": [10**30]},
        {"allowed_token_ids": [-1]},
        {"allowed_token_ids": [10**9]},
        {"allowed_token_ids": []},
        {"bad_words": [""]},
        {"bad_words": [3]},
        {"tools": []},
        {"tools": [{"type": "function"}]},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "absent"}}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "xml"}},
        {"structured_outputs": {}},
        {"structured_outputs": {"json": {}, "regex": "a"}},
        {"structured_outputs": {"choice": []}},
        {"json_schema": {"type": "object"}, "regex_pattern": "a"},
        {"json_schema": []},
        {"regex_pattern": 3},
        {"grammar": ""},
        {"sampling_method": "nope"},
        {"sampling_method": 3},
        {"sampling_method": "guided-generation"},
        {"ads_beta": 0.3},
        {"beam_width": 2},
        {"sampling_method": "constrained-beam-search", "n": 8, "beam_width": 2},
        {"sampling_method": "constrained-beam-search", "beam_width": 17},
        {"sampling_method": "ensemble-sampling", "n": 2},
        {"n": 4, "best_of": 2},
        {"ensemble_models": []},
        {"vllm_xargs": {"a": {"b": 1}}},
        {"vllm_xargs": 3},
        {"chat_template_kwargs": 3},
        {"metadata": {"a": {"b": 1}}},
        {"cache_salt": ""},
        {"kv_transfer_params": 3},
        {"mm_processor_kwargs": {"a": 1}, "messages": []},
        {"temperature": 0, "n": 3},
        {"min_tokens": 9, "max_tokens": 2},
        {"max_tokens": 2049},
        {"top_logprobs": 3},
        {"logprobs": True, "top_logprobs": 10**4},
        {"model": ""},
        {"model": 3},
    ],
    ids=lambda fields: json.dumps(fields)[:60],
)
def test_a_wrong_chat_field_is_a_client_error(client, fields):
    """Each is a 4xx in OpenAI's envelope."""
    check_shape(CHAT, client.post(CHAT, json={**BASES[CHAT], **fields}))


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": None},
        {"prompt": []},
        {"prompt": ""},
        {"prompt": [[]]},
        {"prompt": ["a", 3]},
        {"prompt": [10**9]},
        {"prompt": [-1]},
        {"prompt": {"a": 1}},
        {"prompt_embeds": "AAAA"},
        {"suffix": "x"},
        {"logprobs": 10**3},
        {"echo": "x"},
    ],
    ids=lambda fields: json.dumps(fields)[:60],
)
def test_a_wrong_completion_field_is_a_client_error(client, fields):
    """Each is a 4xx in OpenAI's envelope."""
    check_shape(COMPLETIONS, client.post(COMPLETIONS, json={**BASES[COMPLETIONS], **fields}))


@pytest.mark.parametrize("path", BASES)
def test_a_prompt_beyond_the_context_is_refused(client, path):
    """1 MB of text, and 3,000 tokens for 2,048 places: 4xx that speaks of tokens, soon."""
    for text in ("river " * 170_000, "river " * 3000):
        prompt = {"messages": [{"role": "user", "content": text}]} if path == CHAT else {"prompt": text}
        started = time.perf_counter()
        response = client.post(path, json={**BASES[path], **prompt})
        check_shape(path, response)
        assert "token" in response.text or "context" in response.text
        assert time.perf_counter() - started < 20


@pytest.mark.parametrize("path", BASES)
def test_an_unknown_model_is_not_found(client, path):
    """404 that lists what is served."""
    response = client.post(path, json={**BASES[path], "model": "gpt-17"})
    assert response.status_code == 404
    assert NAME in response.text
    check_shape(path, response)


def test_a_body_over_the_limit_is_refused_before_it_is_read(client):
    """413, declared or chunked, in either family's shape."""
    big = b'{"prompt": "' + b"x" * (17 * 1024 * 1024) + b'"}'
    for path in (CHAT, NATIVE):
        check_shape(path, raw(client, path, big))
        response = raw(client, path, (big[i : i + 65536] for i in range(0, len(big), 65536)))
        assert response.status_code == 413


@pytest.mark.parametrize("path", ["/v1/nothing", "/nothing", "/v1/files", "/policy", "/v2/chat"])
def test_an_unknown_route_is_not_found(client, path):
    """404 in the family's shape."""
    for method in ("GET", "POST"):
        response = client.request(method, path)
        assert response.status_code in (404, 405)
        check_shape(path, response)


@pytest.mark.parametrize(("method", "path"), [("PUT", CHAT), ("DELETE", NATIVE), ("PUT", "/v1/models")])
def test_a_wrong_method_is_refused(client, method, path):
    """405 in the family's shape."""
    response = client.request(method, path)
    assert response.status_code == 405
    check_shape(path, response)


@pytest.mark.parametrize(
    "path", [CHAT, NATIVE, "/v1/models", "/graph", "/auth/whoami", "/nothing", "/v1/nothing"]
)
def test_no_key_and_a_wrong_key_are_unauthenticated(server, path):
    """401 before anything else, even where there is no route."""
    for headers in ({}, {"x-api-key": "nonsense"}, {"authorization": "Basic eDp5"}, {"x-api-key": "\xe9"}):
        method = "POST" if path in BASES else "GET"
        response = httpx.request(
            method, server.url + path, headers={k: v.encode("latin-1") for k, v in headers.items()}
        )
        assert response.status_code == 401, (headers, response.text)
        check_shape(path, response) if not path.startswith("/v1") else None
        assert response.headers["www-authenticate"] == "Bearer"


def test_a_revoked_key_is_refused_at_once(server, client):
    """Create, use, revoke: the very next request is a 401."""
    made = client.post("/auth/api-keys", json={"name": "short-lived"}).json()
    headers = {"x-api-key": made["api_key"]}
    assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 200
    assert client.delete(f"/auth/api-keys/{made['id']}").status_code == 200
    assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 401


@pytest.mark.parametrize(
    "fields", [{"json_schema": {"type": "nope"}}, {"regex_pattern": "(a"}, {"grammar": "root ::= absent"}]
)
def test_a_constraint_that_does_not_compile_is_refused_with_the_reason(client, fields):
    """400 on /v1 and 422 on Axionic's routes, naming the field."""
    (field,) = fields
    for path, status in ((CHAT, 400), (COMPLETIONS, 400), (SAMPLING, 422)):
        response = client.post(path, json={**BASES[path], **fields})
        assert response.status_code == status, response.text
        check_shape(path, response)
        assert field in response.text


def test_a_steering_request_is_not_silently_unsteered(client):
    """404 that names the vector, where there is none of that name."""
    response = client.post(NATIVE, json={**BASES[NATIVE], "steering_vector_id": "sv_1"})
    assert response.status_code == 404
    assert "sv_1" in response.json()["detail"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
FIELDS = {
    CHAT: "messages stop tools tool_choice response_format structured_outputs logit_bias stream_options user"
    " vllm_xargs chat_template_kwargs bad_words allowed_token_ids stop_token_ids json_schema regex_pattern"
    " grammar sampling_method ensemble_models metadata documents cache_salt request_id echo"
    " steering steering_vector_id steering_vector steering_preset steering_strength",
    COMPLETIONS: "prompt stop structured_outputs logit_bias json_schema grammar suffix echo stream n",
    NATIVE: "prompt sampling_method stop steering_vector_id steering_vector steering stream model",
    SAMPLING: "prompt method params json_schema regex_pattern grammar ensemble_models policy draft_model",
    POLICY: "prompt policy policy_id model include_trace",
}


@given(data=st.data())
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_in_any_field_is_answered(client, data):
    """Arbitrary JSON values in the structured fields of every route: never a 5xx but 501."""
    path = data.draw(st.sampled_from(list(FIELDS)))
    field = data.draw(st.sampled_from(FIELDS[path].split()))
    body = json.dumps({**BASES[path], field: data.draw(JSON)})
    response = raw(client, path, body)
    assert response.status_code < 500 or response.status_code == 501, (body, response.text)
    if 400 <= response.status_code < 500:
        check_shape(path, response)


def test_what_would_disturb_other_requests_is_not_served(client):
    """logprob_token_ids, which vLLM 0.32 would apply to the whole batch, is a 501 that names it."""
    body = {"messages": MESSAGES, "logprobs": True, "logprob_token_ids": [5, 7]}
    response = client.post(CHAT, json=body)
    assert response.status_code == 501
    assert response.json()["error"]["param"] == "logprob_token_ids"
