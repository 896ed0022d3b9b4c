"""OpenAI requests that carry a policy, on a scripted engine: what holds for them, what is answered."""

import pytest

from tests.server.vllm_policy_world import CHAT, Engine, always, chat, opened

pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated")


async def answered(engine, path=CHAT, status=200, **body):
    async with opened(engine) as client:
        response = await client.post(path, json=body if path != CHAT else chat(**body))
    assert response.status_code == status, response.text
    return response.json()


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
