"""Several calls at once, but not all of them."""

import asyncio

import pytest

from server.errors import NotFound
from server.together import together


async def test_calls_share_their_slots_and_their_failure():
    """At most so many calls run at once, results keep their order, the first failure ends the others."""
    running = most = 0

    async def call(number):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        if number == 7:
            raise NotFound("seven")
        return number

    calls = [lambda number=number: call(number) for number in range(7)]
    assert await together(calls, at_once=3) == list(range(7))
    assert most == 3
    with pytest.raises(NotFound, match="seven"):
        await together([*calls, lambda: call(7)], at_once=3)
