"""What a request to /v1/responses may say, and whose the responses are that vLLM keeps."""

from types import SimpleNamespace

import httpx
import pytest
from pydantic import ValidationError
from vllm.entrypoints.openai.responses.protocol import ResponsesResponse
from vllm.exceptions import VLLMValidationError

from server.auth import Principal
from server.routes import openai
from server.vllm_responses import SteeredResponses, own_id
from tests.server.apps import routes_alone


def test_what_openais_client_sends_passes():
    """Every field of its that vLLM or nobody reads."""
    request = SteeredResponses.model_validate(
        {
            "input": "x",
            "instructions": "i",
            "background": False,
            "include": [],
            "max_output_tokens": 3,
            "max_tool_calls": 1,
            "metadata": {"a": "b"},
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "prompt_cache_key": "k",
            "prompt_cache_retention": "24h",
            "reasoning": {"effort": "low"},
            "safety_identifier": "u",
            "service_tier": "auto",
            "store": True,
            "stream": True,
            "stream_options": {"include_obfuscation": False},
            "temperature": 0,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": 0,
            "top_p": 1,
            "truncation": "disabled",
            "user": "u",
        }
    )
    assert request.stream


def test_steering_stands_beside_it():
    """As on the other routes."""
    request = SteeredResponses.model_validate(
        {"input": "x", "steering_vector_id": "v", "steering_strength": 2}
    )
    (entry,) = request.steering_entries().values()
    assert (entry.vector_id, entry.strength) == ("v", 2)


@pytest.mark.parametrize("field", ["steering_strenght", "sampling_method", "conversation"])
def test_what_nobody_reads_is_refused(field):
    """A misspelt field must not be an unsteered answer."""
    with pytest.raises((ValidationError, VLLMValidationError), match=field):
        SteeredResponses.model_validate({"input": "x", field: "ads"})


class Keeping:
    """vLLM's handler with what it has kept, which it shows to whoever asks."""

    def __init__(self, *kept: str) -> None:
        self.kept = {each: response(each) for each in kept}
        self.asked: list[str] = []

    async def retrieve_responses(self, response_id, starting_after, stream):
        self.asked.append(response_id)
        return self.kept[response_id]

    async def cancel_responses(self, response_id):
        self.asked.append(response_id)
        return self.kept[response_id]


def response(response_id):
    fields = {"model": "m", "output": [], "parallel_tool_calls": True, "status": "completed"}
    more = {"temperature": 0, "tool_choice": "auto", "tools": [], "top_p": 1, "background": False}
    last = {"max_output_tokens": 1, "service_tier": "auto", "truncation": "disabled"}
    return ResponsesResponse.model_validate({"id": response_id, **fields, **more, **last})


def calling(handler, account_id):
    app = routes_alone(openai.router)
    app.state.openai_serving_responses = handler
    app.state.steersman = SimpleNamespace()

    async def signed_in(scope, receive, send):
        scope.setdefault("state", {})["principal"] = Principal("key", account_id, None, None)
        await app(scope, receive, send)

    return httpx.AsyncClient(transport=httpx.ASGITransport(signed_in), base_url="http://test")


async def test_a_kept_response_is_its_owners():
    """Another account gets it neither by looking it up nor by cancelling it; vLLM is not even asked."""
    mine = own_id("me", "resp_1")
    handler = Keeping(mine)
    async with calling(handler, "me") as me, calling(handler, "you") as you:
        for method, path in (("GET", f"/v1/responses/{mine}"), ("POST", f"/v1/responses/{mine}/cancel")):
            assert (await you.request(method, path)).status_code == 404
            assert handler.asked == []
            answer = await me.request(method, path)
            assert answer.json()["id"] == mine
            assert handler.asked.pop() == mine


def test_a_chosen_id_is_the_accounts_own():
    """Whatever a client calls its response, it stands in no other's place and opens no other's."""
    mine, yours = own_id("me", "resp_x"), own_id("you", "resp_x")
    assert mine != yours
    assert mine.endswith("x")
    assert own_id("you", mine).startswith(own_id("you", ""))
