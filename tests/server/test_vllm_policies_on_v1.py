"""OpenAI requests that carry a policy, on a scripted engine: what holds for them, what is answered."""

import math

import pytest

from server.metrics import POLICY_DECISIONS
from tests.server.responses import payloads
from tests.server.vllm_policy_world import (
    CHAT,
    COMPLETIONS,
    RUN,
    SAMPLING,
    Engine,
    always,
    chat,
    in_turn,
    opened,
)

pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated")


async def answered(engine, path=CHAT, status=200, **body):
    async with opened(engine) as client:
        response = await client.post(path, json=body if path != CHAT else chat(**body))
    assert response.status_code == status, response.text
    return response.json()


async def streamed(engine, path=CHAT, **body):
    """The headers and the chunks of an answer that is streamed."""
    async with opened(engine) as client:
        response = await client.post(path, json={**chat(stream=True, **body)} if path == CHAT else body)
    assert response.status_code == 200, response.text
    return response.headers, payloads([f"{part}\n\n" for part in response.text.split("\n\n") if part])


async def refused(status=400, **body):
    """The field that the refusal names, and its message."""
    error = (await answered(Engine(always("text")), status=status, **body))["error"]
    return error["param"], error["message"]


# What a request says itself


async def test_truncations_of_a_request_apply():
    """top_p beside a policy's top-k, top_k beside its top-p; what the policy alone says of them does not."""
    engine = Engine(always("text"))
    await answered(engine, policy={"sampling": {"method": "top-k", "top_k": 9}}, top_p=0.5)
    await answered(engine, policy={"sampling": {"method": "top-p", "top_p": 0.4}}, top_k=5)
    await answered(engine, policy={"sampling": {"method": "top-p", "top_p": 0.4, "top_k": 7}})
    asked = [(request.top_k, request.top_p) for request in engine.requests]
    assert asked == [(9, 0.5), (5, 0.4), (0, 0.4)]


async def test_a_model_that_nobody_names():
    """An answer carries the name that was asked for, or the served one where neither asks for any."""
    engine = Engine(always("text"))
    asked = ({}, {"model": "default"}, {"policy": {"model": {"model": "base"}}})
    answers = [await answered(engine, **{"policy": {}, **body}) for body in asked]
    assert [answer["model"] for answer in answers] == ["base", "default", "base"]


async def test_a_request_may_ask_for_beams():
    """use_beam_search stands for the method, and is refused beside another one."""
    engine = Engine(always("text"))
    answer = await answered(engine, policy={}, use_beam_search=True)
    assert answer["steersman"]["method_used"] == "constrained-beam-search"
    assert engine.requests[0].use_beam_search
    field, message = await refused(policy={}, use_beam_search=True, sampling_method="greedy")
    assert (field, "greedy" in message) == ("use_beam_search", True)


async def test_a_format_without_a_schema():
    """It says nothing of the answer, so it is refused by name."""
    wanted = {"type": "json_schema", "json_schema": {"name": "x"}}
    assert (await refused(policy={}, response_format=wanted))[0] == "response_format"


async def test_the_likelier_of_equals_is_the_answer():
    """Without a verifier their likelihood decides, not their place; logprobs that were not asked for are not
    answered."""
    engine = Engine(always(("unlikely", -3.0), ("likely", -0.5), ("rare", -9.0)))
    answer = await answered(engine, policy={"optimization": {"best_of_n": 3}})
    (choice,) = answer["choices"]
    assert (choice["message"]["content"], choice["index"], choice["logprobs"]) == ("likely", 0, None)


JSON = {"constraints": {"json_mode": True}, "verifiers": {"repair_on_failure": False}}
ROUNDS = ("no", ("{}", -2.0), "never", ('{"a": 1}', -0.5), "nothing")


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_n_answers_with_the_best(path):
    """As many candidates as asked for, and as many choices: the winner first, the usage over all of them."""
    engine = Engine(always(*ROUNDS))
    body = {"policy": {**JSON, "optimization": {"best_of_n": 2}}, "n": 4}
    answer = await answered(engine, path, **(body if path == CHAT else {"prompt": "JSON:", **body}))
    texts = [each.get("text") or each["message"]["content"] for each in answer["choices"]]
    assert texts == ['{"a": 1}', "{}", "no", "never"]
    assert [each["index"] for each in answer["choices"]] == [0, 1, 2, 3]
    assert (engine.requests[0].n, answer["usage"]["completion_tokens"]) == (4, 5)
    told = [each["accepted"] for each in answer["steersman"]["policy"]["choices"]]
    assert told == [True, True, False, False]


