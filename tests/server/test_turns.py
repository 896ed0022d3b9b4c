"""Turns that owners share."""

import asyncio

from server.turns import Turns


async def test_one_owner_leaves_turns_to_others():
    """An owner has no more than its share at once, whoever else comes has the rest, and none is forgotten."""
    turns, running, most = Turns(3, each=2), {"a": 0, "b": 0}, {"a": 0, "b": 0}
    order = []

    async def take(owner):
        async with turns.taken(owner):
            order.append(owner)
            running[owner] += 1
            most[owner] = max(most[owner], running[owner])
            assert sum(running.values()) <= 3
            await asyncio.sleep(0.01)
            running[owner] -= 1

    await asyncio.gather(*(take("a") for _ in range(8)), take("b"))
    assert most == {"a": 2, "b": 1}
    assert order.index("b") == 2
    assert order.count("a") == 8


async def test_a_turn_given_up_is_free_again():
    """Who leaves while waiting or at work takes no turn along, and nothing is kept of an owner who left."""
    turns = Turns(1, each=1)

    async def forever():
        async with turns.taken("a"):
            await asyncio.Event().wait()

    tasks = [asyncio.create_task(forever()) for _ in range(3)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    async with asyncio.timeout(1), turns.taken("a"):
        await asyncio.sleep(0)
    assert not turns._own
    assert not turns._asking
