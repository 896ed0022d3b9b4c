"""What a request to /v1/responses may say."""

import pytest
from pydantic import ValidationError
from vllm.exceptions import VLLMValidationError

from server.vllm_responses import SteeredResponses


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