async def test_more_candidates_than_choices():
    """The policy's own number stands where it is higher; choices of a later round count too."""
    engine = Engine(in_turn("no", "never", "nothing", ("{}", -2.0), ('{"a": 1}', -0.5), "none"))
    answer = await answered(engine, policy={**JSON, "sampling": {"num_candidates": 3}}, n=2)
    assert [each["message"]["content"] for each in answer["choices"]] == ['{"a": 1}', "{}"]
    assert [request.n for request in engine.requests] == [3, 3]


async def test_n_choices_are_streamed():
    """Each with its index, and the outcome in the last chunk."""
    _, chunks = await streamed(Engine(always(*ROUNDS)), policy=JSON, n=4)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [each["index"] for each in choices] == [0, 1, 2, 3]
    assert choices[0]["delta"]["content"] == '{"a": 1}'
    assert chunks[-1]["steersman"]["policy"]["accepted"]


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ({"sampling": {"method": "greedy"}}, "greedy"),
        ({"sampling": {"temperature": 0}}, "temperature 0"),
        ({"sampling": {"method": "ensemble-sampling"}}, "vote"),
        ({"optimization": {"fallback_methods": ["ensemble-sampling"]}}, "vote"),
        ({"optimization": {"self_revision_loops": 1}}, "self_revision_loops"),
        ({"optimization": {"branch_and_prune": True, "best_of_n": 4}}, "branch_and_prune"),
        ({"objective": {"token_budget": 20}}, "token_budget"),
    ],
)
async def test_n_that_cannot_be_given(policy, reason):
    """What gives one answer alone is refused beside n, with the reason."""
    field, message = await refused(policy=policy, n=2)
    assert (field, reason in message) == ("n", True)


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ({"constraints": {"json_mode": True}}, "constraints"),
        ({"constraints": {"forbidden_terms": ["x"]}}, "forbidden_terms"),
        ({"verifiers": {"enabled": ["factuality"]}}, "verifiers"),
        ({"optimization": {"self_revision_loops": 1}}, "self_revision_loops"),
        ({"sampling": {"method": "ensemble-sampling"}}, "ensemble-sampling"),
        ({"optimization": {"fallback_methods": ["ensemble-sampling"]}}, "ensemble-sampling"),
    ],
)
async def test_tools_beside_what_is_about_text(policy, reason):
    """A call is no text to be masked, judged, revised or voted on; together they are refused by name."""
    field, message = await refused(policy=policy, tools=[TOOL])
    assert (field, reason in message) == ("tools", True)


async def test_best_of_is_the_policys():
    """`best_of` of the request stays refused."""
    assert (await refused(policy={}, best_of=2))[0] == "best_of"


# Streams, and what they tell

DRAFTLESS = {"sampling": {"method": "speculative-decoding"}}
PLAIN = {"name": "plain", "objective": {"token_budget": 3}}


def timeless(told):
    """Without how long it took, at any depth."""
    if isinstance(told, list):
        return [timeless(each) for each in told]
    if not isinstance(told, dict):
        return told
    return {name: timeless(each) for name, each in told.items() if name != "latency_ms"}


def decided():
    return POLICY_DECISIONS.labels("accepted")._value.get()


async def test_a_direct_stream_keeps_to_the_token_budget():
    """The budget limits it as it limits an answer that is not streamed."""
    engine = Engine(always("one two three four five"))
    _, chunks = await streamed(engine, policy=PLAIN)
    assert engine.requests[0].max_tokens == 3
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == "one two three"


@pytest.mark.parametrize("trace", [True, False])
async def test_a_direct_stream_tells_what_an_answer_tells(trace):
    """The same summary under `steersman`, trace included, but for the time it took."""
    engine = Engine(always("one two three four five"))
    body = {"policy": PLAIN, "include_trace": trace}
    answer = await answered(engine, **body)
    _, chunks = await streamed(engine, **body)
    assert [("steersman" in chunk, chunk["choices"] != []) for chunk in chunks] == [(True, True)]
    assert timeless(chunks[-1]["steersman"]) == timeless(answer["steersman"])


@pytest.mark.parametrize("sure", [True, False])
async def test_a_retry_tells_the_confidence(sure):
    """Where log-probabilities were asked for; the event of another retry has none."""
    optimization = {"confidence_triggered_regeneration": True} if sure else {}
    policy = {**(JSON if not sure else {}), "optimization": optimization}
    answer = await answered(Engine(always(("text", -2.0))), policy=policy, include_trace=True)
    (event,) = answer["steersman"]["policy"]["trace"]["retry_events"]
    assert event.get("confidence") == (pytest.approx(math.exp(-2)) if sure else None)


async def test_the_usage_stays_where_it_was_asked_for():
    """The outcome then stands in the usage's chunk, which is the last."""
    _, chunks = await streamed(Engine(always("a b")), policy={}, stream_options={"include_usage": True})
    assert [("steersman" in chunk, "usage" in chunk) for chunk in chunks] == [(False, False), (True, True)]
    assert chunks[-1]["usage"]["completion_tokens"] == 2


