"""Streams that end with what became of their request."""

import json
from collections.abc import AsyncGenerator

import pytest

from server.candidates import merge
from server.errors import SteersmanError
from server.streams import as_stream, ending_with, failed
from tests.server.responses import response

DONE = "data: [DONE]\n\n"


async def sent(*events: str) -> AsyncGenerator[str, None]:
    for event in events:
        yield event


def payloads(events: list[str]) -> list[dict]:
    return [json.loads(event[6:]) for event in events if event != DONE]


@pytest.mark.parametrize("include_usage", [True, False])
async def test_what_is_told_ends_a_stream(include_usage):
    """It stands in the last event before [DONE], beside what is there already; others pass untouched."""
    answer = merge([response("one")], [True])
    stream = ending_with(as_stream(answer, include_usage=include_usage), {"policy": {"accepted": True}})
    events = [one async for one in stream]
    assert events[-1] == "data: [DONE]\n\n"
    *others, last = payloads(events)
    assert last["steersman"] == {"policy": {"accepted": True}}
    assert not any("steersman" in chunk for chunk in others)


async def test_a_failed_stream_is_told_nothing():
    """After an error event no outcome is written."""
    source = sent(failed(SteersmanError("gone")), DONE)
    events = [one async for one in ending_with(source, {"policy": {}})]
    assert [("error" in chunk, "steersman" in chunk) for chunk in payloads(events)] == [(True, False)]