async def test_a_direct_stream_is_counted_when_it_ends():
    """One that fails is no decision."""
    before = decided()
    await streamed(Engine(always("a")), policy={})
    assert decided() == before + 1

    class Broken(Engine):
        async def create_chat_completion(self, request, raw):
            async def events():
                yield 'data: {"error": {"message": "gone"}}\n\n'
                yield "data: [DONE]\n\n"

            return events()

    _, chunks = await streamed(Broken(always("a")), policy={})
    assert (list(chunks[0]), decided()) == (["error"], before + 1)


@pytest.mark.parametrize("judged", [True, False])
async def test_streams_warn(judged):
    """A direct stream in its headers and at its end, a judged one at its end alone."""
    policy = {**DRAFTLESS, **({"optimization": {"best_of_n": 2}} if judged else {})}
    headers, chunks = await streamed(Engine(always("a")), policy=policy)
    assert "without speculation" in chunks[-1]["steersman"]["warning"]
    assert chunks[-1]["steersman"]["method_used"] == "top-k"
    assert ("x-steersman-method" in headers, "x-steersman-warning" in headers) == (not judged, not judged)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat()),
        (COMPLETIONS, {"prompt": "A fruit:"}),
        (RUN, {"prompt": "A fruit?"}),
        (SAMPLING, {"prompt": "A fruit?"}),
    ],
)
async def test_every_answer_of_a_policy_says_what_ran(path, body):
    """Method and warning are headers on every route."""
    async with opened(Engine(always("text"))) as client:
        response = await client.post(path, json={**body, "policy": DRAFTLESS})
    assert response.status_code == 200, response.text
    assert response.headers["x-steersman-method"] == "top-k"
    assert "without speculation" in response.headers["x-steersman-warning"]


# What a request says beside a policy on Axionic's route


async def sampled(engine, **body):
    async with opened(engine) as client:
        return await client.post(SAMPLING, json={"prompt": "A fruit?", **body})


async def test_null_says_nothing():
    """Fields of `params` that are null leave the policy's as they are."""
    engine = Engine(always("text"))
    params = {"temperature": None, "top_p": None, "ads_beta": None, "top_k": None}
    policy = {"sampling": {"method": "top-p", "temperature": 0.3, "top_p": 0.4}}
    response = await sampled(engine, policy=policy, params=params)
    assert response.status_code == 200, response.text
    assert (engine.requests[0].temperature, engine.requests[0].top_p) == (0.3, 0.4)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"policy": {"sampling": {"method": "greedy"}}, "best_of_n": 3}, "best_of_n"),
        ({"policy": {"sampling": {"method": "greedy"}}, "params": {"min_p": 0.2}}, "params.min_p"),
        ({"policy": {}, "params": {"ads_beta": 0.2}}, "params.ads_beta"),
        ({"policy": {}, "draft_model": "small"}, "draft_model"),
        ({"policy": {"sampling": {"adaptive_top_p": True}}, "method": "greedy"}, "method"),
        ({"policy": {"constraints": {"regex_pattern": "a"}}, "regex_pattern": "b"}, "regex_pattern"),
        ({"policy": {"constraints": {"json_mode": True}}, "grammar": "start: A"}, "grammar"),
        ({"policy": {}, "regex_pattern": "("}, "regex_pattern"),
    ],
)
async def test_a_refusal_names_the_requests_field(body, field):
    """What a policy cannot be overridden with is a 422 that names what the request says, not the policy."""
    response = await sampled(Engine(always("text")), **body)
    assert response.status_code == 422, response.text
    assert response.json()["detail"][0]["loc"] == ["body", *field.split(".")]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"policy": {"sampling": {"method": "greedy"}}, "min_p": 0.2}, "min_p"),
        ({"policy": {"sampling": {"adaptive_top_p": True}}, "sampling_method": "greedy"}, "sampling_method"),
        ({"policy": {"sampling": {"adaptive_top_p": True}}, "use_beam_search": True}, "use_beam_search"),
        (
            {"policy": {"constraints": {"grammar": "start: A"}}, "response_format": {"type": "json_object"}},
            "response_format",
        ),
    ],
)
async def test_a_refusal_on_v1_names_the_requests_field(body, field):
    """So it does on OpenAI's routes."""
    assert (await refused(**body))[0] == field


async def test_best_of_n_of_the_request():
    """It wins over the policy's and is validated with it."""
    engine = Engine(always("text"))
    response = await sampled(engine, policy={"optimization": {"best_of_n": 2}}, best_of_n=3)
    assert response.json()["policy"]["candidates"] == 3
